"""Weights from the network: looked for on this machine first, fetched with progress, stopped at any
time, never half.

A file that is fetched goes to `<data folder>/models/<owner>--<repository>/`, where a file put by
hand is found, too; Hugging Face's and open_clip's own caches are read as well. A transfer that
breaks off is continued the next time; only what has arrived whole, and has the checksum that the
server names, gets its name. Nothing here asks the network before `fetch`.
"""

import dataclasses
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.errors import Refused, Stopped
from ..base.fingerprint import fingerprint_of_file
from .contracts import READY, Asked, Readiness, Report

CHUNK_BYTES, TIMEOUT_SECONDS = 1 << 20, 30
OPEN_CLIP_CACHE = Path("~/.cache/clip")


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file of a Hugging Face repository, or behind a URL. Of several names the first that is
    there counts; the size may be unknown.
    """

    names: tuple[str, ...]
    repository: str = ""
    url: str = ""
    size_bytes: int | None = None

    @property
    def title(self) -> str:
        return self.repository or self.names[0]

    def folder(self, models: Path) -> Path:
        return models / self.repository.replace("/", "--") if self.repository else models

    def url_of(self, name: str) -> str:
        if self.url:
            return self.url
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repository, name)


def checked_repository(name: str) -> str:
    """Return a repository's name, which becomes a part of a path and of a URL; raises `Refused` for
    anything but `owner/repository`.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) or ".." in name:
        raise Refused(
            f"{name[:80]!r} is not of the form owner/repository: letters, digits, _, - and . on"
            " both sides of one slash.",
            field="model_name",
            code="bad_value",
        )
    return name


def find(file: RemoteFile, models: Path) -> Path | None:
    """Return the file if it is on this machine."""
    for name in file.names:
        places = [file.folder(models) / name] + (
            [OPEN_CLIP_CACHE.expanduser() / name] if file.url else []
        )
        found = next((place for place in places if place.is_file()), None) or _in_hub_cache(
            file.repository, name
        )
        if found:
            return found
    return None


def readiness_of(files: Sequence[RemoteFile], models: Path) -> Readiness:
    """Say what of these files has to be downloaded, and how much that is."""
    missing = [file for file in files if find(file, models) is None]
    if not missing:
        return READY
    sizes = [file.size_bytes for file in missing]
    total = sum(sizes) if all(size is not None for size in sizes) else None
    names = " and ".join(dict.fromkeys(file.title for file in missing))
    if any(forbidden(file) for file in missing):
        return Readiness(
            False,
            f"It needs {names} ({size_text(total)}), and downloads are switched off"
            f" (HF_HUB_OFFLINE). {by_hand(missing, models)}",
        )
    return Readiness(
        False,
        f"It needs {names}, a download of {size_text(total)}; starting fetches it first.",
        total,
        f"{names}, {size_text(total)}, to {missing[0].folder(models)}",
    )


def fetch(file: RemoteFile, models: Path, *, on_progress: Report, should_stop: Asked) -> Path:
    """Return the file, downloading it if it is not here. Raises `Refused` when that is impossible,
    `Stopped` when asked to stop.
    """
    found = find(file, models)
    if found:
        return found
    if forbidden(file):
        raise Refused(
            f"{file.title} is not on this machine, and downloads are switched off (HF_HUB_OFFLINE)."
            f" {by_hand([file], models)}",
            code="no_download",
        )
    reason = ""
    for name in file.names:
        try:
            return _download(
                file.url_of(name),
                file.folder(models) / name,
                on_progress=on_progress,
                should_stop=should_stop,
            )
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code} {error.reason}"
            if error.code not in (401, 403, 404):
                break
        except (OSError, ValueError) as error:  # no network, a cut line, a full disk
            reason = str(
                getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            )
            break
    raise Refused(
        f"{file.title} could not be downloaded: {reason}. Try again, and it goes on where it broke"
        f" off; or {_lower(by_hand([file], models))}",
        code="no_download",
    )


def by_hand(files: Sequence[RemoteFile], models: Path) -> str:
    """Say where files that cannot be downloaded here are looked for."""
    names = " and ".join(file.names[0] for file in files)
    return (
        f"Put {names} into {files[0].folder(models)} by hand, or give a model of yours by its path,"
        " where that can be chosen."
    )


def size_text(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "size unknown"
    return (
        f"{size_bytes / 1e9:.2f} GB"
        if size_bytes >= 1e9
        else f"{max(1, round(size_bytes / 1e6))} MB"
    )


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def forbidden(file: RemoteFile) -> bool:
    """Tell whether the user forbade asking the network for a file."""
    return bool(file.repository) and os.environ.get("HF_HUB_OFFLINE", "").upper() in (
        "1",
        "ON",
        "YES",
        "TRUE",
    )


def _in_hub_cache(repository: str, name: str) -> Path | None:
    if not repository:
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(repository, name)
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


class _LinkedHeaders(urllib.request.HTTPRedirectHandler):
    """Keeps what the hub says of a file before it sends us on to where the bytes are."""

    def __init__(self) -> None:
        self.checksum = ""

    def redirect_request(
        self, request: Any, file: Any, code: int, message: str, headers: Any, new_url: str
    ) -> Any:
        found = (headers.get("X-Linked-ETag") or "").strip('"')
        self.checksum = self.checksum or (found if re.fullmatch("[0-9a-f]{64}", found) else "")
        return super().redirect_request(request, file, code, message, headers, new_url)


def _download(url: str, target: Path, *, on_progress: Report, should_stop: Asked) -> Path:
    """Fetch a URL to a file by way of `<name>.part`, which a later call continues."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part, linked = target.with_name(target.name + ".part"), _LinkedHeaders()
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "train-lora", **({"Range": f"bytes={have}-"} if have else {})}
    )
    try:
        response = urllib.request.build_opener(linked).open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is longer than the file: not of this file
            raise
        part.unlink()
        return _download(url, target, on_progress=on_progress, should_stop=should_stop)
    with response:
        have = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        _receive(
            response,
            part,
            have,
            total,
            lambda share: on_progress(f"Downloading {target.name} ({size_text(total)})", share),
            should_stop,
        )
    _check(part, total, linked.checksum or _checksum_in(url))
    os.replace(part, target)
    return target


def _receive(
    response: Any, part: Path, have: int, total: int | None, report: Any, should_stop: Asked
) -> None:
    with open(part, "ab" if have else "wb") as file:
        while True:
            report(have / total if total else 0.0)
            if should_stop():
                raise Stopped()
            chunk = response.read(CHUNK_BYTES)
            if not chunk:
                break
            file.write(chunk)
            have += len(chunk)
        file.flush()
        os.fsync(file.fileno())


def _check(part: Path, total: int | None, checksum: str) -> None:
    """Raise OSError for a file that is not whole; one with the wrong content is removed, so that
    the next try begins anew.
    """
    if total is not None and part.stat().st_size < total:
        raise OSError(f"{part.stat().st_size:,} of {total:,} bytes arrived")
    if checksum and not fingerprint_of_file(part).startswith(checksum):
        part.unlink()
        raise OSError("what arrived has another checksum than the server names")


def _checksum_in(url: str) -> str:
    """Return the beginning of a SHA-256 that a file's name ends with, as open_clip's releases have
    it, or nothing.
    """
    found = re.search(r"-([0-9a-f]{8})\.\w+$", url)
    return found[1] if found else ""
