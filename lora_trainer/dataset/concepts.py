"""OneTrainer's concepts: a .json that lists folders of pictures, how often each counts and where
its captions come from.

`train_data_dir` may be such a file (dataset/folders.py); interop/onetrainer.py turns one into
settings. What has no counterpart is listed.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from ..base.errors import ErrorCode, Refused
from ..base.files import read_small_file
from ..base.paths import expand_user
from ..base.text import number
from ..settings.setting import WrittenSettings
from .captions import LARGEST_CAPTION_FILE_BYTES, text_of

LARGEST_BYTES, MOST_CONCEPTS, MOST_REPEATS = 5_000_000, 500, 1000
JITTERED_PROPERTIES = ("brightness", "contrast", "saturation", "hue")
SOURCES = (
    "sample",
    "concept",
    "filename",
)  # a .txt beside each picture, one file for all, the file's name
_UNLIKE = {  # of "image" and "text", where they are on: what to do instead
    "enable_fixed_flip": "pictures are mirrored by chance: Mirror",
    "enable_random_rotate": "pictures are not rotated",
    "enable_fixed_rotate": "pictures are not rotated",
    "enable_fixed_brightness": "Colour jitter does this",
    "enable_fixed_contrast": "Colour jitter does this",
    "enable_fixed_saturation": "Colour jitter does this",
    "enable_fixed_hue": "Colour jitter does this",
    "enable_resolution_override": "all pictures have one resolution",
    "enable_random_circular_mask_shrink": "masks are used as they are",
    "enable_random_mask_rotate_crop": "masks are used as they are",
    "caps_randomize_enable": "captions keep their case",
}


WrittenConcept: TypeAlias = Mapping[str, Any]  # as OneTrainer writes it


class LeftOut(NamedTuple):
    """Something that a concept asks for and cannot have, as it is written, and why."""

    key: str
    value: object
    reason: str


class UnusedConcept(NamedTuple):
    """A concept that is not to be trained, and why."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Concept:
    """A folder of pictures. `captions` is one of SOURCES, `prompts` the file for "concept"; `deep`:
    with all folders in it. `settings` are what it asks for, by our names, `left_out` what it cannot
    have.
    """

    name: str
    path: Path
    repeats: int = 1
    captions: str = "sample"
    prompts: Path | None = None
    deep: bool = False
    settings: WrittenSettings = dataclasses.field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()


def is_concepts(path: Path) -> bool:
    """Tell by its name and kind whether a path can be a file of concepts."""
    return path.suffix.lower() == ".json" and os.path.isfile(
        path
    )  # False where `Path.is_file` raises: names too long


def are_concepts(found: object) -> TypeGuard[list[WrittenConcept]]:
    """Tell whether the content of a .json is a list of concepts."""
    return (
        isinstance(found, list)
        and bool(found)
        and all(isinstance(each, Mapping) and "path" in each for each in found)
    )


