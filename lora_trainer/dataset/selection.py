"""Which pictures a run reads and what each is for: folders with their own repeats, regularisation
pictures, and those kept out to measure with.
"""

import contextlib
import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..base.errors import Refused
from ..base.paths import expand_user
from ..base.rng import generator
from ..settings.config import TrainConfig
from ..settings.remedies import details_of, set_to
from .concepts import Concept, is_concepts, read_concepts, read_prompts
from .masks import check_mask, find_masks, learns_everywhere
from .scan import Picture, Problem, scan

MOST_REPEATS, FEWEST_TO_LEARN = 1000, 2


@dataclasses.dataclass(frozen=True)
class Selection:
    """The pictures of a run: for training, then for regularisation, then for validation; `roles`
    and `repeats` have one entry for each, `masks` hold files by picture. `remarks` are sentences
    for the user.
    """

    pictures: list[Picture]
    roles: list[str]
    repeats: list[int]
    problems: list[Problem]
    masks: dict[Path, Path]
    remarks: list[str]


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder with pictures; `repeats` None: as the setting and the folder's name say. `concept`:
    what OneTrainer's concept of it says besides.
    """

    path: Path
    repeats: int | None = None
    concept: Concept | None = None


def extra_folders(text: str) -> list[Folder]:
    """Read folders, one a line, each perhaps behind its own repeats: `5 x D:\\more pictures`.
    Raises `Refused`.
    """
    return [_folder(line.strip()) for line in text.splitlines() if line.strip()]


def _folder(line: str) -> Folder:
    match = re.fullmatch(r"(\d+)\s*[x×X](?:\s+(.*))?", line)
    path, repeats = (match[2] or "", int(match[1])) if match else (line, None)
    path = path.strip().strip('"')
    if not path:
        raise Refused(
            f"More folders: the line {line[:60]!r} names no folder. Write it as 5 x folder, or"
            f" ./{line[:60]} for a folder of that name.",
            field="extra_data_dirs",
            code="bad_value",
        )
    if repeats is not None and not 1 <= repeats <= MOST_REPEATS:
        raise Refused(
            f"More folders: {path[:120]} is to be repeated {repeats} times. Use 1 to"
            f" {MOST_REPEATS}.",
            field="extra_data_dirs",
            code="bad_value",
        )
    return Folder(expand_user(path), repeats)


def folders_of(config: TrainConfig) -> list[str]:
    """Return every folder, or file that names folders, that a run would read pictures from; raises
    `Refused` for a line of `extra_data_dirs` that makes no sense.
    """
    extra = [str(folder.path) for folder in extra_folders(config.extra_data_dirs)]
    if is_concepts(Path(config.train_data_dir)):
        concepts, _ = read_concepts(Path(config.train_data_dir))
        extra += [
            str(path) for concept in concepts for path in (concept.path, concept.prompts) if path
        ]
    return [
        folder
        for folder in (
            config.train_data_dir,
            *extra,
            config.reg_data_dir and str(expand_user(config.reg_data_dir)),
        )
        if folder
    ]


def select(config: TrainConfig, *, thorough: bool = True) -> Selection:
    """Find the pictures of a run and give each its role and repeats. Raises `Refused`. Not
    `thorough`: as `scan`.
    """
    training, problems = _training_pictures(config, thorough=thorough)
    regularisation, more_problems = _regularisation_pictures(
        config, {picture.path.parent.resolve() for picture in training}, thorough=thorough
    )
    training, masks, damaged, remarks = _with_masks(config, training, thorough=thorough)
    remarks = _of_concepts(config) + remarks
    if not training:
        raise Refused(
            f"None of the pictures can be used with its mask. The first: {damaged[0].reason}",
            field="masked_loss",
            code="bad_mask",
        )
    regularisation, more_masks, more_damaged, _ = _with_masks(
        config, regularisation, thorough=thorough
    )  # which hardly ever have any
    held_back = _held_back(len(training), config.validation_split, config.seed)
    validation = [picture for number, picture in enumerate(training) if number in held_back]
    training = [picture for number, picture in enumerate(training) if number not in held_back]
    regularisation, left_out = _balanced(
        regularisation, sum(picture.repeats for picture in training), config.seed
    )
    if left_out:
        remarks.append(
            f"{left_out} of the {left_out + len(regularisation)} regularisation pictures are left"
            " out: as many are shown as of yours, repeats included."
        )
    pictures = [*training, *regularisation, *validation]
    roles = (
        ["train"] * len(training)
        + ["regularisation"] * len(regularisation)
        + ["validation"] * len(validation)
    )
    repeats = [
        0 if role == "validation" else picture.repeats
        for picture, role in zip(pictures, roles, strict=True)
    ]
    return Selection(
        pictures,
        roles,
        repeats,
        [*problems, *more_problems, *damaged, *more_damaged],
        masks | more_masks,
        remarks,
    )


def each_resolution(roles: Sequence[str], resolutions: Sequence[int]) -> list[tuple[int, int]]:
    """Return (number, resolution) of every entry of a run: role by role, all pictures in the first
    resolution, then in the next.

    Validation is measured in the first alone, so that its loss is of the same kind throughout.
    """
    return [
        (number, side)
        for role in ("train", "regularisation", "validation")
        for side in resolutions[: 1 if role == "validation" else None]
        for number, own in enumerate(roles)
        if own == role
    ]


# --- Folders --------------------------------------------------------------------------------------


def _training_pictures(
    config: TrainConfig, *, thorough: bool
) -> tuple[list[Picture], list[Problem]]:
    """The pictures of all training folders in their order; every folder must have some, one some
    that count, and none may be read twice.
    """
    main = Path(config.train_data_dir)
    if is_concepts(main):
        return _of_folders(
            config,
            [*_concept_folders(main), *extra_folders(config.extra_data_dirs)],
            [],
            [],
            thorough=thorough,
        )
    pictures, problems = scan(
        main,
        metadata_path=config.metadata_path,
        repeats=config.repeats,
        thorough=thorough,
        caption_ending=config.caption_extension,
    )
    if not pictures:
        raise Refused(_no_pictures(main, problems), field="train_data_dir", code="no_pictures")
    return _of_folders(
        config, extra_folders(config.extra_data_dirs), pictures, problems, thorough=thorough
    )


def _of_folders(
    config: TrainConfig,
    folders: list[Folder],
    pictures: list[Picture],
    problems: list[Problem],
    *,
    thorough: bool,
) -> tuple[list[Picture], list[Problem]]:
    """Add the pictures of further folders to those that were found."""
    own_table = Path(config.metadata_path).is_relative_to(
        config.train_data_dir
    )  # one that lies there is that folder's own
    seen = {picture.path.parent.resolve() for picture in pictures}
    for folder in folders:
        with _blamed_on("train_data_dir" if folder.concept else "extra_data_dirs"):
            found, damaged = scan(
                folder.path,
                metadata_path="" if own_table else config.metadata_path,
                repeats=config.repeats,
                thorough=thorough,
                caption_ending=config.caption_extension,
                subfolders=_subfolders(folder),
            )
            if not found:
                raise Refused(_no_pictures(folder.path, damaged), code="no_pictures")
            places = {picture.path.parent.resolve() for picture in found}
            if places & seen:
                raise Refused(
                    f"The pictures in {min(places & seen)} are among those to learn from already."
                    " Take the folder out, or raise its repeats.",
                    code="twice",
                )
        seen |= places
        pictures += [_repeated(picture, folder) for picture in _captioned(found, folder.concept)]
        problems += damaged
    return _that_count(pictures, problems)


def _concept_folders(path: Path) -> list[Folder]:
    return [Folder(concept.path, concept.repeats, concept) for concept in read_concepts(path)[0]]


def _subfolders(folder: Folder) -> str:
    return "kohya" if folder.concept is None else "all" if folder.concept.deep else "none"


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
            warnings=tuple(remark for remark in picture.warnings if remark != "no caption"),
        )
        for picture in pictures
    ]


def _repeated(picture: Picture, folder: Folder) -> Picture:
    """A folder's own repeats are for what lies in it; kohya's subfolders say theirs by name."""
    own = folder.concept is not None or picture.path.parent == folder.path
    return (
        dataclasses.replace(picture, repeats=folder.repeats) if folder.repeats and own else picture
    )


def _of_concepts(config: TrainConfig) -> list[str]:
    """Say what a file of concepts asks for and this run does not have."""
    path = Path(config.train_data_dir)
    if not is_concepts(path):
        return []
    concepts, remarks = read_concepts(path)
    titles = {field.name: field.metadata["title"] for field in dataclasses.fields(TrainConfig)}
    wishes = {
        name: value for concept in reversed(concepts) for name, value in concept.settings.items()
    }
    lacking = [
        f"{titles[name]} {'on' if value is True else value}"
        for name, value in wishes.items()
        if getattr(config, name) != value
    ]
    unlike = [
        f"{path.name}: {concept.name}: {key} {value} is not taken over: {reason}."
        for concept in concepts
        for key, value, reason in concept.left_out
    ]
    return (
        remarks
        + unlike[:5]
        + [f"{path.name} asks for {', '.join(lacking)}; this run is set otherwise."] * bool(lacking)
    )


def _regularisation_pictures(
    config: TrainConfig, taken: set[Path], *, thorough: bool
) -> tuple[list[Picture], list[Problem]]:
    if not config.reg_data_dir:
        return [], []
    folder = expand_user(config.reg_data_dir)
    with _blamed_on("reg_data_dir"):
        found, damaged = scan(folder, thorough=thorough, caption_ending=config.caption_extension)
        if not found:
            raise Refused(_no_pictures(folder, damaged), code="no_pictures")
        if both := {picture.path.parent.resolve() for picture in found} & taken:
            raise Refused(
                f"The pictures in {min(both)} are to be learned and to be for regularisation."
                " Regularisation needs others, without your subject.",
                code="twice",
            )
        return _that_count(found, damaged)


def _that_count(
    pictures: list[Picture], problems: list[Problem]
) -> tuple[list[Picture], list[Problem]]:
    """Leave out pictures of 0 repeats, with a problem for each of their folders; raises `Refused`
    when no others are left.
    """
    left_out = Counter(picture.path.parent for picture in pictures if not picture.repeats)
    if left_out.total() == len(pictures):
        name = next(iter(left_out)).name
        raise Refused(
            f"Every picture has 0 repeats by its folder's name ({name}), which leaves it out. Call"
            f" the folder 1_{name.partition('_')[2]}.",
            field="train_data_dir",
            code="no_pictures",
        )
    said = [
        Problem(
            folder,
            f"The folder {folder.name} has 0 repeats by its name: {count}"
            f" picture{'s' * (count > 1)} left out.",
        )
        for folder, count in left_out.items()
    ]
    return [picture for picture in pictures if picture.repeats], [*said, *problems]


@contextlib.contextmanager
def _blamed_on(field: str) -> Iterator[None]:
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


# --- Roles ----------------------------------------------------------------------------------------


def _held_back(count: int, share: float, seed: int) -> set[int]:
    """Draw the numbers of the pictures that are kept out of training: that share of them, at least
    one, and at least two are left.
    """
    if not share:
        return set()
    if count <= FEWEST_TO_LEARN:
        raise Refused(
            f"Validation keeps pictures out of training, and there are only {count}. It needs at"
            f" least {FEWEST_TO_LEARN + 1}; with few pictures, set it to 0.",
            field="validation_split",
            code="bad_value",
            details=details_of(set_to("validation_split", 0.0)),
        )
    wanted = min(max(1, math.floor(share * count + 0.5)), count - FEWEST_TO_LEARN)
    return set(torch.randperm(count, generator=generator(seed, "validation"))[:wanted].tolist())


def _balanced(pictures: list[Picture], total: int, seed: int) -> tuple[list[Picture], int]:
    """Give regularisation pictures repeats that add up to `total`, and say how many are left out
    for that.

    As kohya, so that each training picture shown has a regularisation picture shown: fewer are
    raised in turn by one, beginning with the first, and of more only some are taken. Which, is
    drawn here, so that all of their folders are among them.
    """
    repeats = [picture.repeats for picture in pictures]
    if not pictures or sum(repeats) <= total:
        more, rest = divmod(total - sum(repeats), len(pictures)) if pictures else (0, 0)
        repeats = [own + more + (number < rest) for number, own in enumerate(repeats)]
    else:
        left = total
        for number in torch.randperm(
            len(pictures), generator=generator(seed, "regularisation")
        ).tolist():
            repeats[number] = min(repeats[number], left)
            left -= repeats[number]
    kept = [
        dataclasses.replace(picture, repeats=count)
        for picture, count in zip(pictures, repeats, strict=True)
        if count
    ]
    return kept, len(pictures) - len(kept)


# --- Masks ----------------------------------------------------------------------------------------


def _with_masks(
    config: TrainConfig, pictures: list[Picture], *, thorough: bool
) -> tuple[list[Picture], dict[Path, Path], list[Problem], list[str]]:
    """Return the pictures that can be used with their masks, the mask files, those that cannot be
    read, and remarks.
    """
    if config.masked_loss == "off":
        return pictures, {}, [], []
    if config.masked_loss == "alpha":
        return (
            pictures,
            {},
            [],
            _without_mask(
                [picture for picture in pictures if learns_everywhere(picture)],
                pictures,
                "is transparent nowhere",
                "are transparent nowhere",
            ),
        )
    masks, usable, problems, remarks = find_masks(picture.path for picture in pictures), [], [], []
    for picture in pictures:
        try:
            if picture.path in masks and (
                remark := check_mask(masks[picture.path], picture, thorough=thorough)
            ):
                remarks.append(remark)
            usable.append(picture)
        except Refused as error:
            problems.append(
                Problem(
                    masks[picture.path],
                    f"{error.message} It is the mask of {picture.path.name}, which is left out.",
                )
            )
    missing = [picture for picture in usable if picture.path not in masks]
    return (
        usable,
        masks,
        problems,
        remarks[:5]
        + _without_mask(missing, usable, "has no mask beside it", "have no mask beside them"),
    )


def _without_mask(
    missing: list[Picture], pictures: list[Picture], one: str, several: str
) -> list[str]:
    if not missing:
        return []
    which = (
        missing[0].path.name
        if len(missing) == 1
        else f"{len(missing)} of {len(pictures)} pictures ({missing[0].path.name}, …)"
    )
    return [
        f"{which} {one if len(missing) == 1 else several}: all of"
        f" {'it' if len(missing) == 1 else 'them'} is learned."
    ]
