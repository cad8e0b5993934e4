"""What requests and answers look like, as JSON schemas for the OpenAPI document: for people who
read it and for tests that are made from it.

FastAPI checks none of it (requests.py does, with sentences), so one text serves its old and new
versions. `takes` and `gives` are arguments for a route's decorator; settings and actions derive
from where they are declared.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..captioning.labels import LARGEST_GROUP_BYTES, MOST_GROUPS
from ..editor.bulk_edits import ACTIONS, LONGEST_TEXT, SwitchParameter
from ..settings.config import schema
from .bodies import LONGEST_TEXT as LONGEST_VALUE

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "maxLength": LONGEST_VALUE}
SWITCH: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "array", "items": TEXT}
TEXTS_BY_NAME: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
ROWS: Schema = {"type": "array", "items": {"type": "object"}}
IF_CHANGED: Schema = {"type": "string", "enum": ["refuse", "skip", "overwrite"]}
VERSIONS: Schema = {
    **TEXTS_BY_NAME,
    "description": (
        "The versions seen, by picture; one that is not on disk any more is answered with 409."
    ),
}
FILENAMES: Schema = {**TEXTS, "description": "Pictures by file name; left out: all."}
OPTIONS: Schema = {
    "type": "object",
    "description": (
        "The captioner's options, as GET /captioners lists them; left out: its defaults."
    ),
}
LABEL_GROUPS: Schema = {
    "type": "object",
    "additionalProperties": {"type": "string", "maxLength": LARGEST_GROUP_BYTES},
    "minProperties": 1,
    "maxProperties": MOST_GROUPS,
}
EDITED: Schema = {
    "type": "object",
    "required": ["label", "captions", "skipped", "history", "revision"],
}


def whole_number(low: int, high: int, **more: Any) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, **more}


def a_number(low: float, high: float, **more: Any) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high, **more}


def settings() -> Schema:
    """Return the schema of a training config, from TrainConfig's fields; kohya's names are taken,
    too.
    """
    ours = {entry["name"]: _setting(entry) for entry in schema()}
    theirs = {
        name: {**ours[entry["name"]], "description": f"Another name of {entry['name']}."}
        for entry in schema()
        for name in (*entry["kohya"], *entry["also"])
    }
    return {"type": "object", "properties": {**ours, **theirs}, "additionalProperties": False}


def _setting(entry: Mapping[str, Any]) -> Schema:
    kind = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}[entry["type"]]
    limits = {key: entry[key] for key in ("minimum", "maximum") if entry[key] is not None}
    choices = {"enum": list(entry["choices"])} if entry["choices"] else {}
    return {
        "type": kind,
        "title": entry["title"],
        "description": entry["help"],
        "default": entry["default"],
        **limits,
        **choices,
    }


def edits() -> Schema:
    """Return the properties of a bulk edit, from the actions of editor/bulk_edits.py; which of them
    an action needs is in the README.
    """
    properties: Schema = {"action": {"type": "string", "enum": list(ACTIONS)}}
    for action in ACTIONS.values():
        for name, parameter in action.parameters.items():
            is_switch = isinstance(parameter, SwitchParameter)
            properties[name] = (
                SWITCH if is_switch else {"type": "string", "maxLength": LONGEST_TEXT}
            )
    return properties


def takes(
    *, required: Sequence[str] = (), optional_body: bool = False, **properties: Schema
) -> dict[str, Any]:
    """Describe a route's JSON body, an object with these properties."""
    body = {
        "type": "object",
        "properties": properties,
        **({"required": list(required)} if required else {}),
    }
    return {
        "openapi_extra": {
            "requestBody": {
                "content": {"application/json": {"schema": body}},
                "required": not optional_body,
            }
        }
    }


def gives(answer: Schema, status: int = 200) -> dict[str, Any]:
    """Describe what a route answers when all is well."""
    return {
        "responses": {
            status: {
                "description": "What was asked for.",
                "content": {"application/json": {"schema": answer}},
            }
        }
    }


def an_object(*required: str) -> Schema:
    return {"type": "object", "required": list(required)}


def a_list(*required: str) -> Schema:
    return {"type": "array", "items": an_object(*required)}


def file_of(*media_types: str) -> dict[int | str, dict[str, Any]]:
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
