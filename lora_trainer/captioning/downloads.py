"""Finds model files on this machine, says what would have to be downloaded, and downloads it.

A file goes to `<data folder>/models/<owner>--<repository>/`, where a file put by hand is found,
too; Hugging Face's and open_clip's own caches are read as well. A transfer that breaks off is
continued the next time; only what has arrived whole gets its name. Nothing here asks the network
before `fetch`.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from .contracts import READY, OnProgress, Readiness, ShouldStop
from .hub_download import download_from_hub
from .url_download import DownloadFailed, download_url

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


def checked_repository(name: str) -> str:
    """Return a repository's name, which becomes a part of a path and of a URL; raises `Refused` for
    anything but `owner/repository`.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) or ".." in name:
        raise Refused(
            f"{name[:80]!r} is not of the form owner/repository: letters, digits, _, - and . on"
            " both sides of one slash.",
            field="model_name",
            code=ErrorCode.BAD_VALUE,
        )
    return name


def find(file: RemoteFile, models: Path) -> Path | None:
    """Return the file if it is on this machine."""
    for name in file.names:
        places = [file.folder(models) / name]
        if file.url:
            places.append(OPEN_CLIP_CACHE.expanduser() / name)
        for place in places:
            if place.is_file():
                return place
        if cached := _in_hub_cache(file.repository, name):
            return cached
    return None


def readiness_of(files: Sequence[RemoteFile], models: Path) -> Readiness:
    """Say what of these files has to be downloaded, and how much that is."""
    missing = [file for file in files if find(file, models) is None]
    if not missing:
        return READY
    sizes = [file.size_bytes for file in missing]
    known_sizes = [size for size in sizes if size is not None]
    total = sum(known_sizes) if len(known_sizes) == len(sizes) else None
    names = " and ".join(dict.fromkeys(file.title for file in missing))
    if any(forbidden(file) for file in missing):
        return Readiness(
            False,
            f"It needs {names} ({download_size_text(total)}), and downloads are switched off"
            f" (HF_HUB_OFFLINE). {by_hand(missing, models)}",
        )
    return Readiness(
        False,
        f"It needs {names}, a download of {download_size_text(total)}; starting fetches it first.",
        total,
        f"{names}, {download_size_text(total)}, to {missing[0].folder(models)}",
    )


def fetch(
    file: RemoteFile, models: Path, *, on_progress: OnProgress, should_stop: ShouldStop
) -> Path:
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
            code=ErrorCode.NO_DOWNLOAD,
        )
    reason = ""
    for name in file.names:
        target = file.folder(models) / name
        try:
            _download(file, name, target, on_progress=on_progress, should_stop=should_stop)
            return target
        except DownloadFailed as error:
            reason = error.reason
            if not error.not_there:
                break
    raise Refused(
        f"{file.title} could not be downloaded: {reason}. Try again, and it goes on where it broke"
        f" off; or {_lower(by_hand([file], models))}",
        code=ErrorCode.NO_DOWNLOAD,
    )


def _download(
    file: RemoteFile, name: str, target: Path, *, on_progress: OnProgress, should_stop: ShouldStop
) -> None:
    def report(size_bytes: int | None, share: float) -> None:
        on_progress(f"Downloading {name} ({download_size_text(size_bytes)})", share)

    if file.url:
        download_url(file.url, target, report=report, should_stop=should_stop)
    else:
        download_from_hub(file.repository, name, target, report=report, should_stop=should_stop)


def by_hand(files: Sequence[RemoteFile], models: Path) -> str:
    """Say where files that cannot be downloaded here are looked for."""
    names = " and ".join(file.names[0] for file in files)
    return (
        f"Put {names} into {files[0].folder(models)} by hand, or give a model of yours by its path,"
        " where that can be chosen."
    )


def download_size_text(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "size unknown"
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.2f} GB"
    return f"{max(1, round(size_bytes / 1e6))} MB"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def forbidden(file: RemoteFile) -> bool:
    """Tell whether the user forbade asking the network for a file, with HF_HUB_OFFLINE."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return offline and bool(file.repository)


def _in_hub_cache(repository: str, name: str) -> Path | None:
    if not repository:
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(repository, name)
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None
