"""Writes the LoRA's file (safetensors in kohya's layout, with its hashes), the sidecar that the
WebUI's card reads, and the card's preview. `runs.lora_metadata` makes the other metadata.
"""

import errno
import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..base.errors import ErrorCode, Refused
from ..base.files import write_atomically
from ..base.text import decode
from .adapter_layers import DORA_SCALE

log = logging.getLogger(__name__)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SOFTWARE, NOTES = "Train LoRA", "Trained with Train LoRA"


def to_tensors(
    weights: Mapping[str, Mapping[str, torch.Tensor]],
    *,
    alphas: Mapping[str, float],
    export_name: Callable[[str], str],
    dtype: torch.dtype = torch.float16,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, named as kohya and LyCORIS do: `<name>.lora_down.weight`,
    `<name>.hada_w1_a` and so on, and the scalar `<name>.alpha`. `weights` and `alphas` are by path.

    DoRA's magnitudes stay float32: a rounded one would scale all that the model knows of an input,
    trained or not. Raises `Refused` (code "not_finite") for a weight that is not finite in `dtype`.
    """
    tensors = {}
    for path, parts in weights.items():
        name = export_name(path)
        for part, weight in parts.items():
            part_dtype = torch.float32 if part == DORA_SCALE else dtype
            tensors[f"{name}.{part}"] = weight.to(part_dtype).contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(alphas[path]))
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise Refused(
            f"The LoRA has {len(broken)} weights that are not finite numbers (first: {broken[0]}),"
            " so it is not saved. Lower the learning rate.",
            code=ErrorCode.NOT_FINITE,
        )
    return tensors


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a LoRA so that a reader sees the old file or the whole new one, once what was written
    reads back the same.

    Raises `Refused` (code "cannot_save") when the disk refuses or fails; the old file is then still
    there.
    """
    metadata = {**metadata, **_hashes(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, safetensors.torch.save(tensors, metadata), check=True)
    except OSError as error:
        disk_is_full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        advice = "Free some space" if disk_is_full else "Mend the folder"
        raise Refused(
            f"The LoRA cannot be saved to {path}: {error.strerror or error}. {advice} or choose"
            " another.",
            field="output_dir",
            code=ErrorCode.CANNOT_SAVE,
        ) from error


def save_card(
    path: Path,
    *,
    family: str,
    trigger_word: str,
    preferred_weight: float,
    notes: str,
    negative_text: str = "",
) -> None:
    """Write the sidecar `<stem>.json` of a LoRA, keeping the keys that other tools put there and
    notes that do not begin as ours.

    An empty `negative_text` leaves what the card has. A file that is no card is left as it is.
    Raises OSError.
    """
    sidecar = path.with_suffix(".json")
    known = _read_card(sidecar)
    if known is None:
        log.warning("%s is no card (a JSON object), so it stays as it is", sidecar.name)
        return
    if not str(known.get("notes") or NOTES).startswith(NOTES):  # the user's own
        notes = known["notes"]
    card = {
        **known,
        "sd version": CARD_FAMILIES[family],
        "activation text": trigger_word,
        "preferred weight": preferred_weight,
        "notes": notes,
    }
    if negative_text:
        card["negative text"] = negative_text
    write_atomically(sidecar, json.dumps(card, indent=4, ensure_ascii=False).encode("utf-8"))


def _read_card(sidecar: Path) -> dict[str, Any] | None:
    """Return what a card holds, {} where there is none; None for a file that is something else.

    Raises OSError.
    """
    if not sidecar.is_file():
        return {}
    data = sidecar.read_bytes()
    if not data.strip(b"\0 \t\r\n"):  # of a write that was broken off
        return {}
    try:
        known = json.loads(decode(data))
    except (ValueError, RecursionError):
        return None
    return known if isinstance(known, dict) else None


def save_preview(path: Path, image: Image.Image) -> bool:
    """Save a picture for a LoRA's card as `<stem>.png`, and return whether it was saved: one that
    was not drawn by us is the user's and stays.
    """
    target = path.with_suffix(".png")
    if target.exists() and not _drawn_by_us(target):
        return False
    note, buffer = PngInfo(), io.BytesIO()
    note.add_text("Software", SOFTWARE)
    image.save(buffer, "PNG", pnginfo=note)
    write_atomically(target, buffer.getvalue())
    return True


def remove_lora(path: Path) -> None:
    """Remove a LoRA that we saved, its card, and its preview if we drew that. Raises OSError; the
    LoRA goes last.
    """
    if _drawn_by_us(path.with_suffix(".png")):
        path.with_suffix(".png").unlink()
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _drawn_by_us(picture: Path) -> bool:
    try:
        with Image.open(picture) as image:
            return image.info.get("Software") == SOFTWARE
    except OSError:
        return False


def _hashes(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """The hashes that the WebUI would otherwise compute: SHA-256 of everything after the header,
    and the old short one.
    """
    data = safetensors.torch.save(tensors, {})
    header_bytes = int.from_bytes(data[:8], "little") + 8
    legacy = io.BytesIO(data)
    legacy.seek(0x100000)
    return {
        "sshs_model_hash": hashlib.sha256(data[header_bytes:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(legacy.read(0x10000)).hexdigest()[:8],
    }


CARD_FAMILIES = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}  # as the WebUI's cards call them
