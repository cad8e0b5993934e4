"""Dataset configs of sd-scripts ([general], [[datasets]], [[datasets.subsets]]), brought into its
flat names.
"""

from collections.abc import Mapping

from ..base.text import number
from ..settings.aliases import read_resolutions
from ..settings.files import MOST_KEYS
from ..settings.setting import WrittenSettings
from .conversion import Conversion, parse_text, refuse_too_many

MOST_FOLDERS = 500
Folder = tuple[str, object]  # a folder, and its repeats as they are written


def take_datasets(conversion: Conversion, nested: WrittenSettings) -> None:
    """Bring [general], [[datasets]] and [[datasets.subsets]] into flat names: the folders together,
    each other setting as the first of them has it.

    Data sets of the same folders in other resolutions are one, trained in each.
    """
    general = nested.get("general")
    general = general if isinstance(general, Mapping) else {}
    datasets = _mappings(nested.get("datasets"))
    subsets = [each for dataset in datasets for each in _mappings(dataset.get("subsets")) or [{}]]
    refuse_too_many(subsets, "folders", MOST_FOLDERS)
    refuse_too_many(general, "settings", MOST_KEYS)
    datasets, sides = _same_folders(conversion, datasets)
    folders, common = _join_subsets(conversion, general, datasets)
    for key in [key for key in nested if key not in ("general", "datasets")]:
        conversion.values[key] = nested[key]
    parsed = {key: parse_text(value) for key, value in common.items()}
    given = {key: value for key, value in parsed.items() if value is not None}
    conversion.values.update({"enable_bucket": False, **given})
    if sides:
        conversion.values["extra_resolutions"] = ", ".join(map(str, sides))
    if folders:
        _set_folders(conversion, folders)


def _mappings(items: object) -> list[WrittenSettings]:
    """Return the tables of a list; what is no list has none."""
    if not isinstance(items, list):
        return []
    return [item for item in items if isinstance(item, Mapping)]


def _join_subsets(
    conversion: Conversion, general: WrittenSettings, datasets: list[WrittenSettings]
) -> tuple[list[Folder], dict[str, object]]:
    """Return all folders with their repeats, and the settings as the first subset has them; other
    values are skipped.
    """
    folders: list[Folder] = []
    common: dict[str, object] = {}
    for at, dataset in enumerate(datasets or [{}]):
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        for subset in _mappings(dataset.get("subsets")) or [{}]:
            values = {**general, **own, **subset}
            folder, repeats = values.pop("image_dir", None), values.pop("num_repeats", 1)
            if values.pop("is_reg", False) is True:
                _regularisation(conversion, folder)
                continue
            if folder is not None:
                folders.append((str(folder), repeats))
            _join_values(conversion, at, _flat(values), common)
    return folders, common


def _flat(values: dict[str, object]) -> dict[str, object]:
    """Return a subset's values by their flat names."""
    if "batch_size" in values:
        values["train_batch_size"] = values.pop("batch_size")
    resolution = values.get("resolution")
    if isinstance(resolution, (list, tuple)):
        values["resolution"] = ",".join(map(str, resolution))
    return values


def _join_values(
    conversion: Conversion, at: int, values: WrittenSettings, common: dict[str, object]
) -> None:
    for key, value in values.items():
        if common.setdefault(key, value) != value:
            conversion.skip(
                f"datasets[{at}] {key}",
                value,
                f"all folders are trained alike: as the first one says, {common[key]}",
            )


def _set_folders(conversion: Conversion, folders: list[Folder]) -> None:
    (folder, repeats), *more = folders
    conversion.values["train_data_dir"] = folder
    conversion.values["num_repeats"] = repeats
    if more:
        conversion.values["extra_data_dirs"] = "\n".join(
            f"{number(count) or 1:g} x {name}" for name, count in more
        )


def _same_folders(
    conversion: Conversion, found: list[WrittenSettings]
) -> tuple[list[WrittenSettings], list[int]]:
    """Take out data sets that have the first one's folders in another resolution.

    Returns the others, and those resolutions in pixels.
    """
    rest = found[:1]
    sides = []
    first = _folders_of(found[0]) if found else None
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


def _folders_of(dataset: WrittenSettings) -> list[object] | None:
    """Return what tells a data set's pictures: its subsets, whose every setting counts."""
    subsets = dataset.get("subsets")
    return subsets if isinstance(subsets, list) and subsets else None


def _regularisation(conversion: Conversion, folder: object) -> None:
    if conversion.values.setdefault("reg_data_dir", folder) != folder:
        conversion.skip(
            "image_dir", folder, "regularisation pictures lie in one folder here: put them together"
        )