def read_concepts(path: Path) -> tuple[list[Concept], list[str]]:
    """Return the concepts of a file that are to be trained, and sentences on the others.

    Raises `Refused`.
    """
    try:
        stat = path.stat()
        found = _content(path, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(f"{path.name} cannot be read as OneTrainer's concepts: {error}.") from error
    concepts, unused = concepts_in(found, path.name, beside=path.parent)
    return concepts, [_sentence(each, path.name) for each in unused]


@functools.lru_cache(maxsize=2)
def _content(path: Path, mtime_ns: int, ctime_ns: int, size_bytes: int) -> Any:
    """Parse a file in this state once, however often a plan asks; nobody changes what it holds."""
    data = read_small_file(path, most_bytes=LARGEST_BYTES)
    return json.loads((data or b"").decode("utf-8-sig"))


def concepts_in(
    found: object, source: str, *, beside: Path | None = None
) -> tuple[list[Concept], list[UnusedConcept]]:
    """Return the concepts in the content of such a file, and those that are not to be trained.
    `source` names it in messages.

    Relative paths are looked for in the folder `beside` and the one above it; with None nothing is
    looked for on this machine, as for what a stranger has sent. Raises `Refused`.
    """
    if not are_concepts(found) or len(found) > MOST_CONCEPTS:
        raise _refused(
            f"{source} is not a list of OneTrainer's concepts, each with its path, at most"
            f" {MOST_CONCEPTS} of them."
        )
    concepts, unused = [], []
    for at, values in enumerate(found, start=1):
        name = str(values.get("name") or values["path"] or at)[:80]
        if (reason := _why_not(values)) is None:
            concepts.append(_concept(values, name, beside))
        else:
            unused.append(UnusedConcept(name, reason))
    if not concepts:
        why = _sentence(unused[0], source)
        raise _refused(f"No concept of {source} is to be trained. {why}")
    return concepts, unused


def _sentence(unused: UnusedConcept, source: str) -> str:
    return f"The concept {unused.name} of {source} is left out: {unused.reason}."


def _why_not(values: WrittenConcept) -> str | None:
    kind = str(
        values.get("type")
        or ("VALIDATION" if values.get("validation_concept") is True else "STANDARD")
    ).upper()
    if values.get("enabled") is False:
        return "it is switched off"
    if kind == "VALIDATION":
        return "it is for validation, for which Validation keeps some of the others out"
    if kind != "STANDARD":
        return f"it is of the kind {kind[:40]}; Regularisation pictures may do"
    return (
        None if isinstance(values["path"], str) and values["path"].strip() else "it names no folder"
    )


def _concept(values: WrittenConcept, name: str, beside: Path | None) -> Concept:
    text, image = (
        part if isinstance(part := values.get(key), Mapping) else {} for key in ("text", "image")
    )
    source = str(text.get("prompt_source") or "sample").lower()
    if source not in SOURCES:
        raise _refused(
            f"The captions of the concept {name} come from {source[:40]!r}; expected one of"
            f" {', '.join(SOURCES)}."
        )
    written = str(text.get("prompt_path") or "").strip()
    prompts = _found(written, beside) if written and source == "concept" else None
    left_out = list(_left_out({**image, **text}))
    if (weight := values.get("loss_weight", 1.0)) != 1.0:
        left_out.append(LeftOut("loss_weight", weight, "folders differ in their repeats only"))
    folder = _found(values["path"], beside)
    repeats, exact = _repeats(values)
    if not exact:
        asked = values.get("balancing", values.get("repeats"))
        left_out.append(LeftOut("balancing", asked, f"{repeats} is taken: repeats are whole"))
    return Concept(
        name,
        folder,
        repeats,
        source,
        prompts,
        values.get("include_subdirectories") is True,
        _settings(text, image),
        tuple(left_out),
    )


def _left_out(values: WrittenConcept) -> Iterator[LeftOut]:
    for key, reason in _UNLIKE.items():
        if values.get(key) is True:
            yield LeftOut(key, values[key], reason)
    if (
        values.get("enable_tag_shuffling") is True
        and str(values.get("tag_delimiter", ",")).strip() != ","
    ):
        yield LeftOut("tag_delimiter", values["tag_delimiter"], "tags are parted by commas only")
    if values.get("tag_dropout_enable") is True and values.get("tag_dropout_mode") not in (
        "FULL",
        "RANDOM",
    ):
        yield LeftOut(
            "tag_dropout_mode",
            values.get("tag_dropout_mode"),
            "each tag is dropped alike: Tag dropout",
        )
    if values.get("tag_dropout_enable") is True and values.get("tag_dropout_special_tags"):
        yield LeftOut(
            "tag_dropout_special_tags",
            values["tag_dropout_special_tags"],
            "all tags but those in front are dropped alike",
        )


def _settings(text: WrittenConcept, image: WrittenConcept) -> WrittenSettings:
    """Return the settings that a concept asks for, by our names."""
    found: dict[str, object] = {"caption_lines": "alternatives"}  # OneTrainer draws one of them
    drops = text.get("tag_dropout_enable") is True and text.get("tag_dropout_probability")
    if text.get("enable_tag_shuffling") is True:
        found["shuffle_caption"] = True
    if drops:
        drops_all = text.get("tag_dropout_mode") == "FULL"
        found["caption_dropout_rate" if drops_all else "caption_tag_dropout_rate"] = drops
    if drops or "shuffle_caption" in found:
        found["keep_tokens"] = text.get("keep_tags_count", 1)
    if image.get("enable_random_flip") is True:
        found["mirror"] = True
    if any(image.get(f"enable_random_{what}") is True for what in JITTERED_PROPERTIES):
        found["color_jitter"] = 0.05  # as kohya's color_aug
    return found


def _repeats(values: WrittenConcept) -> tuple[int, bool]:
    """Return how often each picture counts, and whether that is just what is asked for."""
    wanted = values.get("balancing", values.get("repeats", 1.0))
    if isinstance(wanted, str) or (wanted := number(wanted)) is None:
        return 1, False
    if (
        str(values.get("balancing_strategy", "REPEATS")).upper() == "SAMPLES"
    ):  # so many pictures of it in an epoch
        return 1, False
    repeats = min(max(1, round(wanted)), MOST_REPEATS)
    return repeats, repeats == wanted


def _found(written: str, beside: Path | None) -> Path:
    """Find what a concept names: beside the file, or where OneTrainer would have been started, else
    as it is written."""
    path = expand_user(written.strip())
    if beside is None or path.is_absolute():
        return path
    places = (base / path for base in (beside, beside.parent))
    return next(
        (place for place in places if os.path.exists(place)), path
    )  # False where `Path.exists` raises


def read_prompts(path: Path | None) -> str:
    """Return the captions in a concept's own file, one a line. Raises `Refused`."""
    try:
        data = read_small_file(path, most_bytes=LARGEST_CAPTION_FILE_BYTES) if path else None
    except OSError as error:
        raise _refused(
            f"The captions in {path} cannot be read: {error.strerror or error}."
        ) from error
    if data is None:
        raise _refused(
            f"The file {path} that a concept's captions are in is not there."
            if path
            else "A concept's captions are in one file, and it names none."
        )
    return text_of(data)


def _refused(message: str) -> Refused:
    return Refused(message, field="train_data_dir", code=ErrorCode.BAD_CONCEPTS)
