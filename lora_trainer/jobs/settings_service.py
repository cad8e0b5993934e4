"""Settings as users and old jobs bring them, made into a TrainConfig that may be trained here:
names of data sets, paths, what may change on resuming.
"""

from collections.abc import Callable
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from ..base.paths import check_path_length, expand_user
from ..dataset.folders import folders_of
from ..editor.library import Library
from ..settings.config import TrainConfig, all_settings, in_our_names
from ..settings.setting import (
    OnResume,
    PathKind,
    Setting,
    SettingValue,
    SettingValues,
    WrittenSettings,
)


class SettingsReader:
    """Reads settings for one host: `check_path` raises `Refused` for a path that may not be
    used.
    """

    def __init__(
        self, host_kind: str, library: Library, check_path: Callable[[Path], None]
    ) -> None:
        self._host_kind = host_kind
        self._library = library
        self._check_path = check_path

    def parse(self, values: WrittenSettings) -> TrainConfig:
        """Read a config, turn a data set's name into its folder, and check every path in it. Raises
        `Refused`.
        """
        config = TrainConfig.parse(values)
        changes = {
            setting.name: self._place(setting, value)
            for setting in all_settings()
            if setting.path and (value := getattr(config, setting.name))
        }
        if config.base_model and self._host_kind == "webui":
            raise Refused(
                "In the WebUI the loaded checkpoint is trained. Choose it at the top left and leave"
                " Base model empty.",
                field="base_model",
                code=ErrorCode.BAD_VALUE,
            )
        config = config.replace(**changes)
        checked = {config.train_data_dir, config.reg_data_dir}
        for folder in set(folders_of(config)) - checked:
            self._checked_path("extra_data_dirs", folder)
        return config

    def changed(self, before: WrittenSettings, changes: WrittenSettings) -> TrainConfig:
        """Return a job's config with changes that a resumed run can take; raises `Refused` for any
        other.
        """
        after = {**before, **in_our_names(changes)}
        return self.parse({**before, **self.differences(before, after)})

    def differences(self, before: WrittenSettings, values: WrittenSettings) -> SettingValues:
        """Return the settings in which `values` differ from a job's; raises `Refused` for one that
        cannot change in the middle of a run.
        """
        old, new = self.parse(before).resolved(), self.parse(values).resolved()
        changed = [
            setting
            for setting in all_settings()
            if not _is_same(setting, old[setting.name], new[setting.name])
        ]
        for setting in changed:
            if setting.on_resume is not OnResume.FREE:
                was, now = old[setting.name], new[setting.name]
                raise Refused(
                    f"{setting.title} cannot change in the middle of a run: it was {was!r},"
                    f" and is to be {now!r}. Put it back, or train anew under another name.",
                    field=setting.name,
                    code=ErrorCode.BAD_VALUE,
                )
        return {setting.name: new[setting.name] for setting in changed}

    def _place(self, setting: Setting, value: str) -> str:
        """Return the path that a setting names, checked; raises `Refused`."""
        if setting.path is PathKind.DATASET:
            return str(self._library.resolve(value))
        return self._checked_path(setting.name, value, may_be_name=setting.path is PathKind.LORA)

    def _checked_path(self, field: str, value: str, *, may_be_name: bool = False) -> str:
        """Return a path that may be used; raises `Refused` naming the field. A bare name may be
        that of a LoRA in the LoRA folder, if so said, and is no path then.
        """
        path = expand_user(value)
        try:
            check_path_length(path)
            is_name = may_be_name and path.name == str(path) and not path.is_file()
            if not is_name:
                self._check_path(path)
        except Refused as error:
            raise Refused(error.message, field=field, code=error.code) from error
        return str(path)


def _is_same(setting: Setting, old: SettingValue, new: SettingValue) -> bool:
    """Compare two values; two spellings of a path, such as a relative and an absolute one, are the
    same place.
    """
    if old == new or not (setting.path and old and new):
        return bool(old == new)
    return Path(str(old)).resolve() == Path(str(new)).resolve()
