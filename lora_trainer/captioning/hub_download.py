"""Downloads from the Hugging Face Hub by huggingface_hub's own functions (etag, resume, mirrors,
tokens), in a process of its own: no version can be stopped while it waits for the server, and 0.x
tells no progress.

The file grows in `<folder>/.download/`, where a later call continues it; it gets its name in
`<folder>` when it is whole and has the checksum that the hub names.
"""

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, TypedDict

from ..base.errors import Stopped
from .contracts import ShouldStop
from .url_download import DownloadFailed, ReportShare, check_file, http_failure

POLL_SECONDS = 0.1
PROGRAM = Path(__file__).with_name("hub_process.py")
STAGING = ".download"
# What the user has set goes first.
ENVIRONMENT = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "30"}


class Message(TypedDict, total=False):
    """What `hub_process` says: size and etag first, then the file's path or an error."""

    size_bytes: int | None
    etag: str | None
    path: str
    error: str
    status: int | None  # of the server's response, where the error has one
    phrase: str | None


Messages = queue.SimpleQueue[Message | None]


def download_from_hub(
    repository: str, name: str, target: Path, *, report: ReportShare, should_stop: ShouldStop
) -> None:
    """Download a repository's file to `target`; raises `DownloadFailed`, or `Stopped` when asked to
    stop.
    """
    staging = target.parent / STAGING
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with _download_process(repository, name, staging) as messages:
            path, size_bytes, etag = _wait(messages, staging, report, should_stop)
        checksum = etag if re.fullmatch("[0-9a-f]{64}", etag) else ""
        check_file(path, size_bytes=size_bytes, checksum=checksum)
        os.replace(path, target)
    except OSError as error:
        raise DownloadFailed(error.strerror or str(error)) from error
    with contextlib.suppress(OSError):  # what versions before this one began
        target.with_name(target.name + ".part").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another file has begun there
        staging.rmdir()


@contextlib.contextmanager
def _download_process(repository: str, name: str, staging: Path) -> Iterator[Messages]:
    """Run `hub_process`, and yield its messages, None after the last; kill it at the end."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), repository, name, str(staging)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**ENVIRONMENT, **os.environ},
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdin is not None and process.stdout is not None
    messages: Messages = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process.stdout, messages), daemon=True)
    reader.start()
    try:
        yield messages
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdin.close()
        process.stdout.close()


def _read(output: TextIO, messages: Messages) -> None:
    for line in output:
        with contextlib.suppress(ValueError):
            messages.put(json.loads(line))
    messages.put(None)


def _wait(
    messages: Messages, staging: Path, report: ReportShare, should_stop: ShouldStop
) -> tuple[Path, int | None, str]:
    """Report progress until the file is there; return its path, its size, and its etag."""
    size_bytes: int | None = None
    etag: str | None = None
    while True:
        if should_stop():
            raise Stopped()
        try:
            message = messages.get(timeout=POLL_SECONDS)
        except queue.Empty:
            message = {}
        if message is None:
            raise DownloadFailed("the download ended without a result")
        if "error" in message:
            raise _failure(message)
        if "path" in message:
            report(size_bytes, 1.0)
            return Path(message["path"]), size_bytes, etag or ""
        if "etag" in message:
            size_bytes, etag = message["size_bytes"], message["etag"] or ""
        if etag is not None:
            have_bytes = _received_bytes(staging)
            report(size_bytes, min(1.0, have_bytes / size_bytes) if size_bytes else 0.0)


def _failure(message: Message) -> DownloadFailed:
    if status := message.get("status"):
        return http_failure(status, message.get("phrase") or "")
    return DownloadFailed(message["error"])


def _received_bytes(staging: Path) -> int:
    """Return the size of the file that huggingface_hub is writing."""
    sizes = [0]
    for file in staging.glob("*.incomplete"):
        with contextlib.suppress(OSError):  # just renamed
            sizes.append(file.stat().st_size)
    return max(sizes)
