"""The folders that a run reads pictures from, as the settings or OneTrainer's concepts name them.

folders (this module) -> scan -> selection, which gives each picture its role.
"""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from ..base.paths import expand_user
from ..settings.config import TrainConfig, setting_of
from .concepts import MOST_REPEATS, Concept, is_concepts, read_concepts, read_prompts
from .sample import Picture
from .scan import Problem, scan

MOST_UNLIKE = 5  # warnings about what a file of concepts asks for and we do not have


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder with pictures.

    `repeats` None: as the setting and the folder's name say. `concept`: what OneTrainer's concept
    of it says besides.
    """

    path: Path
    repeats: int | None = None
    concept: Concept | None = None

    @property
    def subfolders(self) -> str:
        """Which of its subfolders are read, as `scan` takes it."""
        if self.concept is None:
            return "kohya"
        return "all" if self.concept.deep else "none"


def extra_folders(text: str) -> list[Folder]:
    """Read folders, one a line, each perhaps after its repeats: `5 x D:\\more pictures`.

    Raises `Refused`.
    """
    return [_folder(line.strip()) for line in text.splitlines() if line.strip()]


def _folder(line: str) -> Folder:
    match = re.fullmatch(r"(\d+)\s*[x×X](?:\s+(.*))?", line)
    repeats = int(match[1]) if match else None
    path = (match[2] or "") if match else line
    path = path.strip().strip('"')
    if not path:
        raise Refused(
            f"More folders: the line {line[:60]!r} names no folder. Write it as 5 x folder, or"
            f" ./{line[:60]} for a folder of that name.",
            field="extra_data_dirs",
            code=ErrorCode.BAD_VALUE,
        )
    if repeats is not None and not 1 <= repeats <= MOST_REPEATS:
        raise Refused(
            f"More folders: {path[:120]} is to be repeated {repeats} times. Use 1 to"
            f" {MOST_REPEATS}.",
            field="extra_data_dirs",
            code=ErrorCode.BAD_VALUE,
        )
    return Folder(expand_user(path), repeats)


def folders_of(config: TrainConfig) -> list[str]:
    """Return every folder, or file that names folders, that a run would read pictures from.

    Raises `Refused` for a line of `extra_data_dirs` that makes no sense.
    """
    found = [config.train_data_dir]
    found += [str(folder.path) for folder in extra_folders(config.extra_data_dirs)]
    if is_concepts(Path(config.train_data_dir)):
        concepts, _ = read_concepts(Path(config.train_data_dir))
        for concept in concepts:
            found += [str(path) for path in (concept.path, concept.prompts) if path]
    if config.reg_data_dir:
        found.append(str(expand_user(config.reg_data_dir)))
    return [folder for folder in found if folder]


def training_pictures(
    config: TrainConfig, *, thorough: bool
) -> tuple[list[Picture], list[Problem]]:
    """Return the usable pictures of all training folders in their order, and the problems.

    Raises `Refused` when a folder has no pictures, none of them count, or one is read twice.
    """
    main = Path(config.train_data_dir)
    extra = extra_folders(config.extra_data_dirs)
    if is_concepts(main):
        concepts, _ = read_concepts(main)
        folders = [Folder(concept.path, concept.repeats, concept) for concept in concepts]
        return _add_folders(config, [*folders, *extra], [], [], thorough=thorough)
    pictures, problems = scan(
        main,
        metadata_path=config.metadata_path,
        repeats=config.repeats,
        thorough=thorough,
        caption_ending=config.caption_extension,
    )
    if not pictures:
        raise Refused(
            _no_pictures(main, problems), field="train_data_dir", code=ErrorCode.NO_PICTURES
        )
    return _add_folders(config, extra, pictures, problems, thorough=thorough)


def _add_folders(
    config: TrainConfig,
    folders: list[Folder],
    pictures: list[Picture],
    problems: list[Problem],
    *,
    thorough: bool,
) -> tuple[list[Picture], list[Problem]]:
    """Add the pictures and problems of further folders to those that were found."""
    seen = {picture.path.parent.resolve() for picture in pictures}
    for folder in folders:
        with _blamed_on("train_data_dir" if folder.concept else "extra_data_dirs"):
            found, damaged = _scan_folder(config, folder, thorough=thorough)
            places = {picture.path.parent.resolve() for picture in found}
            if places & seen:
                raise Refused(
                    f"The pictures in {min(places & seen)} are among those to learn from already."
                    " Take the folder out, or raise its repeats.",
                    code=ErrorCode.TWICE,
                )
        seen |= places
        pictures += [_repeated(picture, folder) for picture in _captioned(found, folder.concept)]
        problems += damaged
    return _that_count(pictures, problems)


def _scan_folder(
    config: TrainConfig, folder: Folder, *, thorough: bool
) -> tuple[list[Picture], list[Problem]]:
    """Scan a further folder; raises `Refused` when it has no usable pictures."""
    # A caption table that lies in the main folder is that folder's own.
    is_main_table = Path(config.metadata_path).is_relative_to(config.train_data_dir)
    found, damaged = scan(
        folder.path,
        metadata_path="" if is_main_table else config.metadata_path,
        repeats=config.repeats,
        thorough=thorough,
        caption_ending=config.caption_extension,
        subfolders=folder.subfolders,
    )
    if not found:
        raise Refused(_no_pictures(folder.path, damaged), code=ErrorCode.NO_PICTURES)
    return found, damaged


def _captioned(pictures: list[Picture], concept: Concept | None) -> list[Picture]:
    """Give pictures of a concept the captions that do not lie beside them."""
    if concept is None or concept.captions == "sample":
        return pictures
    shared = read_prompts(concept.prompts) if concept.captions == "concept" else ""
    return [
        dataclasses.replace(
            picture,
            caption=shared or picture.path.stem,
            other_caption="",
        )
        for picture in pictures
    ]


def _repeated(picture: Picture, folder: Folder) -> Picture:
    """Apply a folder's own repeats to what lies in it; kohya's subfolders name theirs."""
    own = folder.concept is not None or picture.path.parent == folder.path
    if folder.repeats and own:
        return dataclasses.replace(picture, repeats=folder.repeats)
    return picture


def concept_warnings(config: TrainConfig) -> list[str]:
    """Return what a file of concepts asks for that this run does not have, as sentences."""
    path = Path(config.train_data_dir)
    if not is_concepts(path):
        return []
    concepts, warnings = read_concepts(path)
    unlike = [
        f"{path.name}: {concept.name}: {key} {value} is not taken over: {reason}."
        for concept in concepts
        for key, value, reason in concept.left_out
    ]
    lacking = _lacking_settings(config, concepts)
    if lacking:
        lacking = [f"{path.name} asks for {', '.join(lacking)}; this run is set otherwise."]
    return warnings + unlike[:MOST_UNLIKE] + lacking


def _lacking_settings(config: TrainConfig, concepts: list[Concept]) -> list[str]:
    """Return what the concepts ask for by title, where the settings differ; the first decides."""
    asked: dict[str, object] = {}
    for concept in reversed(concepts):
        asked |= concept.settings
    return [
        f"{setting_of(name).title} {'on' if value is True else value}"
        for name, value in asked.items()
        if getattr(config, name) != value
    ]


def regularisation_pictures(
    config: TrainConfig, training: list[Picture], *, thorough: bool
) -> tuple[list[Picture], list[Problem]]:
    """Return the usable pictures of the regularisation folder, and the problems.

    Raises `Refused` when it has none, or shares a folder with the training pictures.
    """
    if not config.reg_data_dir:
        return [], []
    taken = {picture.path.parent.resolve() for picture in training}
    folder = expand_user(config.reg_data_dir)
    with _blamed_on("reg_data_dir"):
        found, damaged = scan(folder, thorough=thorough, caption_ending=config.caption_extension)
        if not found:
            raise Refused(_no_pictures(folder, damaged), code=ErrorCode.NO_PICTURES)
        if both := {picture.path.parent.resolve() for picture in found} & taken:
            raise Refused(
                f"The pictures in {min(both)} are to be learned and to be for regularisation."
                " Regularisation needs others, without your subject.",
                code=ErrorCode.TWICE,
            )
        return _that_count(found, damaged)


def _that_count(
    pictures: list[Picture], problems: list[Problem]
) -> tuple[list[Picture], list[Problem]]:
    """Leave out pictures of 0 repeats, with a problem for each of their folders.

    Raises `Refused` when no others are left.
    """
    left_out = Counter(picture.path.parent for picture in pictures if not picture.repeats)
    if left_out.total() == len(pictures):
        name = next(iter(left_out)).name
        raise Refused(
            f"Every picture has 0 repeats by its folder's name ({name}), which leaves it out. Call"
            f" the folder 1_{name.partition('_')[2]}.",
            field="train_data_dir",
            code=ErrorCode.NO_PICTURES,
        )
    of_folders = []
    for folder, count in left_out.items():
        pictures_said = "1 picture" if count == 1 else f"{count} pictures"
        reason = f"The folder {folder.name} has 0 repeats by its name: {pictures_said} left out."
        of_folders.append(Problem(folder, reason))
    return [picture for picture in pictures if picture.repeats], [*of_folders, *problems]


@contextlib.contextmanager
def _blamed_on(field: str) -> Iterator[None]:
    """Name the setting to mend in a `Refused` that is raised within."""
    try:
        yield
    except Refused as error:
        raise Refused(error.message, field=field, code=error.code, details=error.details) from error


def _no_pictures(folder: Path, problems: list[Problem]) -> str:
    if problems:
        return (
            f"None of the {len(problems)} pictures in {folder} can be used. The first:"
            f" {problems[0].reason}"
        )
    return f"There are no pictures in {folder}. Put PNG, JPEG or WebP files in it."
