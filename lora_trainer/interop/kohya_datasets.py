"""Dataset configs of sd-scripts ([general], [[datasets]], [[datasets.subsets]]), brought into its
flat names.
"""

from collections.abc import Mapping
from typing import Any

from ..base.text import number
from ..settings.config import MOST_KEYS, read_resolutions
from .conversion import Conversion, parse_text, refuse_too_many

MOST_FOLDERS = 500


def take_datasets(conversion: Conversion, nested: Mapping[str, Any]) -> None:  # noqa: C901
    """Bring [general], [[datasets]] and [[datasets.subsets]] into flat names: the folders together,
    each other setting as the first of them has it.

    Data sets of the same folders in other resolutions are one, learned in each.
    """
    general = nested.get("general") if isinstance(nested.get("general"), Mapping) else {}
    found = (
        [item for item in nested.get("datasets") or [] if isinstance(item, Mapping)]
        if isinstance(nested.get("datasets"), list)
        else []
    )
    refuse_too_many(
        [subset for item in found for subset in item.get("subsets") or [None]],
        "folders",
        MOST_FOLDERS,
    )
    refuse_too_many(general, "settings", MOST_KEYS)
    found, sides = _same_folders(conversion, found)
    folders: list[tuple[str, int]] = []
    first: dict[str, Any] = {}
    for at, item in enumerate(found or [{}]):
        subsets = (
            [subset for subset in item.get("subsets") or [] if isinstance(subset, Mapping)]
            if isinstance(item.get("subsets"), list)
            else []
        )
        for subset in subsets or [{}]:
            values = {
                **general,
                **{key: value for key, value in item.items() if key != "subsets"},
                **subset,
            }
            folder, is_reg, repeats = (
                values.pop("image_dir", None),
                values.pop("is_reg", False),
                values.pop("num_repeats", 1),
            )
            if is_reg is True:
                _regularisation(conversion, folder)
            elif folder is not None:
                folders.append((str(folder), repeats))
            if "batch_size" in values:
                values["train_batch_size"] = values.pop("batch_size")
            if isinstance(values.get("resolution"), (list, tuple)):
                values["resolution"] = ",".join(map(str, values["resolution"]))
            for key, value in values.items():
                if is_reg is not True and first.setdefault(key, value) != value:
                    conversion.skip(
                        f"datasets[{at}] {key}",
                        value,
                        f"all folders are trained alike: as the first one says, {first[key]}",
                    )
    for key in [key for key in nested if key not in ("general", "datasets")]:
        conversion.values[key] = nested[key]
    conversion.values.update(
        {
            "enable_bucket": False,
            **{
                key: cleaned
                for key, value in first.items()
                if (cleaned := parse_text(value)) is not None
            },
        }
    )
    if sides:
        conversion.values["extra_resolutions"] = ", ".join(map(str, sides))
    if folders:
        (conversion.values["train_data_dir"], repeats), *more = folders
        conversion.values["num_repeats"] = repeats
        if more:
            conversion.values["extra_data_dirs"] = "\n".join(
                f"{number(count) or 1:g} x {folder}" for folder, count in more
            )


def _same_folders(
    conversion: Conversion, found: list[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[int]]:
    """Take out data sets that have the first one's folders in another resolution.

    Returns the others, and those resolutions in pixels.
    """
    rest, sides, first = found[:1], [], _folders_of(found[0]) if found else None
    for at, item in enumerate(found[1:], start=1):
        side = read_resolutions({"resolution": item.get("resolution")}, kohya=True).get(
            "resolution"
        )
        if not first or _folders_of(item) != first or not isinstance(side, int):
            rest.append(item)
            continue
        sides.append(side)
        for key in sorted((item.keys() | found[0].keys()) - {"resolution", "subsets"}):
            if item.get(key) != found[0].get(key):
                conversion.skip(
                    f"datasets[{at}] {key}",
                    item.get(key),
                    "all resolutions are trained alike: as the first one says,"
                    f" {found[0].get(key)}",
                )
    return rest, sides


def _folders_of(dataset: Mapping[str, Any]) -> Any:
    """Return what tells a data set's pictures: its subsets, whose every setting counts."""
    return (
        dataset.get("subsets")
        if isinstance(dataset.get("subsets"), list) and dataset["subsets"]
        else None
    )


def _regularisation(conversion: Conversion, folder: Any) -> None:
    if conversion.values.setdefault("reg_data_dir", folder) != folder:
        conversion.skip(
            "image_dir", folder, "regularisation pictures lie in one folder here: put them together"
        )
