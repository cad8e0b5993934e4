"""The files that a job made, for people to take with them: the LoRA and its snapshots, each with
its card and preview.
"""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..base.errors import Refused
from ..runs.output_files import session_id_of

PARTS = {".safetensors": "lora", ".json": "card", ".png": "preview"}
CLOCK_SECONDS, CHUNK_BYTES = 1.0, 1 << 20


def files_of(job: Mapping[str, Any], lora_dir: Path) -> list[Path]:
    """Return what a job made and what is still there, the LoRA first, then its snapshots, newest
    first. A file that another run has replaced is not its any more: each says when its run began.
    """
    main = Path(job["output_file"]) if job["output_file"] else None
    folder = Path(job["config"].get("output_dir") or lora_dir)
    snapshots = [folder / f"{Path(stem).name}.safetensors" for stem in reversed(job["snapshots"])]
    loras = [
        path
        for path in dict.fromkeys([*([main] if main else []), *snapshots])
        if _is_plain_file(path) and _is_of(job, path)
    ]
    return [file for lora in loras for file in _with_its_parts(lora)]


def describe_file(path: Path) -> dict[str, Any]:
    """Return a file as `{name, lora, part, size_bytes}`; `lora` is the name in prompts, `part` one
    of lora, card, preview.
    """
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
            code="not_found",
        )
    return found


def zipped(files: list[Path]) -> Iterator[bytes]:
    """Write a ZIP bit by bit, without compression: weights do not shrink."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            with (
                open(path, "rb") as source,
                archive.open(_entry(path), "w", force_zip64=True) as target,
            ):
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
                    yield pipe.taken()
    yield pipe.taken()


def _entry(path: Path) -> zipfile.ZipInfo:
    return zipfile.ZipInfo.from_file(
        path, path.name, strict_timestamps=False
    )  # a ZIP knows no time before 1980


class _Pipe:
    """What `zipfile` takes for a file that cannot be sought."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def taken(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_of(job: Mapping[str, Any], lora: Path) -> bool:
    session_id = session_id_of(lora)
    ended = job["ended_at"] if job["ended_at"] is not None else float("inf")
    return session_id is not None and job["created_at"] - CLOCK_SECONDS <= session_id <= ended


def _with_its_parts(lora: Path) -> list[Path]:
    return [path for path in (lora.with_suffix(suffix) for suffix in PARTS) if _is_plain_file(path)]
