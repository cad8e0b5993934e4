"""Settings as users and old jobs bring them, made into a TrainConfig that may be trained here:
names of data sets, paths, what may change on resuming.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..base.errors import Refused
from ..base.paths import check_path_length, expand_user
from ..dataset.selection import folders_of
from ..editor.library import Library
from ..runs.resume import FREE
from ..settings.config import TrainConfig, in_our_names

_PATHS = ("metadata_path", "output_dir", "base_model", "logging_dir", "init_lora", "reg_data_dir")


class Settings:
    """Reads settings for one host: `check_path` raises `Refused` for a path that may not be
    used.
    """

    def __init__(
        self, host_kind: str, library: Library, check_path: Callable[[Path], None]
    ) -> None:
        self._host_kind, self._library, self._check_path = host_kind, library, check_path

    def parse(self, values: Mapping[str, Any]) -> TrainConfig:
        """Read a config, turn a data set's name into its folder, and check every path in it. Raises
        `Refused`.
        """
        config = TrainConfig.parse(values)
        changes = {
            name: self._path(name, value) for name in _PATHS if (value := getattr(config, name))
        }
        if config.train_data_dir:
            changes["train_data_dir"] = str(self._library.resolve(config.train_data_dir))
        if config.base_model and self._host_kind == "webui":
            raise Refused(
                "In the WebUI the loaded checkpoint is trained. Choose it at the top left and leave"
                " Base model empty.",
                field="base_model",
                code="bad_value",
            )
        config = config.replace(**changes)
        for folder in set(folders_of(config)) - {
            config.train_data_dir,
            config.reg_data_dir,
        }:  # these two are checked already
            self._path("extra_data_dirs", folder)
        return config

    def changed(self, before: Mapping[str, Any], changes: Mapping[str, Any]) -> TrainConfig:
        """Return a job's config with changes that a run which goes on can take; raises `Refused`
        for any other.
        """
        return self.parse(
            {**before, **self.differences(before, {**before, **in_our_names(changes)})}
        )

    def differences(self, before: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings in which `values` differ from a job's; raises `Refused` for one that
        cannot change in the middle of a run.
        """
        old, new = self.parse(before).meant(), self.parse(values).meant()
        names = [
            name
            for name in new
            if old[name] != new[name] and not _same_path(name, old[name], new[name])
        ]
        for name in names:
            if name not in FREE:
                raise Refused(
                    f"{_title(name)} cannot change in the middle of a run: it was {old[name]!r},"
                    f" and is to be {new[name]!r}. Put it back, or train anew under another name.",
                    field=name,
                    code="bad_value",
                )
        return {name: new[name] for name in names}

    def _path(self, name: str, value: str) -> str:
        path = str(expand_user(value))
        try:
            check_path_length(Path(path))
            if (
                name == "init_lora" and Path(path).name == path and not Path(path).is_file()
            ):  # the name of a LoRA in the LoRA folder
                return path
            self._check_path(Path(path))
        except Refused as error:
            raise Refused(error.message, field=name, code=error.code) from error
        return path


def _same_path(name: str, old: str, new: str) -> bool:
    """Tell whether two spellings, such as a relative and an absolute one, are the same place."""
    return (
        name in (*_PATHS, "train_data_dir")
        and bool(old and new)
        and Path(old).resolve() == Path(new).resolve()
    )


def _title(name: str) -> str:
    return TrainConfig.__dataclass_fields__[name].metadata["title"]
