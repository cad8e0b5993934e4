"""Errors that speak to the user: what was found, what was expected, what to do."""


class Refused(Exception):
    """Something that cannot be done, said in one sentence. `field` names the setting to mend, `code` is for programs."""

    def __init__(self, message: str, *, field: str | None = None, code: str = "refused") -> None:
        super().__init__(message)
        self.message, self.field, self.code = message, field, code


class Stopped(Exception):
    """The user asked a run to stop."""
