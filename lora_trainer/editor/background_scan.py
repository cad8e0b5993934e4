"""Looks at a data set's pictures in the background, once each: damage, thumbnails, and hashes that
tell near-duplicates.

What was found is kept in `<home>/examined.sqlite3` beside the thumbnails, so a data set that was
looked at before opens at once.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..base.errors import Refused
from ..base.files import write_atomically
from ..base.sqlite import open_database
from ..dataset.scan import Facts, look, remember

log = logging.getLogger(__name__)
THUMBNAIL_PX = 256
HASH_PX, FREQUENCIES, MOSAIC = 32, 8, 8
ROWS = 256  # of pictures that are compared at the same time
PAUSE_SECONDS = 0.02
MOST_TWINS = 12  # of frames of a video all would be alike
ALIKE_BITS, ALIKE_COLOURS = 12, 20.0  # of 63 bits, and of 255; docs/log.md has what they catch
_TABLE = """create table if not exists pictures (
    path text primary key,
    mtime_ns integer not null,
    size integer not null,
    width integer,
    height integer,
    remarks text not null,
    problem text,
    hash blob,
    mosaic blob)"""


@dataclasses.dataclass(frozen=True)
class ScanResult:
    """What a look at a picture has shown: facts or a problem; its hash, 63 bits, and its colours,
    uint8 `(8, 8, 3)`, as bytes.
    """

    facts: Facts | None
    problem: Refused | None
    hash: bytes = b""
    mosaic: bytes = b""


class BackgroundScan:
    """The findings of one data set's pictures. `start` looks at them in a thread of its own;
    `known` never waits for it.
    """

    def __init__(self, home: Path) -> None:
        self._home, self._lock, self._thread, self._closing = (
            home,
            threading.Lock(),
            None,
            threading.Event(),
        )
        self._wanted: deque[Path] = deque()
        self._waiting = 0
        self._database = open_database(
            home / "examined.sqlite3", _TABLE, durable=False
        )  # it can all be found out again
        self._known = {
            row[0]: (row[1], row[2], _finding(row))
            for row in self._database.execute("select * from pictures")
        }

    def known(self, path: Path, stat: Any) -> ScanResult | None:
        """Return what is known of a picture in this state: an `os.stat_result`, or as much of one
        as `listing.Stamp` has.
        """
        mtime_ns, size, finding = self._known.get(str(path), (None, None, None))
        return finding if (mtime_ns, size) == (stat.st_mtime_ns, stat.st_size) else None

    def start(self, pictures: Sequence[Path]) -> None:
        """Begin to look at these pictures, in this order; what was still to be looked at before is
        dropped.
        """
        with self._lock:
            self._wanted = deque(pictures)
            if (
                self._wanted
                and not self._closing.is_set()
                and (self._thread is None or not self._thread.is_alive())
            ):
                self._thread = threading.Thread(
                    target=self._work, name="train-lora-examination", daemon=True
                )
                self._thread.start()

    def thumbnail(self, path: Path) -> Path:
        """Return a small JPEG of a picture, making it if need be; raises `Refused` or OSError for
        what is no picture.
        """
        stat = path.stat()
        thumbnail = self._thumbnail_path(path, stat)
        if not thumbnail.is_file():
            with self._in_front():
                finding = self._examine(path, stat)
            if finding.problem:
                raise finding.problem
            if not thumbnail.is_file():
                raise Refused(
                    f"The thumbnail of {path.name} cannot be written.", code="cannot_save"
                )
        return thumbnail

    def close(self) -> None:
        self._closing.set()
        with self._lock:  # one that is being started has started then
            thread = self._thread
        if thread is not None:
            thread.join()
        with self._lock:
            self._database.close()

    # --- Inside -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _in_front(self) -> Iterator[None]:
        """Somebody waits for a thumbnail: what is done in the background pauses."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def _work(self) -> None:
        while not self._closing.is_set():
            while self._waiting and not self._closing.wait(PAUSE_SECONDS):
                pass
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                path = self._wanted.popleft()
            try:
                self._examine(path, path.stat())
            except OSError as error:  # it went away meanwhile, or the disk is full
                log.info("%s was not examined: %s", path, error)

    def _examine(self, path: Path, stat: os.stat_result) -> ScanResult:
        """Decode a picture once, keep its thumbnail and what else there is to know."""
        known = self.known(path, stat)
        if known is not None and (known.problem or self._thumbnail_path(path, stat).is_file()):
            return known
        try:
            facts, small = look(path, THUMBNAIL_PX)
        except Refused as error:
            finding = ScanResult(None, error)
        else:
            with contextlib.suppress(OSError):  # a full disk costs thumbnails, not the findings
                self._save_thumbnail(path, stat, small)
            finding = ScanResult(facts, None, perceptual_hash(small), mosaic(small))
        remember(path, stat, finding.facts or finding.problem)
        self._keep(path, stat, finding)
        return finding

    def _save_thumbnail(self, path: Path, stat: os.stat_result, small: Image.Image) -> None:
        target, buffer = self._thumbnail_path(path, stat), io.BytesIO()
        small.save(buffer, "JPEG", quality=85)
        target.parent.mkdir(exist_ok=True)
        write_atomically(target, buffer.getvalue())

    def _thumbnail_path(self, path: Path, stat: os.stat_result) -> Path:
        key = hashlib.sha256(
            f"{path}/{stat.st_mtime_ns}/{stat.st_size}".encode("utf-8", "surrogateescape")
        ).hexdigest()[:24]
        return self._home / "thumbnails" / f"{key}.jpg"

    def _keep(self, path: Path, stat: os.stat_result, finding: ScanResult) -> None:
        facts, problem = (
            finding.facts or Facts(0, 0),
            finding.problem and json.dumps([finding.problem.message, finding.problem.code]),
        )
        with self._lock, self._database:
            self._known[str(path)] = (stat.st_mtime_ns, stat.st_size, finding)
            if not self._closing.is_set():
                self._database.execute(
                    "insert or replace into pictures values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        str(path),
                        stat.st_mtime_ns,
                        stat.st_size,
                        facts.width,
                        facts.height,
                        json.dumps(facts.remarks),
                        problem,
                        finding.hash,
                        finding.mosaic,
                    ),
                )


