"""Settings from other trainers' files and from LoRAs: read from uploads with limits, never
unpickled, and fitted to this host.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypedDict

from ..base.contracts import Host
from ..base.errors import ErrorCode, Refused
from ..base.paths import PathRules
from ..base.tensor_files import MOST_HEADER_BYTES
from ..interop.readers import import_settings
from ..settings.setting import SettingValues
from .lora_files import list_loras

ENDINGS = (".toml", ".json", ".yaml", ".yml", ".safetensors")
LARGEST_SETTINGS_BYTES = 1_000_000


class SkippedSettingView(TypedDict):
    key: str
    value: object  # as the source has it
    reason: str


class ImportedSettings(TypedDict):
    """`assumed` names the settings that the file does not give, and its program would have had
    so.
    """

    settings: SettingValues
    source: str  # the trainer that wrote the file
    assumed: list[str]
    left_out: list[SkippedSettingView]


class ImportedFile(ImportedSettings):
    filename: str


class SettingsImport:
    """Reads settings for one host."""

    def __init__(self, host: Host, path_rules: PathRules) -> None:
        self._host = host
        self._path_rules = path_rules

    def upload(self, filename: str, file: BinaryIO) -> ImportedFile:
        """Read settings from an uploaded file. Raises `Refused`."""
        return self._for_host(read_upload(filename, file))

    def from_lora(self, name: str) -> ImportedFile:
        """Read the settings of a LoRA in the LoRA folder, by its name. Raises `Refused`."""
        loras = list_loras(self._host.lora_dir)
        paths = [Path(lora["path"]) for lora in loras if lora["name"] == name]
        if not paths:
            raise Refused(
                f"There is no LoRA {name[:80]!r} in {self._host.lora_dir}.",
                field="lora",
                code=ErrorCode.NOT_FOUND,
            )
        self._path_rules.check(paths[0])
        return self._for_host({**read(paths[0]), "filename": paths[0].name})

    def _for_host(self, imported: ImportedFile) -> ImportedFile:
        """Leave the base model out in the WebUI, where the loaded checkpoint is trained."""
        settings = dict(imported["settings"])
        base_model = str(settings.pop("base_model", ""))
        if self._host.kind != "webui" or not base_model:
            return imported
        name = Path(base_model.replace("\\", "/")).name
        reason = (
            f"the checkpoint that is loaded is trained: load {name} at the top left, or one of its"
            " kind"
        )
        left_out: SkippedSettingView = {"key": "base_model", "value": base_model, "reason": reason}
        return {
            **imported,
            "settings": settings,
            "left_out": [*imported["left_out"], left_out],
        }


def read(path: Path, *, look_around: bool = False) -> ImportedSettings:
    """Read settings from a file on disk; `look_around` as `import_settings` takes it. Raises
    `Refused`.
    """
    _check_ending(path.name)
    found = import_settings(path, look_around=look_around)
    return {
        "settings": dict(found.settings),
        "source": found.source,
        "assumed": list(found.assumed),
        "left_out": [
            {"key": left.key, "value": left.value, "reason": left.reason} for left in found.left_out
        ],
    }


def read_upload(filename: str, file: BinaryIO) -> ImportedFile:
    """Do the same for an upload; of a LoRA only the header need be sent. Raises `Refused`."""
    name = uploaded_name(filename, default="settings")
    suffix = _check_ending(name)
    data = _read_header(name, file) if suffix == ".safetensors" else _read_whole(name, file)
    with temporary_file(data, f"settings{suffix}", shown_as=name) as path:
        return {**read(path), "filename": name}


def uploaded_name(filename: str, *, default: str) -> str:
    """Return the name that an upload has, without the folders that some browsers send with it."""
    return Path(filename.replace("\\", "/")).name or default


@contextlib.contextmanager
def temporary_file(data: bytes, temporary_name: str, *, shown_as: str) -> Iterator[Path]:
    """Yield the path of a temporary file with an upload's content.

    A `Refused` that is raised meanwhile names the upload, `shown_as`, in place of that file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / temporary_name
        path.write_bytes(data)
        try:
            yield path
        except Refused as error:
            message = error.message.replace(str(path), shown_as).replace(path.name, shown_as)
            raise Refused(message, field=error.field, code=error.code) from error


def _check_ending(name: str) -> str:
    suffix = Path(name).suffix.lower()
    if suffix not in ENDINGS:
        raise Refused(
            f"{name[:80]} is no settings file. Bring kohya's .toml or .json, OneTrainer's .json,"
            " lora-scripts' .yaml or .toml, or a LoRA as .safetensors.",
            field="file",
            code=ErrorCode.UNREADABLE_CONFIG,
        )
    return suffix


def _read_whole(name: str, file: BinaryIO) -> bytes:
    data = file.read(LARGEST_SETTINGS_BYTES + 1)
    if len(data) > LARGEST_SETTINGS_BYTES:
        raise Refused(
            f"{name[:80]} is larger than {LARGEST_SETTINGS_BYTES // 1_000_000} MB, so it is no"
            " settings file.",
            field="file",
            code=ErrorCode.TOO_LARGE,
        )
    return data


def _read_header(name: str, file: BinaryIO) -> bytes:
    """Return the head of a .safetensors file: the header's length in 8 bytes, and the header,
    JSON.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > MOST_HEADER_BYTES or len(header := file.read(length)) < length:
        raise Refused(
            f"{name[:80]} is damaged, or no .safetensors file.",
            field="file",
            code=ErrorCode.UNREADABLE_CONFIG,
        )
    return start + header
