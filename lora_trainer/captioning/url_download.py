"""Downloads from a plain address, as open_clip's releases have: to `<name>.part`, which a later
call continues, and which gets its name when it is whole and has the right checksum.
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..base.errors import Stopped
from ..base.fingerprint import fingerprint_of_file
from .contracts import ShouldStop

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30
# The size in bytes, None where the server does not say it, and the share that is here, 0 to 1.
ReportShare = Callable[[int | None, float], None]


class DownloadFailed(Exception):
    """A download that failed, with a reason for the user. `not_there`: the server has no such file
    for us, but it may have another.
    """

    def __init__(self, reason: str, *, not_there: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.not_there = not_there


def http_failure(status: int, phrase: str) -> DownloadFailed:
    """Return the failure of a request that the server answered with an error status."""
    return DownloadFailed(
        f"the server answered {status} {phrase}", not_there=status in (401, 403, 404)
    )


def download_url(url: str, target: Path, *, report: ReportShare, should_stop: ShouldStop) -> None:
    """Download a file; raises `DownloadFailed`, or `Stopped` when asked to stop."""
    try:
        _download(url, target, report, should_stop)
    except urllib.error.HTTPError as error:
        raise http_failure(error.code, error.reason) from error
    except (OSError, ValueError) as error:  # no network, a cut line, a full disk
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DownloadFailed(str(reason)) from error


def check_file(path: Path, *, size_bytes: int | None, checksum: str) -> None:
    """Raise OSError for a file that is not whole.

    One with another SHA-256 than `checksum`, or its beginning, is removed, so that the next try
    begins anew.
    """
    if size_bytes is not None and path.stat().st_size < size_bytes:
        raise OSError(f"{path.stat().st_size:,} of {size_bytes:,} bytes arrived")
    if checksum and not fingerprint_of_file(path).startswith(checksum):
        path.unlink()
        raise OSError("what arrived has another checksum than the server names")


def _download(url: str, target: Path, report: ReportShare, should_stop: ShouldStop) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    have_bytes = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "train-lora"}
    if have_bytes:
        headers["Range"] = f"bytes={have_bytes}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.build_opener().open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink()  # longer than the file: a part of another one
        return _download(url, target, report, should_stop)
    with response:
        have_bytes = have_bytes if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total_bytes = have_bytes + int(length) if length else None
        with open(part, "ab" if have_bytes else "wb") as file:
            _receive(response, file, total_bytes, report, should_stop)
    check_file(part, size_bytes=total_bytes, checksum=_checksum_in(url))
    os.replace(part, target)


def _receive(
    response: BinaryIO,
    file: BinaryIO,
    total_bytes: int | None,
    report: ReportShare,
    should_stop: ShouldStop,
) -> None:
    while True:
        report(total_bytes, file.tell() / total_bytes if total_bytes else 0.0)
        if should_stop():
            raise Stopped()
        chunk = response.read(CHUNK_BYTES)
        if not chunk:
            break
        file.write(chunk)
    file.flush()
    os.fsync(file.fileno())


def _checksum_in(url: str) -> str:
    """Return the beginning of a SHA-256 that a file's name ends with, as open_clip's releases have
    it, or "".
    """
    found = re.search(r"-([0-9a-f]{8})\.\w+$", url)
    return found[1] if found else ""
