"""Presets: the package's, and the user's own as one YAML file each. A preset holds settings, never
places, names or pictures.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TypedDict

import yaml

from ..base.errors import ErrorCode, Refused
from ..base.files import write_atomically
from ..base.paths import numbered_paths
from ..base.text import is_plain_text
from ..settings.advice import STYLE_PICTURES, SUBJECT_PICTURES, in_words
from ..settings.aliases import read_resolutions
from ..settings.config import TrainConfig, all_settings, in_our_names
from ..settings.files import read_mapping
from ..settings.lora_name import why_not_a_name
from ..settings.setting import SettingValues, WrittenSettings
from .conversion import SkippedSetting
from .our_settings import our_settings

log = logging.getLogger(__name__)
MOST_PRESETS = 200
LONGEST_HELP = 500  # characters


class Preset(TypedDict, total=False):
    """A preset as interfaces get it."""

    name: str
    title: str
    help: str
    order: int  # of the package's presets only
    settings: SettingValues
    own: bool  # whether it is the user's, who may change it
    problem: str  # why it cannot be used, else ""


def package_presets() -> list[Preset]:
    """Return the package's presets in the order in which they should be shown."""
    folder = resources.files("lora_trainer").joinpath("presets")
    files = [item for item in folder.iterdir() if item.name.endswith(".yaml")]
    loaded = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]
    found = sorted(loaded, key=lambda preset: preset["order"])
    figures = {
        "subject_pictures": in_words(SUBJECT_PICTURES),
        "style_pictures": in_words(STYLE_PICTURES),
    }
    return [
        {**preset, "help": preset["help"].format(**figures), "own": False, "problem": ""}
        for preset in found
    ]


def presets_folder(data_dir: Path) -> Path:
    """Return where a user's own presets are, from the data folder."""
    return data_dir / "presets"


def find_preset(name: str, folder: Path) -> Preset:
    """Return a preset by its name or title, or out of a preset's file. Raises `Refused`."""
    known = [*package_presets(), *OwnPresets(folder).all()]
    for preset in known:
        if name.casefold() in (preset["name"].casefold(), preset["title"].casefold()):
            if preset["problem"]:
                raise Refused(preset["problem"], field="preset", code=ErrorCode.UNREADABLE_CONFIG)
            return preset
    if Path(name).suffix.lower() in (".yaml", ".yml") and Path(name).is_file():
        return _read(Path(name))[0]
    names = ", ".join(preset["name"] for preset in known)
    raise Refused(
        f"There is no preset {name[:80]!r}. There are {names}; the file of one can be given, too.",
        field="preset",
        code=ErrorCode.NOT_FOUND,
    )


