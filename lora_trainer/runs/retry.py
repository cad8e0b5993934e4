"""When to try again what a disk refused."""

import time

RETRY_SECONDS = 30.0


class Retry:
    """Remembers that something failed, and when it is to be tried again."""

    def __init__(self) -> None:
        self._due_at: float | None = None

    @property
    def is_pending(self) -> bool:
        return self._due_at is not None

    def is_due(self) -> bool:
        return self._due_at is not None and time.monotonic() >= self._due_at

    def postpone(self) -> None:
        """It failed: try again after a while."""
        self._due_at = time.monotonic() + RETRY_SECONDS

    def clear(self) -> None:
        """It succeeded."""
        self._due_at = None
