"""Checkpoints on disk: which ones there are where one was looked for in vain."""

import difflib
from collections.abc import Iterator
from pathlib import Path

USUAL_PLACES = (
    "models/Stable-diffusion",
    "models/checkpoints",
    "models",
    "checkpoints",
    "sd-models",
    "stable-diffusion-webui/models/Stable-diffusion",
)
MOST_LISTED, MOST_LOOKED_AT = 8, 5000


def nearby_checkpoints(path: Path) -> list[Path]:
    """List the .safetensors files in a missing checkpoint's folder, in its parents as far as `path`
    names them, and in the usual places; those whose names are most like its own first.
    """
    found: dict[Path, Path] = {}
    for folder in _places(path):
        for file in _files(folder):
            found.setdefault(file.resolve(), file)
    alike = {
        file: difflib.SequenceMatcher(None, file.stem.lower(), path.stem.lower()[:200]).ratio()
        for file in found.values()
    }
    return sorted(alike, key=lambda file: (-alike[file], str(file)))


def say_which_are_there(path: Path) -> str:
    """Return a sentence that lists the checkpoints near a missing one; "" when there is none."""
    found = nearby_checkpoints(path)
    more = f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
    return f"There are: {', '.join(map(str, found[:MOST_LISTED]))}{more}." if found else ""


def _places(path: Path) -> Iterator[Path]:
    parents = list(path.parents)
    yield from parents[:1]
    yield from (parent for parent in parents[1:3] if parent.name)
    roots = [Path("."), *(parent for parent in parents[1:4] if parent.is_absolute())]
    yield from (root / place for root in roots for place in USUAL_PLACES)


def _files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder itself; nothing for one that is not there or may not be
    read.
    """
    try:
        entries = [entry for _, entry in zip(range(MOST_LOOKED_AT), folder.iterdir(), strict=False)]
        return [
            entry for entry in entries if entry.suffix.lower() == ".safetensors" and entry.is_file()
        ]
    except OSError:
        return []