class OwnPresets:
    """The presets of a folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[Preset]:
        """Return them by name; one whose file cannot be read has a `problem` and no settings."""
        files = sorted(self._folder.glob("*.yaml"), key=lambda path: path.stem.casefold())
        return [self._entry(path) for path in files[:MOST_PRESETS] if not path.name.startswith(".")]

    def get(self, name: str) -> Preset:
        """Return the preset of this name; raises `Refused` (code "not_found")."""
        return self._entry(self._path(name))

    def save(
        self, name: str, settings: WrittenSettings, *, help: str = "", overwrite: bool = False
    ) -> Preset:
        """Keep what differs from the defaults, and what the package's presets decide, under a name.
        Raises `Refused`.
        """
        path = self._folder / f"{_check_name(name)}.yaml"
        self._refuse_taken(name, but=name if overwrite else "")
        if len(help) > LONGEST_HELP or not is_plain_text(help):
            raise Refused(
                f"What a preset is for takes at most {LONGEST_HELP} characters of text.",
                field="help",
                code=ErrorCode.BAD_VALUE,
            )
        given = in_our_names(settings)
        said = {**given, **read_resolutions(given)}
        if not (kept := _worth_keeping(TrainConfig.parse(said).to_dict(), said=said)):
            raise Refused(
                "Nothing differs from the defaults, so there is nothing to keep as a preset.",
                field="settings",
                code=ErrorCode.BAD_VALUE,
            )
        self._write(path, help, kept)
        return self.get(name)

    def rename(self, name: str, to: str) -> Preset:
        """Give a preset another name; raises `Refused` (code "name_taken") when there is one."""
        path, target = self._path(name), self._folder / f"{_check_name(to)}.yaml"
        self._refuse_taken(to, but=name)
        with _refused_by_the_disk(target):
            path.rename(target)
        return self.get(to)

    def delete(self, name: str) -> None:
        """Remove a preset's file; raises `Refused`."""
        path = self._path(name)
        with _refused_by_the_disk(path):
            path.unlink()

    def take(self, file: Path, name: str) -> tuple[Preset, list[SkippedSetting]]:
        """Take over another's preset under this name, or with a number behind it; returns it with
        what could not be taken over.
        """
        found, left_out = _read(file)
        free = _check_name(name)
        if self._is_taken(free):
            names = (path.name for path in numbered_paths(Path(free)))
            free = next(each for each in names if not self._is_taken(each))
        return self.save(free, found["settings"], help=found["help"]), left_out

    def _entry(self, path: Path) -> Preset:
        entry = Preset(name=path.stem, title=path.stem, help="", settings={}, own=True, problem="")
        try:
            found, left_out = _read(path)
        except Refused as error:
            return {**entry, "problem": error.message}
        if left_out:
            log.info("%s: %s", path, "; ".join(f"{left.key} ({left.reason})" for left in left_out))
        return {**entry, **found}

    def _path(self, name: str) -> Path:
        path = self._folder / f"{_check_name(name)}.yaml"
        if not path.is_file():
            raise Refused(
                f"There is no preset of yours called {name!r}.",
                field="name",
                code=ErrorCode.NOT_FOUND,
            )
        return path

    def _is_taken(self, name: str, *, but: str = "") -> bool:
        """Tell whether a preset has this name, in whatever case; `but` is one of the user's that
        does not count.
        """
        own = {path.stem.casefold() for path in self._folder.glob("*.yaml") if path.stem != but}
        return _is_packaged(name) or name.casefold() in own

    def _refuse_taken(self, name: str, *, but: str = "") -> None:
        if self._is_taken(name, but=but):
            way = "Replace it, or choose another name"
            if _is_packaged(name):
                way = "Choose another name"
            raise Refused(
                f"There is a preset called {name} already. {way}.",
                field="name",
                code=ErrorCode.NAME_TAKEN,
            )

    def _write(self, path: Path, help: str, settings: WrittenSettings) -> None:
        if not path.exists() and len(list(self._folder.glob("*.yaml"))) >= MOST_PRESETS:
            raise Refused(
                f"There are {MOST_PRESETS} presets of yours already. Delete some.",
                field="name",
                code=ErrorCode.BAD_VALUE,
            )
        with _refused_by_the_disk(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            text = as_file(Preset(title=path.stem, help=help, settings=dict(settings)))
            write_atomically(path, text.encode("utf-8"))


def as_file(preset: Preset) -> str:
    """Return a preset as the text of a file that can be shared."""
    shared = {
        "title": preset["title"],
        "help": preset["help"],
        "settings": preset["settings"],
    }
    return yaml.safe_dump(shared, allow_unicode=True, sort_keys=False)


def _read(path: Path) -> tuple[Preset, list[SkippedSetting]]:
    """Read the help and those settings of a preset's file that are valid and belong there; the
    others are listed. Raises `Refused`.
    """
    values = read_mapping(path)
    if not isinstance(values.get("settings"), Mapping):
        raise Refused(
            f"{path.name} is no preset: it holds no `settings`. Settings of a run are taken over"
            " with Import settings.",
            field="file",
            code=ErrorCode.UNREADABLE_CONFIG,
        )
    settings, left_out = our_settings(values["settings"])
    kept = {name: value for name, value in settings.items() if belongs(name)}
    refused = [
        SkippedSetting(name, value, "a preset holds no names and no places")
        for name, value in settings.items()
        if name not in kept
    ]
    help = values.get("help")
    if not isinstance(help, str) or not is_plain_text(help):
        help = ""
    return Preset(help=help[:LONGEST_HELP], settings=kept), [*left_out, *refused]


def belongs(name: str) -> bool:
    """Return whether a preset may hold this setting: not names, pictures, places or LoRAs."""
    return any(setting.name == name and setting.kept_in_presets for setting in all_settings())


def _worth_keeping(values: SettingValues, *, said: WrittenSettings) -> SettingValues:
    """Return the settings that a preset keeps, of those that were `said`: what differs from the
    defaults, what the package's presets decide, and the resolution, which follows the model.
    """
    decided = {"resolution"} | {name for preset in package_presets() for name in preset["settings"]}
    kept = [setting for setting in all_settings() if setting.kept_in_presets]
    return {
        setting.name: values[setting.name]
        for setting in kept
        if setting.name in said
        and (setting.name in decided or values[setting.name] != setting.default)
    }


def _is_packaged(name: str) -> bool:
    """Tell whether a preset of the package is called so."""
    return any(
        name.casefold() in (preset["name"], preset["title"].casefold())
        for preset in package_presets()
    )


def _check_name(name: str) -> str:
    """Return a preset's name, which has to be possible as a LoRA's; raises `Refused`."""
    if problem := why_not_a_name(name):
        raise Refused(
            f"{problem} A preset's name becomes a file name.",
            field="name",
            code=ErrorCode.BAD_NAME,
        )
    return name


@contextlib.contextmanager
def _refused_by_the_disk(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into `Refused` (code "cannot_save")."""
    try:
        yield
    except OSError as error:
        raise Refused(
            f"{path} cannot be changed: {error.strerror or error}.",
            field="name",
            code=ErrorCode.CANNOT_SAVE,
        ) from error
