"""Time of a person's actions on a data set of many pictures: opening, captions, deleting, checks.
The pictures are made for it.
"""

import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from .editor.checks import CheckSettings
from .editor.editor import DataSetEditor

SIDE_PX = 24
WORDS = (
    "cat dog tree river red blue night rain portrait smiling standing outdoors simple bird".split()
)
Seconds = tuple[float, float]  # on the clock, and on the processor


def report(pictures: int) -> str:
    """Make a data set of so many pictures in a temporary folder and return a table of seconds, and
    of those on the processor.
    """
    with tempfile.TemporaryDirectory(
        prefix="train-lora-bench-", ignore_cleanup_errors=True
    ) as place:
        folder, home = Path(place, "pictures"), Path(place, "home")
        make_pictures(folder, pictures)
        lines = [
            f"{what:<38} {wall:8.3f} s {busy:8.3f} s"
            for what, (wall, busy) in measure(folder, home)
        ]
    head = f"A data set of {pictures:,} pictures of {SIDE_PX} x {SIDE_PX}, each with a caption"
    return "\n".join([head, f"{'':<38} {'time':>10} {'processor':>10}", *lines])


def make_pictures(folder: Path, count: int) -> None:
    """Write `count` PNGs of noise, each with a caption of some words."""
    folder.mkdir(parents=True)
    draws = Random(0)
    for number in range(count):
        (folder / f"picture {number:05}.png").write_bytes(_png(draws))
        caption = ", ".join(draws.sample(WORDS, 6))
        (folder / f"picture {number:05}.txt").write_text(
            f"{caption}, number {number}\n", encoding="utf-8"
        )


def measure(folder: Path, home: Path) -> Iterator[tuple[str, Seconds]]:
    """Do one thing after the other as a page would; yields what was done and how long it took."""
    editor = DataSetEditor("bench", folder, home)
    try:
        yield "opening, for the first time", _time(editor.describe)
        yield "looking at every picture, once", _time(lambda: _examine(editor))
        editor.close()
        editor = DataSetEditor("bench", folder, home)
        yield "opening, after a restart", _time(editor.describe)
        yield from _edits(editor)
    finally:
        editor.close()


def _edits(editor: DataSetEditor) -> Iterator[tuple[str, Seconds]]:
    names = [row["filename"] for row in editor.describe()["pictures"]]
    yield "opening again", _time(editor.describe)
    yield "seeing whether anything changed", _time(editor.state)
    yield "one caption", _time(lambda: editor.set_captions({names[0]: "a caption of its own"}))
    yield "one caption, the next", _time(lambda: editor.set_captions({names[-1]: "another"}))
    yield "undo of one caption", _time(editor.undo)
    edit = {"text": "best quality"}
    yield (
        "bulk edit of all, shown before",
        _time(lambda: editor.bulk_edit("prepend", edit, preview=True)),
    )
    yield "bulk edit of all", _time(lambda: editor.bulk_edit("prepend", edit))
    yield "undo of it", _time(editor.undo)
    yield "redo of it", _time(editor.redo)
    yield "rename a picture", _time(lambda: editor.files.rename(names[1], "renamed"))
    for count in (100, 1000):
        deleted = names[2 : 2 + count]
        yield f"delete {len(deleted):,}", _time(lambda: editor.files.move_to_trash(deleted))  # noqa: B023
        yield f"undo of deleting {len(deleted):,}", _time(editor.undo)
    yield "checks", _time(lambda: editor.pictures.check(CheckSettings()))
    yield "checks, again", _time(lambda: editor.pictures.check(CheckSettings()))


def _examine(editor: DataSetEditor) -> None:
    while not editor.pictures.check(CheckSettings())["ready"]:
        time.sleep(0.5)


def _time(act: Callable[[], object]) -> Seconds:
    began, busy = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - began, time.process_time() - busy


def _png(draws: Random) -> bytes:
    """Return a PNG of its own: 8 x 8 random colours, enlarged."""
    cells = [[draws.randbytes(3) for _ in range(8)] for _ in range(8)]
    size = SIDE_PX // 8
    rows = b"".join((b"\0" + b"".join(cell * size for cell in row)) * size for row in cells)
    header = struct.pack(">IIBBBBB", SIDE_PX, SIDE_PX, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
