"""Decodes each picture of a data set once, in the background: for damage, thumbnails, and how the
picture looks, by which near-duplicates are found.

Results are kept in `<home>/examined.sqlite3` beside the thumbnails, so a data set that was scanned
before opens at once.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..base.errors import ErrorCode, Refused
from ..base.files import write_atomically
from ..base.sqlite import open_database
from ..dataset.images import Facts, decode_thumbnail, remember, unreadable
from ..dataset.sample import TRANSPARENT
from .file_cache import FileStamp
from .near_duplicates import Looks, mosaic, perceptual_hash

log = logging.getLogger(__name__)
THUMBNAIL_PX = 256
THUMBNAIL_QUALITY = 85
PAUSE_SECONDS = 0.02
RETRY_SECONDS = 30.0  # after which a picture is tried again that the disk refused, or memory
_NOT_READ = "is damaged or cut off: [Errno "  # older versions kept what the system refused
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
    """What decoding a picture has shown: its facts and looks, or a problem.

    `tried_at`, of `time.monotonic`, where it could not be read just then: that says nothing about
    the picture and is forgotten soon.
    """

    facts: Facts | None
    problem: Refused | None
    looks: Looks = Looks(b"", b"")
    tried_at: float | None = None


class _Known(NamedTuple):
    """The result of a picture, and the state of its file then."""

    mtime_ns: int
    size: int
    result: ScanResult


class BackgroundScan:
    """Scans the pictures of one data set in a thread of its own; `known` never waits for it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._queue: deque[Path] = deque()
        self._waiting_for_thumbnails = 0
        # not durable: everything in it can be found out again
        self._database = open_database(home / "examined.sqlite3", _TABLE, durable=False)
        self._known = {
            row["path"]: _Known(row["mtime_ns"], row["size"], _result_of(row))
            for row in self._database.execute("select * from pictures")
            if _NOT_READ not in (row["problem"] or "")
        }

    def known(self, path: Path, stat: os.stat_result | FileStamp) -> ScanResult | None:
        """Return the result of a picture, if it was scanned in this state."""
        known = self._known.get(str(path))
        if known is None or (known.mtime_ns, known.size) != (stat.st_mtime_ns, stat.st_size):
            return None
        tried_at = known.result.tried_at
        if tried_at is not None and time.monotonic() - tried_at > RETRY_SECONDS:
            return None
        return known.result

    def start(self, pictures: Sequence[Path]) -> None:
        """Begin to scan these pictures, in this order, instead of those that were still queued."""
        with self._lock:
            self._queue = deque(pictures)
            is_running = self._thread is not None and self._thread.is_alive()
            if self._queue and not is_running and not self._closing.is_set():
                self._thread = threading.Thread(
                    target=self._work, name="train-lora-examination", daemon=True
                )
                self._thread.start()

    def thumbnail(self, path: Path) -> Path:
        """Return a small JPEG of a picture, made if need be; raises `Refused` for a file that is no
        picture, or cannot be read.
        """
        try:
            stat = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        thumbnail = self._thumbnail_path(path, stat)
        if not thumbnail.is_file():
            with self._background_paused():
                result = self._scan(path, stat)
            if problem := result.problem:  # it is kept: raised itself, its traceback would grow
                raise Refused(problem.message, code=problem.code)
            if not thumbnail.is_file():
                raise Refused(
                    f"The thumbnail of {path.name} cannot be written.", code=ErrorCode.CANNOT_SAVE
                )
        return thumbnail

    def close(self) -> None:
        self._closing.set()
        with self._lock:  # `start` may just be starting the thread
            thread = self._thread
        if thread is not None:
            thread.join()
        with self._lock:
            self._database.close()

    # --- Inside -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _background_paused(self) -> Iterator[None]:
        """Let the background thread wait while somebody waits for a thumbnail."""
        with self._lock:
            self._waiting_for_thumbnails += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting_for_thumbnails -= 1

    def _work(self) -> None:
        while not self._closing.is_set():
            while self._waiting_for_thumbnails and not self._closing.wait(PAUSE_SECONDS):
                pass
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                path = self._queue.popleft()
            try:
                self._scan(path, path.stat())
            except OSError as error:  # most likely it was deleted
                log.info("%s was not scanned: %s", path, error)

    def _scan(self, path: Path, stat: os.stat_result) -> ScanResult:
        """Decode a picture, unless its result is known; keep the result and the thumbnail."""
        known = self.known(path, stat)
        if known is not None and (known.problem or self._thumbnail_path(path, stat).is_file()):
            return known
        try:
            facts, small = decode_thumbnail(path, THUMBNAIL_PX)
        except Refused as error:
            result = ScanResult(None, error)
        except (OSError, MemoryError) as error:
            log.info("%s was not scanned: %s", path, error)
            result = ScanResult(None, unreadable(path, error), tried_at=time.monotonic())
            with self._lock:
                self._known[str(path)] = _Known(stat.st_mtime_ns, stat.st_size, result)
            return result
        else:
            with contextlib.suppress(OSError):  # a full disk costs thumbnails, not the results
                self._save_thumbnail(path, stat, small)
            result = ScanResult(facts, None, Looks(perceptual_hash(small), mosaic(small)))
        if found := result.facts or result.problem:
            remember(path, stat.st_mtime_ns, stat.st_size, found)
        self._keep(path, stat, result)
        return result

    def _save_thumbnail(self, path: Path, stat: os.stat_result, small: Image.Image) -> None:
        target = self._thumbnail_path(path, stat)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
        target.parent.mkdir(exist_ok=True)
        write_atomically(target, buffer.getvalue())

    def _thumbnail_path(self, path: Path, stat: os.stat_result) -> Path:
        state = f"{path}/{stat.st_mtime_ns}/{stat.st_size}"
        key = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return self._home / "thumbnails" / f"{key}.jpg"

    def _keep(self, path: Path, stat: os.stat_result, result: ScanResult) -> None:
        facts = result.facts or Facts(0, 0)
        problem = result.problem and json.dumps([result.problem.message, result.problem.code])
        row = (
            str(path),
            stat.st_mtime_ns,
            stat.st_size,
            facts.width,
            facts.height,
            json.dumps(facts.warnings),
            problem,
            result.looks.hash,
            result.looks.mosaic,
        )
        with self._lock:
            self._known[str(path)] = _Known(stat.st_mtime_ns, stat.st_size, result)
            if self._closing.is_set():  # the database may be closed already
                return
            try:
                with self._database:
                    self._database.execute(
                        "insert or replace into pictures values (?, ?, ?, ?, ?, ?, ?, ?, ?)", row
                    )
            except sqlite3.Error as error:  # a full disk costs the cache, not the result
                log.info("the scan of %s is not kept: %s", path, error)


def _result_of(row: sqlite3.Row) -> ScanResult:
    if row["problem"]:
        message, code = json.loads(row["problem"])
        return ScanResult(None, Refused(message, code=code))
    warnings = json.loads(row["remarks"])
    facts = Facts(
        row["width"],
        row["height"],
        TRANSPARENT in warnings,
        tuple(warning for warning in warnings if warning != TRANSPARENT),
    )
    return ScanResult(facts, None, Looks(row["hash"], row["mosaic"]))
