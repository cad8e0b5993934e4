"""Which pictures a run uses and what for: training, regularisation, or kept out for validation.

folders -> selection (this module: masks, roles, repeats) -> runs.plan, which makes samples of it.
"""

import dataclasses
import math
from pathlib import Path

import torch

from ..base.errors import ErrorCode, Refused
from ..base.rng import generator
from ..settings.config import TrainConfig
from ..settings.remedies import details_of, set_to
from .folders import concept_warnings, regularisation_pictures, training_pictures
from .masks import check_mask, find_masks, is_opaque
from .sample import Picture, Role
from .scan import Problem

FEWEST_TO_LEARN = 2
MOST_MASK_WARNINGS = 5


@dataclasses.dataclass(frozen=True)
class Selection:
    """The pictures of a run by their role, the mask files by picture, and what was wrong.

    `picture.repeats` count, except for validation, which is not trained.
    """

    training: list[Picture]
    regularisation: list[Picture]
    validation: list[Picture]
    masks: dict[Path, Path]
    problems: list[Problem]
    warnings: list[str]

    def of(self, role: Role) -> list[Picture]:
        """Return the pictures of a role."""
        if role == "train":
            return self.training
        return self.regularisation if role == "regularisation" else self.validation


def select(config: TrainConfig, *, thorough: bool = True) -> Selection:
    """Find the pictures of a run and give each its role and repeats; `thorough` as in `scan`.

    Raises `Refused`.
    """
    found, problems = training_pictures(config, thorough=thorough)
    reg_found, reg_problems = regularisation_pictures(config, found, thorough=thorough)
    yours = _with_masks(config, found, thorough=thorough)
    warnings = concept_warnings(config) + yours.warnings
    if not yours.pictures:
        first = yours.problems[0].reason
        raise Refused(
            f"None of the pictures can be used with its mask. The first: {first}",
            field="masked_loss",
            code=ErrorCode.BAD_MASK,
        )
    # Regularisation pictures hardly ever have masks, so it is no warning if they have none.
    others = _with_masks(config, reg_found, thorough=thorough)
    held_back = _held_back(len(yours.pictures), config.validation_split, config.seed)
    validation = [picture for at, picture in enumerate(yours.pictures) if at in held_back]
    training = [picture for at, picture in enumerate(yours.pictures) if at not in held_back]
    training_count = sum(picture.repeats for picture in training)
    regularisation = _balanced(others.pictures, training_count, config.seed)
    if left_out := len(others.pictures) - len(regularisation):
        warnings.append(
            f"{left_out} of the {len(others.pictures)} regularisation pictures are left out: as"
            " many are shown as of yours, repeats included."
        )
    return Selection(
        training,
        regularisation,
        validation,
        yours.masks | others.masks,
        [*problems, *reg_problems, *yours.problems, *others.problems],
        warnings,
    )


# --- Roles ----------------------------------------------------------------------------------------


def _held_back(count: int, share: float, seed: int) -> set[int]:
    """Draw the indices of the pictures that are kept for validation.

    They are `share` of `count`, but at least one, and at least `FEWEST_TO_LEARN` are left.
    """
    if not share:
        return set()
    if count <= FEWEST_TO_LEARN:
        raise Refused(
            f"Validation keeps pictures out of training, and there are only {count}. It needs at"
            f" least {FEWEST_TO_LEARN + 1}; with few pictures, set it to 0.",
            field="validation_split",
            code=ErrorCode.BAD_VALUE,
            details=details_of(set_to("validation_split", 0.0)),
        )
    held = min(max(1, math.floor(share * count + 0.5)), count - FEWEST_TO_LEARN)
    return set(torch.randperm(count, generator=generator(seed, "validation"))[:held].tolist())


def _balanced(pictures: list[Picture], total: int, seed: int) -> list[Picture]:
    """Give regularisation pictures repeats that add up to `total`, and leave out the others.

    As in kohya, each training picture is accompanied by a regularisation picture. Of too few, the
    repeats are raised in turn by one, beginning with the first. Of too many, some are drawn, which
    kohya does not do, so that all of their folders are among them.
    """
    repeats = [picture.repeats for picture in pictures]
    if not pictures:
        return []
    if sum(repeats) <= total:
        more, rest = divmod(total - sum(repeats), len(pictures))
        repeats = [own + more + (at < rest) for at, own in enumerate(repeats)]
    else:
        left = total
        rng = generator(seed, "regularisation")
        for at in torch.randperm(len(pictures), generator=rng).tolist():
            repeats[at] = min(repeats[at], left)
            left -= repeats[at]
    return [
        dataclasses.replace(picture, repeats=count)
        for picture, count in zip(pictures, repeats, strict=True)
        if count
    ]


# --- Masks ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Masked:
    """The pictures that can be used with their masks, the mask files, and what was wrong."""

    pictures: list[Picture]
    masks: dict[Path, Path] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def _with_masks(config: TrainConfig, pictures: list[Picture], *, thorough: bool) -> _Masked:
    """Find the masks of pictures, as `masked_loss` says; a damaged mask leaves its picture out."""
    if config.masked_loss == "off":
        return _Masked(pictures)
    if config.masked_loss == "alpha":
        opaque = [picture for picture in pictures if is_opaque(picture)]
        said = _unmasked(opaque, pictures, "is transparent nowhere", "are transparent nowhere")
        return _Masked(pictures, warnings=said)
    masks = find_masks(picture.path for picture in pictures)
    usable: list[Picture] = []
    problems: list[Problem] = []
    warnings: list[str] = []
    for picture in pictures:
        mask = masks.get(picture.path)
        try:
            warning = check_mask(mask, picture, thorough=thorough) if mask else ""
        except Refused as error:
            reason = f"{error.message} It is the mask of {picture.path.name}, which is left out."
            problems.append(Problem(masks[picture.path], reason))
            continue
        usable.append(picture)
        if warning:
            warnings.append(warning)
    missing = [picture for picture in usable if picture.path not in masks]
    said = _unmasked(missing, usable, "has no mask beside it", "have no mask beside them")
    return _Masked(usable, masks, problems, warnings[:MOST_MASK_WARNINGS] + said)


def _unmasked(
    unmasked: list[Picture], pictures: list[Picture], one_is: str, several_are: str
) -> list[str]:
    """Say that all of these pictures is learned, and why."""
    if not unmasked:
        return []
    first = unmasked[0].path.name
    if len(unmasked) == 1:
        return [f"{first} {one_is}: all of it is learned."]
    return [
        f"{len(unmasked)} of {len(pictures)} pictures ({first}, …) {several_are}: all of them is"
        " learned."
    ]
