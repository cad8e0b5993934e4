"""Errors that speak to the user: what was found, what was expected, what to do."""

from typing import Any


class Refused(Exception):
    """Something that cannot be done, said in one sentence. `field` names the setting to mend;
    `code` and `details` are for programs.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        code: str = "refused",
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.field, self.code, self.details = message, field, code, details or {}


class Stopped(Exception):
    """The user asked a run to stop."""


class NotFinite(Exception):
    """A step gave a number that is not finite. `step` counts from 1, `pictures` are the numbers of
    those in its batches.
    """

    def __init__(self, step: int, what: str, value: float, pictures: list[int]) -> None:
        super().__init__(f"The {what} became {value} at step {step}.")
        self.step, self.what, self.value, self.pictures = step, what, value, pictures


class OutOfMemory(Exception):
    """A step, or the encoding before the first (step 0), did not fit into memory; `amount` says how
    much was needed and was there.
    """

    def __init__(self, step: int, amount: str) -> None:
        super().__init__(
            f"Memory ran out {f'at step {step}' if step else 'while encoding the pictures'}"
            f" ({amount})."
        )
        self.step, self.amount = step, amount
