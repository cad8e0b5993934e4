"""Changes of files in a data set, and how they are carried out so that a crash loses nothing.

Small texts (captions) are held in memory and written in batches: all texts of a batch are flushed
to the disk before the first of them takes its place. Pictures are moved one by one between their
place and the trash folder, where their name contains the digest of their content.
"""

import dataclasses
import errno
import os
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from ..base.files import (
    flush_folders,
    flushed_temporaries,
    read_small_file,
    replace_file,
    write_atomically,
)
from ..dataset.captions import LARGEST_CAPTION_FILE_BYTES
from .digests import DIGEST_BYTES, digest_of_bytes, digest_of_file

BATCH = 256  # texts that are flushed together
THREADS = 8  # for waiting on the disk and for hashing, which leave the other threads running
LONGEST_STEM_BYTES = 160  # a file name has at most 255 bytes, and the digest is added to it
DIGEST_DIGITS = 2 * DIGEST_BYTES

Content = bytes | str | None
"""What a file holds: the bytes of a small text, the name of a picture in the trash folder, or None
for no file."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A file, by its path in the data set, and what it holds before and after.

    A picture's content is the name that it has in the trash folder while it is not in its place
    (`FileChanger.trash_name_of`, `FileChanger.stage`). Changes with the same `bundle` are undone
    together or not at all.
    """

    path: str
    before: Content
    after: Content
    bundle: str | None = None

    @property
    def moves_picture(self) -> bool:
        return isinstance(self.before, str) or isinstance(self.after, str)

    def reversed(self) -> "Change":
        return dataclasses.replace(self, before=self.after, after=self.before)


class FileChanger:
    """Carries out changes of the files in `folder`; pictures that go away lie in `trash`."""

    def __init__(self, folder: Path, trash: Path) -> None:
        self.folder = folder
        self.trash = trash

    def holds(self, path: str, content: Content) -> bool:
        """Tell whether a file holds what a change begins or ends with."""
        file = self.folder / path
        try:
            if isinstance(content, str):
                return file.is_file() and digest_of_file(file) == _digest_in(content)
            return _read_text(file) == content
        except OSError:
            return False

    def is_in_trash(self, content: Content) -> bool:
        return isinstance(content, str) and (self.trash / content).is_file()

    def trash_name_of(self, path: str) -> str:
        """Return the name that a picture will have in the trash folder; nothing is moved.

        Raises OSError.
        """
        return _trash_name(path, digest_of_file(self.folder / path))

    def trash_names_of(self, paths: Sequence[str]) -> dict[str, str]:
        """Return the names that pictures will have in the trash folder, by path."""
        with ThreadPoolExecutor(THREADS) as threads:
            return dict(zip(paths, threads.map(self.trash_name_of, paths), strict=True))

    def stage(self, path: str, data: bytes) -> str:
        """Put the new content of a picture into the trash folder, and return its name there.

        Raises OSError.
        """
        name = _trash_name(path, digest_of_bytes(data))
        self.trash.mkdir(exist_ok=True)
        write_atomically(self.trash / name, data)
        return name

    def delete_staged(self, names: Sequence[str]) -> None:
        for name in names:
            (self.trash / name).unlink(missing_ok=True)

    def apply(self, changes: Sequence[Change], *, overwrite: bool = False) -> list[str]:
        """Bring files from `before` to `after`, and flush them to the disk.

        Returns the paths of texts that were left alone because somebody changed them meanwhile.
        With `overwrite` these are copied to the trash folder and then replaced. Raises OSError.
        """
        texts = []
        for change in changes:
            if change.moves_picture:  # one by one: two pictures may swap their names
                self._move(change)
            else:
                texts.append(change)
        skipped = []
        for start in range(0, len(texts), BATCH):
            skipped += self._write_texts(texts[start : start + BATCH], overwrite=overwrite)
        flush_folders({(self.folder / change.path).parent for change in changes})
        return skipped

    def _write_texts(self, changes: list[Change], *, overwrite: bool) -> list[str]:
        files = {change.path: self.folder / change.path for change in changes}
        needed = [change for change in changes if _read_text(files[change.path]) != change.after]
        contents = {
            files[change.path]: change.after for change in needed if isinstance(change.after, bytes)
        }
        for folder in {file.parent for file in contents}:
            folder.mkdir(parents=True, exist_ok=True)

        def put_in_place(change: Change) -> bool:
            file = files[change.path]
            current = _read_text(file)  # read again: flushing takes a while
            if current not in (change.before, change.after):
                if not overwrite:
                    return False
                self.stage(change.path, current or b"")
            _replace_or_delete(file, temporaries.get(file))
            return True

        # in threads, because taking the old file off the disk may wait
        with flushed_temporaries(contents) as temporaries, ThreadPoolExecutor(THREADS) as threads:
            done = list(threads.map(put_in_place, needed))
        return [change.path for change, is_done in zip(needed, done, strict=True) if not is_done]

    def _move(self, change: Change) -> None:
        if self.holds(change.path, change.after):
            return
        incoming = change.after if isinstance(change.after, str) else None
        if incoming and not self.is_in_trash(incoming):
            return
        file = self.folder / change.path
        for folder in (self.trash, file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            kept = self.trash / self._trash_name_for(change)
            if incoming:  # another picture follows: there is a picture at any moment
                _copy_file(file, kept)
            else:
                _move_file(file, kept)
        if incoming:
            _move_file(self.trash / incoming, file)

    def _trash_name_for(self, change: Change) -> str:
        if isinstance(change.before, str) and self.holds(change.path, change.before):
            return change.before
        return self.trash_name_of(change.path)


def _read_text(file: Path) -> bytes | None:
    """Return the content of a caption file, or None when there is none. Raises OSError."""
    return read_small_file(file, most_bytes=LARGEST_CAPTION_FILE_BYTES)


def _trash_name(path: str, content_digest: str) -> str:
    """Return a readable name that contains the digest and that no other file has."""
    name = PurePosixPath(path)
    stem = os.fsencode(name.stem)[:LONGEST_STEM_BYTES].decode("utf-8", "ignore")
    return f"{stem}.{content_digest}{uuid.uuid4().hex[:8]}{name.suffix}"


def _digest_in(trash_name: str) -> str:
    return trash_name.rsplit(".", 2)[-2][:DIGEST_DIGITS]


def _replace_or_delete(file: Path, temporary: Path | None) -> None:
    if temporary is None:
        file.unlink(missing_ok=True)
    else:
        replace_file(temporary, file)


def _move_file(source: Path, target: Path) -> None:
    try:
        replace_file(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_file(source, target)
        source.unlink()


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file so that the target is complete or not there."""
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        shutil.copy2(source, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        replace_file(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
