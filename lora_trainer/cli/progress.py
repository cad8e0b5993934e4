"""How a command shows its progress on stderr: a bar (tqdm) on a terminal, else, in a log file or a
pipe, a line every ten seconds and at events.
"""

import abc
import contextlib
import dataclasses
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

EVERY_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a command is. `notes`: all that has happened so far and deserves a line of its own in
    a log. `ended`: how it ended, with the last update.
    """

    done: int
    status: str
    figures: str = ""
    notes: Sequence[str] = ()
    ended: str = ""


class ProgressDisplay(abc.ABC):
    @abc.abstractmethod
    def update(self, progress: Progress) -> None:
        """Show how far it is."""

    @abc.abstractmethod
    def write(self, text: str) -> None:
        """Print a sentence on stdout without disturbing the progress on stderr."""

    @abc.abstractmethod
    def close(self) -> None: ...


class TerminalBar(ProgressDisplay):
    def __init__(self, total: int, *, unit: str, done: int = 0) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True)

    def update(self, progress: Progress) -> None:
        self._bar.set_description_str(progress.status)
        if progress.figures:
            self._bar.set_postfix_str(progress.figures)
        self._bar.update(progress.done - self._bar.n)

    def write(self, text: str) -> None:
        self._bar.write(text)

    def close(self) -> None:
        self._bar.close()


class LogLines(ProgressDisplay):
    """Writes a line every ten seconds, and at once for a new note or another status. A status that
    differs in numbers only, such as "Encoding picture 7 of 9", is not another one.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._unit = unit
        self._stream = stream or sys.stderr
        self._clock = clock
        self._notes: set[str] | None = None  # that are written already
        self._status = ""
        self._written_at = 0.0
        self._unwritten = ""  # the newest line, where it was not written

    def update(self, progress: Progress) -> None:
        notes = progress.notes
        known = set(notes) if self._notes is None else self._notes
        new_notes = [note for note in notes if note not in known]
        self._notes = known | set(notes)
        status = progress.ended or progress.status
        counts = f"{status}: {progress.done} of {self._total} {self._unit}s"
        line = ", ".join([counts, *filter(None, [progress.figures]), *new_notes])
        is_event = bool(new_notes) or _without_numbers(status) != _without_numbers(self._status)
        self._status = status
        if is_event or self._clock() - self._written_at >= EVERY_SECONDS:
            self._write_line(line)
        else:
            self._unwritten = line

    def write(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        if self._unwritten:
            self._write_line(self._unwritten)

    def _write_line(self, line: str) -> None:
        self._written_at = self._clock()
        self._unwritten = ""
        with contextlib.suppress(OSError):  # whoever read the pipe may be gone
            print(line, file=self._stream, flush=True)


@contextlib.contextmanager
def show_progress(total: int, *, unit: str, done: int = 0) -> Iterator[ProgressDisplay]:
    """Yield the display that suits stderr. `unit` is the singular of what is counted."""
    display: ProgressDisplay
    if sys.stderr.isatty():
        display = TerminalBar(total, unit=unit, done=done)
    else:
        display = LogLines(total, unit=unit)
    try:
        yield display
    finally:
        display.close()


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "", text)
