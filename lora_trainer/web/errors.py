"""Turns whatever a route raises into a response: `{"error": {"code", "message", "field"?}}` with
its status. The statuses of our own codes are in base/errors.py.
"""

import logging
from collections.abc import Mapping

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ..base.errors import ErrorCode, Refused
from .json import Json

log = logging.getLogger(__name__)
_CODES_OF_STATUS = {
    400: ErrorCode.BAD_REQUEST,
    401: ErrorCode.NOT_ALLOWED,
    403: ErrorCode.NOT_ALLOWED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.WRONG_METHOD,
    413: ErrorCode.TOO_LARGE,
    415: ErrorCode.WRONG_CONTENT_TYPE,
}


def error_response(request: Request, error: Exception) -> Json:
    if isinstance(error, Refused):
        return _response(error.code.status, error.code, error.message, error.field, error.details)
    if isinstance(error, RequestValidationError):
        return _invalid_request(error)
    if isinstance(error, HTTPException):
        code = _CODES_OF_STATUS.get(error.status_code, ErrorCode.HTTP_ERROR)
        response = _response(error.status_code, code, str(error.detail))
        response.headers.update(error.headers or {})
        return response
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    message = (
        f"Something went wrong: {type(error).__name__}: {error}. The server's console has the"
        " details."
    )
    return _response(ErrorCode.INTERNAL.status, ErrorCode.INTERNAL, message)


def _invalid_request(error: RequestValidationError) -> Json:
    first = error.errors()[0]
    place = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path")]
    message = f"The request is not as expected: {first.get('msg', 'invalid')}."
    return _response(422, ErrorCode.BAD_REQUEST, message, ".".join(place) or None)


def _response(
    status: int,
    code: ErrorCode,
    message: str,
    field: str | None = None,
    details: Mapping[str, object] | None = None,
) -> Json:
    error: dict[str, object] = {"code": code, "message": message}
    if field:
        error["field"] = field
    return Json({"error": {**error, **(details or {})}}, status_code=status)
