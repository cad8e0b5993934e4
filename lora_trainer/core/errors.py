"""Errors that speak to the user: what was found, what was expected, what to do."""
from typing import Any


class Refused(Exception):
    """Something that cannot be done, said in one sentence. `field` names the setting to mend; `code` and `details` are for programs."""

    def __init__(self, message: str, *, field: str | None = None, code: str = "refused", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message, self.field, self.code, self.details = message, field, code, details or {}


class Stopped(Exception):
    """The user asked a run to stop."""