def perceptual_hash(image: Image.Image) -> bytes:
    """Return 63 bits of an RGB image, packed in 8 bytes: which of its lowest frequencies lie above
    their median.

    "pHash", as Zauner describes it (Implementation and Benchmarking of Perceptual Image Hash
    Functions, 2010, section 3.2.1), without the constant term.
    """
    grey = np.asarray(
        image.convert("L").resize((HASH_PX, HASH_PX), Image.LANCZOS), dtype=np.float64
    )
    at = np.arange(HASH_PX)
    cosines = np.cos(np.pi / HASH_PX * (at[None, :] + 0.5) * at[:FREQUENCIES, None])
    lowest = (cosines @ grey @ cosines.T).ravel()[1:]
    return np.packbits(lowest > np.median(lowest)).tobytes()


def mosaic(image: Image.Image) -> bytes:
    """Return an RGB image as 8x8 colours, uint8 `(8, 8, 3)`, as bytes."""
    return np.asarray(image.resize((MOSAIC, MOSAIC), Image.BOX), dtype=np.uint8).tobytes()


class DuplicateFinder:
    """Finds near-duplicates, and looks again only when pictures have come, gone or changed."""

    def __init__(self) -> None:
        self._seen: tuple[Any, dict[str, list[str]]] = None, {}

    def among(self, findings: Mapping[str, ScanResult]) -> dict[str, list[str]]:
        """As `near_duplicates`."""
        seen = [(name, finding.hash, finding.mosaic) for name, finding in findings.items()]
        before, found = self._seen
        if before != seen:
            found = near_duplicates(findings)
            self._seen = seen, found
        return found


def near_duplicates(findings: Mapping[str, ScanResult]) -> dict[str, list[str]]:
    """Return, for each picture by name that has any, the first others that look nearly the same: in
    structure and in colours.

    Compares all with all, some rows at a time: 20,000 pictures take seconds, and no more memory
    than `ROWS` x 20,000 numbers.
    """
    names = [name for name, finding in findings.items() if finding.hash]
    if len(names) < 2:
        return {}
    bits = np.unpackbits(
        np.frombuffer(b"".join(findings[name].hash for name in names), np.uint8).reshape(
            len(names), -1
        ),
        axis=1,
    ).astype(np.float32)
    colours = (
        np.frombuffer(b"".join(findings[name].mosaic for name in names), np.uint8)
        .reshape(len(names), -1)
        .astype(np.int16)
    )
    ones, found = bits.sum(axis=1), {}
    for start in range(0, len(names), ROWS):
        block = slice(start, start + ROWS)
        different = ones[block, None] + ones[None, :] - 2 * (bits[block] @ bits.T)
        for row, alike in enumerate(different <= ALIKE_BITS, start=start):
            if twins := _of_alike_colours(colours, row, np.flatnonzero(alike)):
                found[names[row]] = [names[twin] for twin in twins]
    return found


def _of_alike_colours(colours: np.ndarray, row: int, others: np.ndarray) -> list[int]:
    """Return the first `MOST_TWINS` of the `others` whose 8 x 8 colours are nearly those of a row;
    of colours `(pictures, 192)`.
    """
    found: list[int] = []
    for start in range(0, len(others), ROWS):
        some = others[start : start + ROWS]
        near = np.abs(colours[some] - colours[row]).mean(axis=1) <= ALIKE_COLOURS
        found += [int(other) for other in some[near] if other != row]
        if len(found) >= MOST_TWINS:
            break
    return found[:MOST_TWINS]


def _finding(row: tuple) -> ScanResult:
    _, _, _, width, height, remarks, problem, hash_, mosaic_ = row
    if problem:
        message, code = json.loads(problem)
        return ScanResult(None, Refused(message, code=code))
    return ScanResult(Facts(width, height, tuple(json.loads(remarks))), None, hash_, mosaic_)
