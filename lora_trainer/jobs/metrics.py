"""A training job's figures, one row for each step, in memory and in metrics.csv; a resumed run goes
on in the same file.
"""

import contextlib
import csv
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..base.files import write_atomically

log = logging.getLogger(__name__)
NAME = "metrics.csv"
COLUMNS = (
    "step",
    "loss",
    "loss_average",
    "learning_rate",
    "seconds",
    "validation_loss",
)  # files of older versions lack the last
SECONDS, VALIDATION_LOSS = COLUMNS.index("seconds"), COLUMNS.index("validation_loss")
FEWEST = 5
Row = tuple[int, float, float, float, float, float | None]


class Metrics:
    """Rows in the order of their steps, every step once. A disk that refuses costs the file, not
    the rows.
    """

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self.validation_loss: float | None = None  # what was measured last
        self._file: Any = None
        self._path: Path | None = None
        self._complete = True

    @property
    def last(self) -> Row | None:
        return self._rows[-1] if self._rows else None

    def since(self, step: int) -> list[dict[str, Any]]:
        """Return the rows of the steps after `step`; from any thread."""
        return [dict(zip(COLUMNS, row, strict=True)) for row in after(list(self._rows), step)]

    @contextlib.contextmanager
    def kept_in(self, folder: Path) -> Iterator[None]:
        """Keep the rows in a folder's metrics.csv while this lasts, those that are known first."""
        self._path, self._complete = folder / NAME, True
        try:
            self._begin_file()
            yield
        finally:
            if not self._complete:  # by now the disk may have room again
                self._begin_file()
            self._refusable(self._close)
            self._path = None

    def load(self, folder: Path, until: int) -> None:
        """Take over a folder's rows of the steps up to `until`."""
        self._take([row for row in read_rows(folder / NAME) if row[0] <= until])

    def cut(self, until: int) -> None:
        """Forget the rows after a step."""
        if self.last and self.last[0] > until:
            self._take([row for row in self._rows if row[0] <= until])
            self._begin_file()

    def add(self, row: Row) -> bool:
        """Add the row of a step; one that is there already stays, and False is returned."""
        if self.last and self.last[0] >= row[0]:
            return False
        self._rows.append(row)
        self._note(row)
        self._refusable(self._write, row)
        return True

    def _take(self, rows: list[Row]) -> None:
        self._rows, self.validation_loss = rows, None
        for row in rows:
            self._note(row)

    def _note(self, row: Row) -> None:
        self.validation_loss = (
            self.validation_loss if row[VALIDATION_LOSS] is None else row[VALIDATION_LOSS]
        )

    def _begin_file(self) -> None:
        """Write the file anew, for its last line may be half a line, and open it for more."""
        self._refusable(self._close)
        if self._path:
            self._refusable(self._open)

    def _open(self) -> None:
        text = io.StringIO()
        csv.writer(text).writerows([COLUMNS, *self._rows])
        write_atomically(self._path, text.getvalue().encode())
        self._file = open(self._path, "a", newline="", encoding="utf-8")  # noqa: SIM115

    def _write(self, row: Row) -> None:
        if self._file:
            csv.writer(self._file).writerow(row)
            self._file.flush()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file:
            file.close()

    def _refusable(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except OSError as error:
            log.warning("The figures cannot be written to %s: %s", self._path, error)
            self._complete = False  # told once, and not tried again at every step
            with contextlib.suppress(OSError):
                self._close()


def after(rows: Sequence[Row], step: int) -> Sequence[Row]:
    """Return the rows of the steps after `step`. Steps count from 1 and hardly ever lack one, so
    that place and step are near each other.
    """
    start = min(max(0, step), len(rows))
    while start and rows[start - 1][0] > step:
        start -= 1
    return rows[start:]


def read_rows(path: Path) -> list[Row]:
    """Read a metrics.csv up to the first line that is no whole row: the one that was being written
    when the process died.
    """
    if not path.is_file():
        return []
    rows: list[Row] = []
    with open(path, encoding="utf-8", errors="replace") as file:
        columns = next(file, "").count(",") + 1
        for line in file:  # numbers only, and csv's reader stops at what a power cut leaves
            row = (
                _row(line[:-1].split(","))
                if line.endswith("\n") and line.count(",") + 1 == columns
                else None
            )
            if row is None or (rows and row[0] <= rows[-1][0]):
                break
            rows.append(row)
    return rows


def _row(cells: Sequence[str]) -> Row | None:
    """Return a line's figures, or None for what is no whole row. Where nothing was measured the
    last cell is empty, or not there.
    """
    try:
        step, *values = int(cells[0]), *map(float, cells[1:FEWEST])
        measured = [float(cell) if cell else None for cell in cells[FEWEST:]] or [None]
    except ValueError:
        return None
    row = (step, *values, *measured)
    return row if len(row) == len(COLUMNS) else None


def read_metrics(folder: Path, since: int = 0) -> list[dict[str, Any]]:
    """Return a job's rows after a step from its folder."""
    return [dict(zip(COLUMNS, row, strict=True)) for row in after(read_rows(folder / NAME), since)]
