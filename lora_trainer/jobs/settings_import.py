"""Settings out of other trainers' files and out of LoRAs, as users bring them: read from bytes,
with limits, and never unpickled.
"""

import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from ..base.errors import Refused
from ..base.tensor_files import MOST_HEADER_BYTES
from ..interop.readers import import_settings

ENDINGS = (".toml", ".json", ".yaml", ".yml", ".safetensors")
LARGEST_SETTINGS_BYTES = 1_000_000


def read(path: Path, *, look_around: bool = False) -> dict[str, Any]:
    """Return `{settings, assumed, left_out: [{key, value, reason}], source}` of a file on disk;
    raises `Refused`.

    `assumed` names the settings that the file does not give, and its program would have had so.
    `look_around`: as `import_settings` takes it.
    """
    _check_ending(path.name)
    found = import_settings(path, look_around=look_around)
    return {
        "settings": found.settings,
        "source": found.source,
        "assumed": list(found.assumed),
        "left_out": [
            {"key": left.key, "value": left.value, "reason": left.reason} for left in found.left_out
        ],
    }


def read_upload(filename: str, file: BinaryIO) -> dict[str, Any]:
    """Do the same for a file that was uploaded. Of a LoRA only its header is read, so that only
    that need be sent.
    """
    name = Path(filename.replace("\\", "/")).name or "settings"
    suffix = _check_ending(name)
    data = _header(name, file) if suffix == ".safetensors" else _whole(name, file)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"settings{suffix}"
        path.write_bytes(data)
        try:
            return {**read(path), "filename": name}
        except Refused as error:
            raise Refused(
                error.message.replace(str(path), name).replace(path.name, name),
                field=error.field,
                code=error.code,
            ) from error


def _check_ending(name: str) -> str:
    suffix = Path(name).suffix.lower()
    if suffix not in ENDINGS:
        raise Refused(
            f"{name[:80]} is no settings file. Bring kohya's .toml or .json, OneTrainer's .json,"
            " lora-scripts' .yaml or .toml, or a LoRA as .safetensors.",
            field="file",
            code="unreadable_config",
        )
    return suffix


def _whole(name: str, file: BinaryIO) -> bytes:
    data = file.read(LARGEST_SETTINGS_BYTES + 1)
    if len(data) > LARGEST_SETTINGS_BYTES:
        raise Refused(
            f"{name[:80]} is larger than {LARGEST_SETTINGS_BYTES // 1_000_000} MB, so it is no"
            " settings file.",
            field="file",
            code="too_large",
        )
    return data


def _header(name: str, file: BinaryIO) -> bytes:
    """Return the first part of a .safetensors file: 8 bytes that tell the header's length, and the
    header, JSON.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > MOST_HEADER_BYTES or len(header := file.read(length)) < length:
        raise Refused(
            f"{name[:80]} is damaged, or no .safetensors file.",
            field="file",
            code="unreadable_config",
        )
    return start + header
