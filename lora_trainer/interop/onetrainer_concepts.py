"""OneTrainer's concepts, its folders of pictures, taken over into the settings."""

import os
from pathlib import Path
from typing import Any

from ..base.errors import ErrorCode, Refused
from ..base.files import read_small_file
from ..dataset.concepts import LARGEST_BYTES, concepts_in
from ..settings.setting import WrittenSettings
from .conversion import Conversion
from .lora_metadata_reader import read_json_text


def find_concepts(nested: WrittenSettings, path: Path | None) -> tuple[Any, str, Path | None]:
    """Return a OneTrainer config's concepts, which it holds or names a file of; that file's name,
    or the config's key; and the folder that it lies in. Without a `path`, which is the config's, no
    file is read.
    """
    named = nested.get("concept_file_name")
    if (
        path is None
        or not isinstance(named, str)
        or not named.strip()
        or nested.get("concepts") is not None
    ):
        return nested.get("concepts"), "concepts", None
    places = [folder / named for folder in (Path("."), path.parent, *path.absolute().parents[1:3])]
    file = next(
        (place for place in places if os.path.isfile(place)), None
    )  # False where `Path.is_file` raises
    return (
        (read_json_text(read_settings_text(file)), file.name, file.parent)
        if file
        else (None, "", None)
    )


def read_settings_text(path: Path) -> str:
    try:
        return (read_small_file(path, most_bytes=LARGEST_BYTES) or b"").decode(
            "utf-8-sig", "replace"
        )
    except OSError as error:
        raise Refused(
            f"The settings file {path} cannot be read: {error.strerror or error}.",
            code=ErrorCode.UNREADABLE_CONFIG,
        ) from error


def take_concepts(
    conversion: Conversion, found: object, source: str, *, beside: Path | None
) -> None:
    """OneTrainer's concepts: the first folder, the others with their repeats, and what they ask
    for.
    """
    concepts, unused = concepts_in(found, source, beside=beside)
    first, *more = concepts
    conversion.set("train_data_dir", str(first.path), "path")
    conversion.set("repeats", first.repeats, "balancing")
    if more:
        conversion.set(
            "extra_data_dirs",
            "\n".join(f"{concept.repeats} x {concept.path}" for concept in more),
            "path",
        )
    for name, value in {
        name: value for concept in reversed(concepts) for name, value in concept.settings.items()
    }.items():
        conversion.set(name, value)
    for concept in concepts:
        if concept.captions != "sample":
            conversion.skip(
                f"{concept.name}: prompt_source",
                concept.captions,
                "give the file of concepts itself as Pictures",
            )
        if concept.deep:
            conversion.skip(
                f"{concept.name}: include_subdirectories",
                True,
                "give the file of concepts itself as Pictures",
            )
        for key, value, reason in concept.left_out:
            conversion.skip(f"{concept.name}: {key}", value, reason)
    for name, reason in unused:
        conversion.skip("concept", name, reason)
