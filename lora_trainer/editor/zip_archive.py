"""Reads ZIP files of strangers, without trust in the names and sizes that they state.

Only this module opens an archive. What it reads is bounded while it is read, whatever the headers
say. Where a file goes is decided by `uploads`.
"""

import dataclasses
import itertools
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from ..base.errors import ErrorCode, Refused
from ..base.text import guess_encoding

LARGEST_ARCHIVE_BYTES = 1_000_000_000
LARGEST_TOTAL_BYTES = 4_000_000_000  # of all files, unpacked
MOST_ENTRIES = 20_000
MOST_RATIO = 100  # of unpacked to packed bytes, beyond the free ones
FREE_OF_RATIO_BYTES = 100_000_000
LONGEST_READ_BYTES = 2_500_000  # of the directory, 20,000 files of 70 letters, read at once
PIECE_BYTES = 1 << 18
SAMPLE_BYTES = 4096  # of names, to guess their encoding
UTF8_FLAG = 0x800  # APPNOTE 4.4.4
ENCRYPTED_FLAG = 0x1  # APPNOTE 4.4.4
UNICODE_PATH = 0x7075  # the extra field of APPNOTE 4.6.9
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
    OSError,
)


@dataclasses.dataclass(frozen=True)
class ZipEntry:
    """A file in an archive: its path as it is written there, and what zipfile knows of it."""

    path: str
    info: zipfile.ZipInfo = dataclasses.field(repr=False)


class ZipArchive:
    """An open ZIP. `entries` are its files, folders left out.

    Raises `Refused` for what is none, is damaged or too large.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._read_bytes = 0
        size = file.seek(0, 2)
        if size > LARGEST_ARCHIVE_BYTES:
            raise Refused(
                f"{name} is larger than {LARGEST_ARCHIVE_BYTES / 1e9:g} GB. Send it in parts.",
                code=ErrorCode.TOO_LARGE,
            )
        self._allowed_bytes = min(LARGEST_TOTAL_BYTES, MOST_RATIO * size + FREE_OF_RATIO_BYTES)
        try:
            self._zip = zipfile.ZipFile(_ShortReads(file))
        except DAMAGED as error:
            raise Refused(
                f"{name} is no ZIP file, or it is damaged or too large: {_message_of(error)}. "
                "Pack it again, or in parts.",
                code=ErrorCode.BAD_ARCHIVE,
            ) from error
        found = [
            info for info in self._zip.infolist() if not info.orig_filename.endswith(("/", "\\"))
        ]
        if len(found) > MOST_ENTRIES:
            raise Refused(
                f"{name} holds {len(found):,} files; at most {MOST_ENTRIES:,}. Send it in parts.",
                code=ErrorCode.TOO_LARGE,
            )
        self.entries = [
            ZipEntry(path, info) for path, info in zip(_paths(found), found, strict=True)
        ]

    def read(self, entry: ZipEntry, most_bytes: int) -> bytes:
        """Return a file's content, of at most so many bytes.

        Raises `Refused` for a link, an encrypted or a damaged file, and with code "archive_limit"
        when the archive holds more, all together, than is read of any.
        """
        _check_kind(entry.info)
        pieces = []
        size = 0
        try:
            with self._zip.open(entry.info) as file:
                while piece := file.read(PIECE_BYTES):
                    size += len(piece)
                    self._read_bytes += len(piece)
                    if size > most_bytes:
                        raise Refused(
                            f"It is larger than {most_bytes / 1e6:g} MB.", code=ErrorCode.TOO_LARGE
                        )
                    self._check_total()
                    pieces.append(piece)
        except DAMAGED as error:
            raise Refused(
                f"It is damaged in the archive: {_message_of(error)}.", code=ErrorCode.DAMAGED
            ) from error
        return b"".join(pieces)

    def _check_total(self) -> None:
        if self._read_bytes > self._allowed_bytes:
            raise Refused(
                f"{self.name} holds more than {self._allowed_bytes / 1e6:,.0f} MB once it is"
                " unpacked.",
                code=ErrorCode.ARCHIVE_LIMIT,
            )


class _ShortReads:
    """A file that is never read in large pieces: zipfile would read any directory at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell = file.tell
        self.close = file.close

    def read(self, size: int = -1) -> bytes:
        if size > LONGEST_READ_BYTES:
            raise zipfile.BadZipFile("its list of files is too long")
        return self._file.read(LONGEST_READ_BYTES if size < 0 else size)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._file.seek(offset, whence)
        return self._file.tell()

    def seekable(self) -> bool:  # the uploads of Python 3.10 lack it
        return True


def _check_kind(info: zipfile.ZipInfo) -> None:
    """Raise `Refused` for anything but an ordinary file, packed in an ordinary way."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise Refused("It is a link, not a file.", code=ErrorCode.NOT_A_FILE)
    if kind not in (0, stat.S_IFREG):
        raise Refused("It is a device or a folder, not a file.", code=ErrorCode.NOT_A_FILE)
    if info.flag_bits & ENCRYPTED_FLAG:
        raise Refused(
            "It is encrypted. Pack it again without a password.", code=ErrorCode.ENCRYPTED
        )
    if info.compress_type not in METHODS:
        raise Refused(
            "It is packed in a way that is not read here. Pack it again as an ordinary ZIP.",
            code=ErrorCode.BAD_ARCHIVE,
        )


# --- Names ----------------------------------------------------------------------------------------


def _paths(found: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Read the entries' paths: in UTF-8 where they say so, the others in what fits them together.

    Chinese and Japanese Windows pack names in their own encodings and say nothing; zipfile reads
    these as cp437.
    """
    raw_names = [info.orig_filename.encode("cp437", "replace") for info in found]
    has_utf8 = [bool(info.flag_bits & UTF8_FLAG) for info in found]
    of_unknown_encoding = [
        raw
        for raw, is_utf8 in zip(raw_names, has_utf8, strict=True)
        if not is_utf8 and not raw.isascii()
    ]
    encoding = guess_encoding(_sample(of_unknown_encoding))
    paths = []
    for info, raw, is_utf8 in zip(found, raw_names, has_utf8, strict=True):
        if is_utf8:
            paths.append(info.orig_filename)
        else:
            paths.append(_unicode_path(info, raw) or raw.decode(encoding, "replace"))
    return paths


def _sample(names: Sequence[bytes]) -> bytes:
    """Return the first names, whole, of at most `SAMPLE_BYTES`."""
    sizes = itertools.accumulate(len(name) + 1 for name in names)
    return b"\n".join(name for name, size in zip(names, sizes, strict=True) if size <= SAMPLE_BYTES)


def _unicode_path(info: zipfile.ZipInfo, raw: bytes) -> str:
    """Return the path of Info-ZIP's Unicode field if it belongs to this name; else ""."""
    for kind, data in _extra_fields(info.extra):
        if kind == UNICODE_PATH and len(data) > 5:
            version_and_checksum = struct.unpack_from("<BL", data)
            if version_and_checksum == (1, zlib.crc32(raw)):
                return data[5:].decode("utf-8", "replace")
    return ""


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        yield kind, extra[at + 4 : at + 4 + size]
        at += 4 + size


def _message_of(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)) or type(error).__name__
    return text[:120].rstrip(".")
