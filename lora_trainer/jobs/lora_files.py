"""LoRA files on disk: those of the LoRA folder, and those that a job made, each with its card and
preview, to be downloaded one by one or as a ZIP.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from ..base.errors import ErrorCode, Refused
from ..runs.output_files import session_id_of
from .job import JobView

PARTS = {".safetensors": "lora", ".json": "card", ".png": "preview"}
CLOCK_SECONDS = 1.0  # a job may be added this much after its run says that it began
CHUNK_BYTES = 1 << 20


class LoraEntry(TypedDict):
    name: str  # in prompts
    path: str
    size_bytes: int
    modified_at: float  # Unix seconds


class JobFile(TypedDict):
    name: str
    lora: str  # the LoRA's name in prompts
    part: str  # lora, card or preview
    size_bytes: int


def list_loras(lora_dir: Path) -> list[LoraEntry]:
    """Return every LoRA in the LoRA folder and its subfolders, newest first."""
    if not lora_dir.is_dir():
        return []
    files = [path for path in lora_dir.rglob("*.safetensors") if path.is_file()]
    return sorted(map(_describe_lora, files), key=lambda lora: -lora["modified_at"])


def files_of(job: JobView, lora_dir: Path) -> list[Path]:
    """Return the files of a job that still exist: the LoRA first, then its snapshots, newest first.

    A file that another run has replaced is left out: each says when its run began.
    """
    folder = Path(job["config"].get("output_dir") or lora_dir)
    loras = [Path(job["output_file"])] if job["output_file"] else []
    loras += [folder / f"{Path(stem).name}.safetensors" for stem in reversed(job["snapshots"])]
    own = [path for path in dict.fromkeys(loras) if _is_plain_file(path) and _is_of(job, path)]
    return [file for lora in own for file in _with_card_and_preview(lora)]


def describe_file(path: Path) -> JobFile:
    return {
        "name": path.name,
        "lora": path.stem,
        "part": PARTS[path.suffix],
        "size_bytes": path.stat().st_size,
    }


def find_file(files: list[Path], name: str) -> Path:
    """Return the file of exactly this name; raises `Refused` (code "not_found")."""
    found = next((path for path in files if path.name == name), None)
    if found is None:
        raise Refused(
            f"This job made no file {name[:80]!r} that is still there.",
            field="name",
            code=ErrorCode.NOT_FOUND,
        )
    return found


def zipped(files: list[Path]) -> Iterator[bytes]:
    """Yield a ZIP in pieces, without compression: weights do not shrink."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            with (
                open(path, "rb") as source,
                archive.open(_zip_entry(path), "w", force_zip64=True) as target,
            ):
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
                    yield pipe.take()
    yield pipe.take()


def _zip_entry(path: Path) -> zipfile.ZipInfo:
    # not strict: a ZIP has no time before 1980
    return zipfile.ZipInfo.from_file(path, path.name, strict_timestamps=False)


class _Pipe:
    """A file for `zipfile` to write that cannot seek."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts = []
        return data


def _describe_lora(path: Path) -> LoraEntry:
    return {
        "name": path.stem,
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "modified_at": path.stat().st_mtime,
    }


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_of(job: JobView, lora: Path) -> bool:
    session_id = session_id_of(lora)
    ended = job["ended_at"] if job["ended_at"] is not None else float("inf")
    return session_id is not None and job["created_at"] - CLOCK_SECONDS <= session_id <= ended


def _with_card_and_preview(lora: Path) -> list[Path]:
    return [path for path in (lora.with_suffix(suffix) for suffix in PARTS) if _is_plain_file(path)]
