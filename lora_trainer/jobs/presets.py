"""The package's presets and the user's own, as web/ offers them; taken from uploads and written as
files to share.
"""

from pathlib import Path
from typing import BinaryIO

from ..base.errors import ErrorCode, Refused
from ..interop.presets import OwnPresets, Preset, as_file, package_presets
from ..settings.setting import WrittenSettings
from .settings_import import SkippedSettingView, temporary_file, uploaded_name

LARGEST_BYTES = 100_000


class ImportedPreset(Preset):
    left_out: list[SkippedSettingView]


class Presets:
    def __init__(self, own: OwnPresets) -> None:
        self._own = own

    def all(self) -> list[Preset]:
        """Return the package's, then the user's: `{name, title, help, settings, own, problem}`."""
        return package_presets() + self._own.all()

    def save(
        self, name: str, settings: WrittenSettings, *, help: str = "", overwrite: bool = False
    ) -> Preset:
        """Keep settings, without places and names, under a name. Raises `Refused`; code
        "name_taken" unless `overwrite`.
        """
        return self._own.save(name, settings, help=help, overwrite=overwrite)

    def rename(self, name: str, to: str) -> Preset:
        return self._own.rename(name, to)

    def delete(self, name: str) -> None:
        self._own.delete(name)

    def export(self, name: str) -> tuple[str, str]:
        """Return the name of a preset's file and what is in it. Raises `Refused`."""
        presets = {preset["name"]: preset for preset in package_presets()}
        preset = presets.get(name) or self._own.get(name)
        if preset["problem"]:
            raise Refused(preset["problem"], field="name", code=ErrorCode.UNREADABLE_CONFIG)
        return f"{preset['title']}.yaml", as_file(preset)

    def take_upload(self, filename: str, file: BinaryIO) -> ImportedPreset:
        """Take over a preset that somebody shares. Raises `Refused`."""
        name = uploaded_name(filename, default="preset.yaml")
        if Path(name).suffix.lower() not in (".yaml", ".yml"):
            raise Refused(
                f"{name[:80]} is no preset: those are .yaml files.",
                field="file",
                code=ErrorCode.UNREADABLE_CONFIG,
            )
        if len(data := file.read(LARGEST_BYTES + 1)) > LARGEST_BYTES:
            raise Refused(
                f"{name[:80]} is larger than {LARGEST_BYTES // 1000} kB, so it is no preset.",
                field="file",
                code=ErrorCode.TOO_LARGE,
            )
        with temporary_file(data, "preset.yaml", shown_as=name) as path:
            preset, left_out = self._own.take(path, Path(name).stem)
        return {
            **preset,
            "left_out": [
                {"key": left.key, "value": left.value, "reason": left.reason} for left in left_out
            ],
        }
