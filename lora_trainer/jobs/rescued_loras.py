"""LoRAs that lie only in a job's folder, such as the one that a crashed run was replacing, are
moved to the LoRA folder before the job is deleted.
"""

import contextlib
import itertools
import logging
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from ..base.files import write_atomically
from ..base.paths import numbered_paths
from ..runs.resume import state_folder

log = logging.getLogger(__name__)
ENDINGS = (".json", ".png", ".safetensors")  # the LoRA last: it says that all is there


def move_loras(folder: Path, lora_dir: Path) -> list[Path]:
    """Move the LoRAs of a job's folder, with card and preview, to the LoRA folder under a free
    name, and return where they are now.

    Raises `Refused` (code "cannot_save") when one cannot be moved; that one, and those after it,
    are still where they were.
    """
    states = state_folder(folder)
    loras = [
        path
        for path in sorted(folder.rglob("*.safetensors"))
        if path.is_file() and not path.is_relative_to(states)
    ]
    return [place for lora in loras if (place := _moved(lora, lora_dir))]


def _moved(lora: Path, lora_dir: Path) -> Path | None:
    try:
        return _move(lora, lora_dir)
    except OSError as error:
        raise Refused(
            f"The job keeps a LoRA, {lora}, which cannot be moved to {lora_dir}:"
            f" {error.strerror or error}. So nothing was deleted; free some space or move the file"
            " yourself, and delete the job then.",
            code=ErrorCode.CANNOT_SAVE,
        ) from error


def _move(lora: Path, lora_dir: Path) -> Path | None:
    """Move a LoRA; None when the LoRA folder has the very same one under this name already."""
    target = lora_dir / lora.name
    if target.is_file() and target.read_bytes() == lora.read_bytes():
        return None
    target = _free(target)
    pairs = [
        (lora.with_suffix(ending), target.with_suffix(ending))
        for ending in ENDINGS
        if lora.with_suffix(ending).is_file()
    ]
    lora_dir.mkdir(parents=True, exist_ok=True)
    _copy(pairs)
    for source, _ in reversed(pairs):
        source.unlink()
    log.info("moved %s to %s", lora, target)
    return target


def _copy(pairs: list[tuple[Path, Path]]) -> None:
    """Copy all files or none."""
    done = []
    try:
        for source, target in pairs:
            write_atomically(target, source.read_bytes(), check=True)
            done.append(target)
    except BaseException:
        for target in done:
            with contextlib.suppress(OSError):
                target.unlink()
        raise


def _is_taken(target: Path) -> bool:
    return any(target.with_suffix(ending).exists() for ending in ENDINGS)


def _free(target: Path) -> Path:
    """Return the path itself, or with the first number that neither a LoRA nor the card of one
    has.
    """
    return next(
        path for path in itertools.chain([target], numbered_paths(target)) if not _is_taken(path)
    )
