"""A training job's figures, one row for each step, in memory and in metrics.csv; a resumed run goes
on in the same file.
"""

import contextlib
import csv
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, TypedDict, cast

from ..base.files import write_atomically
from ..runs.progress import StepMetrics

log = logging.getLogger(__name__)
NAME = "metrics.csv"
COLUMNS = StepMetrics._fields
REQUIRED_COLUMNS = COLUMNS[:-1]  # files of older versions lack validation_loss


class MetricsRow(TypedDict):
    """A `StepMetrics` as JSON."""

    step: int
    loss: float
    loss_average: float
    learning_rate: float
    seconds: float
    validation_loss: float | None


class Metrics:
    """Rows in the order of their steps, every step once. A disk that refuses costs the file, not
    the rows.
    """

    def __init__(self) -> None:
        self._rows: list[StepMetrics] = []
        self._file: TextIO | None = None
        self._path: Path | None = None
        self._complete = True  # whether the file holds all rows

    @property
    def last(self) -> StepMetrics | None:
        return self._rows[-1] if self._rows else None

    def since(self, step: int) -> list[MetricsRow]:
        """Return the rows of the steps after `step`; from any thread."""
        return [_as_json(row) for row in after(list(self._rows), step)]

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
            self._try(self._close)
            self._path = None

    def load(self, folder: Path, until: int) -> None:
        """Take over a folder's rows of the steps up to `until`."""
        self._rows = [row for row in read_rows(folder / NAME) if row.step <= until]

    def cut(self, until: int) -> None:
        """Forget the rows after a step."""
        if self.last and self.last.step > until:
            self._rows = [row for row in self._rows if row.step <= until]
            self._begin_file()

    def add(self, row: StepMetrics) -> bool:
        """Add the row of a step; one that is there already stays, and False is returned."""
        if self.last and self.last.step >= row.step:
            return False
        self._rows.append(row)
        self._try(lambda: self._write(row))
        return True

    def _begin_file(self) -> None:
        """Write the file anew, for its last line may be half a line, and open it for more."""
        self._try(self._close)
        if self._path:
            path = self._path
            self._try(lambda: self._open(path))

    def _open(self, path: Path) -> None:
        text = io.StringIO()
        csv.writer(text).writerows([COLUMNS, *self._rows])
        write_atomically(path, text.getvalue().encode())
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115

    def _write(self, row: StepMetrics) -> None:
        if self._file:
            csv.writer(self._file).writerow(row)
            self._file.flush()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file:
            file.close()

    def _try(self, action: Callable[[], None]) -> None:
        """Touch the file. A disk that refuses is logged once, and not tried again until the end."""
        try:
            action()
        except OSError as error:
            log.warning("The figures cannot be written to %s: %s", self._path, error)
            self._complete = False
            with contextlib.suppress(OSError):
                self._close()


def after(rows: Sequence[StepMetrics], step: int) -> Sequence[StepMetrics]:
    """Return the rows of the steps after `step`.

    Steps count from 1 and hardly ever lack one, so a row is at or shortly before the index that is
    its step.
    """
    start = min(max(0, step), len(rows))
    while start and rows[start - 1].step > step:
        start -= 1
    return rows[start:]


def read_rows(path: Path) -> list[StepMetrics]:
    """Read a metrics.csv up to the first line that is no whole row: the one that was being written
    when the process died.
    """
    if not path.is_file():
        return []
    rows: list[StepMetrics] = []
    with open(path, encoding="utf-8", errors="replace") as file:
        columns = next(file, "").count(",") + 1
        for line in file:  # not by csv's reader, which raises at what a power cut leaves
            is_whole = line.endswith("\n") and line.count(",") + 1 == columns
            row = _read_row(line[:-1].split(",")) if is_whole else None
            if row is None or (rows and row.step <= rows[-1].step):
                break
            rows.append(row)
    return rows


def _read_row(cells: Sequence[str]) -> StepMetrics | None:
    """Return a line's figures, or None for what is no whole row. Without a validation loss the last
    cell is empty, or not there.
    """
    required, optional = cells[: len(REQUIRED_COLUMNS)], cells[len(REQUIRED_COLUMNS) :]
    if len(required) < len(REQUIRED_COLUMNS) or len(optional) > 1:
        return None
    try:
        step = int(required[0])
        loss, loss_average, learning_rate, seconds = map(float, required[1:])
        validation_loss = float(optional[0]) if optional and optional[0] else None
    except ValueError:
        return None
    return StepMetrics(step, loss, loss_average, learning_rate, seconds, validation_loss)


def read_metrics(folder: Path, since: int = 0) -> list[MetricsRow]:
    """Return a job's rows after a step from its folder."""
    return [_as_json(row) for row in after(read_rows(folder / NAME), since)]


def _as_json(row: StepMetrics) -> MetricsRow:
    return cast(MetricsRow, row._asdict())
