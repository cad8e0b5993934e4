"""What routes answer, as JSON schemas for the OpenAPI document: for people who read it and for
tests that are made from it. `gives` and `file_of` are arguments for a route's decorator.
"""

from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]
"""A JSON schema, or another part of the OpenAPI document."""

ROWS: Schema = {"type": "array", "items": {"type": "object"}}
EDITED: Schema = {
    "type": "object",
    "required": ["label", "captions", "skipped", "history", "revision"],
}


def gives(schema: Schema, status: int = 200) -> Schema:
    """Describe what a route answers when all is well."""
    return {
        "responses": {
            status: {
                "description": "What was asked for.",
                "content": {"application/json": {"schema": schema}},
            }
        }
    }


def an_object(*required: str) -> Schema:
    return {"type": "object", "required": list(required)}


def a_list(*required: str) -> Schema:
    return {"type": "array", "items": an_object(*required)}


def file_of(*media_types: str) -> dict[int | str, Schema]:
    """Describe an answer that is a file, for `responses`."""
    return {
        200: {
            "description": "The file.",
            "content": {
                media_type: {"schema": {"type": "string", "format": "binary"}}
                for media_type in media_types
            },
        }
    }


_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "field": {"type": "string", "description": "The setting to mend."},
            },
        }
    },
}
_WHEN = {
    "4XX": (
        "Refused, with the reason: 401 without credentials, 403 from another site or for a path"
        " that is not allowed, 404 for what is not there, 409 when something is in the way, 413 for"
        " what is too large, 415 for other kinds than JSON and uploads, 422 for what cannot be."
    ),
    "5XX": (
        "It went wrong here: 507 when the disk is full or cannot be written, 500 for a fault of"
        " ours."
    ),
}
ERRORS = {
    status: {"description": when, "content": {"application/json": {"schema": _ERROR}}}
    for status, when in _WHEN.items()
}
