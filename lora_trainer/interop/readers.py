"""Settings from other trainers' files and from LoRAs: `import_settings` turns any of them into
settings of ours and says what was left out, and why.

Each kind of file is brought into sd-scripts' names by a function here; `kohya.translate` takes
these over. A LoRA is read by its header only.
"""

import ast
import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from ..base.errors import Refused
from ..base.tensor_files import check_json, parse_header
from ..base.text import number
from ..dataset.captions import content_of
from ..dataset.concepts import LARGEST_BYTES, are_concepts, concepts_in, is_concepts
from ..settings.aliases import read_resolutions
from ..settings.config import KOHYA_NAMES, TrainConfig, all_settings, held_names, in_our_names
from ..settings.files import MOST_KEYS, check_extent, flattened, read_mapping
from ..settings.lora_name import check_name
from . import onetrainer
from .kohya import (
    LONGEST_ARGUMENTS,
    MOST_LITERAL,
    NO_LITERAL,
    NOT_NEEDED,
    OUR_SETTINGS,
    LeftOut,
    Taking,
    arguments,
    clean,
    is_off,
    keep_valid,
    refuse_too_many,
    translate,
    why_not,
)

MOST_NOTES, MOST_NOTE, _LONG_NOTES = (
    1000,
    20_000,
    {"datasets"},
)  # of what a LoRA says of its training; characters of one; those that list pictures' tags
MOST_FOLDERS = 500
MOST_IN_METADATA = 200_000  # values in one JSON text of it
OURS_ALONE = {
    "lora_rank",
    "lora_alpha",
    "lora_type",
    "lora_dropout",
    "epochs",
    "scheduler",
    "task_type",
    "lora_targets",
    "base_model",
    "metadata_path",
    "trigger_word",
    "rank",
    "network_rank",
    "lora_dim",
    "alpha",
}
IN_OUR_NAMES = "lora-scripts settings in our names"
GUI_MARKS = {
    "LoRA_type",
    "max_resolution",
    "lr_warmup",
    "LyCORIS_preset",
    "lora_network_weights",
    "sdxl_no_half_vae",
}
LORA_SCRIPTS_MARKS = {
    "model_train_type",
    "lycoris_algo",
    "network_args_custom",
    "optimizer_args_custom",
    "lr_restart_cycles",
    "prodigy_d_coef",
    "enable_block_weights",
}
COMPLETE_MARKS = {"network_module", "network_dim", "learning_rate", "unet_lr", "optimizer_type"}
_SHARED_FOLDERS = {
    "",
    ".",
    "output",
    "outputs",
    "out",
    "lora",
    "loras",
    "models",
}  # of many LoRAs, so that none is called so
GUI_NETWORKS = {  # kohya_ss' LoRA_type: sd-scripts' module and LyCORIS' algorithm
    "standard": ("networks.lora", ""),
    "kohya locon": ("networks.lora", ""),
    "locon": ("lycoris.kohya", "locon"),
    "lora-fa": ("networks.lora_fa", ""),
    "kohya dylora": ("networks.dylora", ""),
    "kohya loha": ("networks.loha", ""),
    "kohya lokr": ("networks.lokr", ""),
}
NETWORK_KEYS = (
    "conv_dim",
    "conv_alpha",
    "block_dims",
    "block_alphas",
    "conv_block_dims",
    "conv_block_alphas",
    "down_lr_weight",
    "mid_lr_weight",
    "up_lr_weight",
    "block_lr_zero_threshold",
    "rank_dropout",
    "module_dropout",
    "factor",
    "use_cp",
    "use_tucker",
    "use_scalar",
    "decompose_both",
    "train_on_input",
    "dora_wd",
    "rank_dropout_scale",
    "train_norm",
    "constrain",
    "rescaled",
    "bypass_mode",
    "unit",
    "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio",
    "loraplus_text_encoder_lr_ratio",
    "rs_lora",
)


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a file says: `settings` by our names, each valid; `left_out` with reasons; `source`,
    what kind of file it is, for the user.

    `assumed` names the settings that the file does not give and its program would have had so.
    """

    settings: dict[str, Any]
    left_out: list[LeftOut]
    source: str
    assumed: tuple[str, ...] = ()


def import_settings(path: Path, *, look_around: bool = False) -> Imported:
    """Read settings from a .toml, .json or .yaml of sd-scripts, kohya_ss, OneTrainer, lora-scripts
    or ours, from OneTrainer's concepts, or from a LoRA (.safetensors).

    With `look_around` a file that it names is read, too; not for what a stranger has sent.

    Raises `Refused`: code "unreadable_config" for a damaged file, "no_settings" for one that holds
    none.
    """
    path = Path(path)
    if path.suffix.lower() == ".safetensors":
        taking, source = _from_lora(*read_header(path))
    elif is_concepts(path) and are_concepts(found := _json(_text(path))):
        taking, source = Taking({}), "OneTrainer's concepts"
        _take_concepts(taking, found, path.name, beside=path.parent if look_around else None)
    else:
        nested = read_mapping(path)
        taking, source = _from_config(nested, path if look_around else None)
    settings = keep_valid(taking)
    if path.suffix.lower() == ".safetensors":
        settings = _without_places(settings, taking)
    if not settings.keys() - taking.assumed:
        first = (
            f" The first of {len(taking.left_out)} things in it: {taking.left_out[0].key}"
            f" ({taking.left_out[0].reason.rstrip('.')})."
            if taking.left_out
            else ""
        )
        raise Refused(
            f"{path.name} holds no settings that can be used for training a LoRA.{first}",
            code="no_settings",
        )
    return Imported(
        settings, taking.left_out, source, tuple(sorted(taking.assumed & settings.keys()))
    )


def _without_places(settings: dict[str, Any], taking: Taking) -> dict[str, Any]:
    """Leave out what no LoRA has to say: it may come from anybody, and name folders, servers, and
    files to be replaced.
    """
    held = held_names()
    for name in [name for name in settings if name not in held]:
        taking.leave(
            taking.origin[name], settings[name], "names and places are not taken over from a LoRA"
        )
    return {name: value for name, value in settings.items() if name in held}


def _concepts_of(nested: Mapping[str, Any], path: Path | None) -> tuple[Any, str, Path | None]:
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
    return (_json(_text(file)), file.name, file.parent) if file else (None, "", None)


def _from_config(nested: dict[str, Any], path: Path | None = None) -> tuple[Taking, str]:
    """Read a config as its program writes it; `path` where files that it names may be read."""
    if "training_method" in nested and "model_type" in nested:
        taking = onetrainer.to_kohya(nested)
        translate(taking, complete=False)
        found, source, beside = _concepts_of(nested, path)
        if are_concepts(found):
            _take_concepts(taking, found, source, beside=beside)
        else:
            taking.leave(
                "concept_file_name",
                nested.get("concept_file_name"),
                f"{NOT_NEEDED}: give your folders of pictures",
            )
        onetrainer.use_its_names(taking)
        taking.assumed |= onetrainer.assumed(nested) & taking.settings.keys()
        return taking, "OneTrainer's settings"
    if (
        any(key in nested for key in ("datasets", "general"))
        and not COMPLETE_MARKS & flattened(nested).keys()
    ):
        taking = Taking({})
        _datasets(taking, nested)
        translate(taking, complete=False)
        return taking, "kohya's dataset config"
    if isinstance(nested.get("metadata"), Mapping) and isinstance(
        nested.get("data"), Mapping
    ):  # a template of lora-scripts
        nested = {key: value for key, value in nested.items() if key != "metadata"}
    sets = {key: nested[key] for key in ("general", "datasets") if key in nested}
    values = flattened({key: value for key, value in nested.items() if key not in sets})
    if GUI_MARKS & values.keys():
        taking, source = _from_gui(values), "kohya_ss settings"
    elif (OURS_ALONE & values.keys()) and not {"network_dim", "network_module"} & values.keys():
        return _from_ours(values), IN_OUR_NAMES
    else:
        taking, source = (
            _from_lora_scripts(values),
            (
                "lora-scripts settings"
                if LORA_SCRIPTS_MARKS & values.keys()
                else "kohya's sd-scripts settings"
            ),
        )
    if sets:
        _datasets(taking, sets)
    if (config := taking.take("dataset_config")) is not None:
        taking.leave("dataset_config", config, "it is a file of its own: import it, too")
    translate(
        taking,
        complete=source == "kohya_ss settings" or bool(COMPLETE_MARKS & taking.values.keys()),
    )
    return taking, source


def _from_ours(values: Mapping[str, Any]) -> Taking:
    """Ours, or lora-scripts' YAML: names are ours or plain aliases."""
    taking = Taking(values)
    taking.values |= read_resolutions(taking.values)
    known = {setting.name for setting in all_settings()}
    for key, value in sorted(
        taking.values.items(), key=lambda item: item[0] in KOHYA_NAMES
    ):  # ours first: they win over aliases
        if key not in known and key not in KOHYA_NAMES:
            taking.leave(key, value, why_not(key, known=known))
        elif (name := KOHYA_NAMES.get(key, key)) not in taking.settings:
            taking.set(name, value, key)
        else:
            taking.leave(key, value, f"{name} is given, too, and counts")
    if (
        "output_dir" in taking.settings
        and "output_name" not in taking.settings
        and (name := name_for(taking.settings, None))
    ):
        taking.set("output_name", name, "output_name (left out)")
        taking.assumed = {"output_name"}
    return taking


def our_settings(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return those of some settings that are valid, by our names, and the others with the
    reason.
    """
    taking = _from_ours(values)
    return keep_valid(taking), taking.left_out


def name_for(values: Mapping[str, Any], path: Path | None) -> str:
    """Name a LoRA whose settings give it none: after the last part of the output folder, as
    lora-scripts does, else after the settings file; "" where neither can be a name.
    """
    folder = re.split(r"[\\/]", str(in_our_names(values).get("output_dir") or "").rstrip("\\/ "))[
        -1
    ]
    for name in ("" if folder.lower() in _SHARED_FOLDERS else folder, path.stem if path else ""):
        with contextlib.suppress(Refused):
            return check_name(name)
    return ""


def _text(path: Path) -> str:
    try:
        return (content_of(path, most_bytes=LARGEST_BYTES) or b"").decode("utf-8-sig", "replace")
    except OSError as error:
        raise Refused(
            f"The settings file {path} cannot be read: {error.strerror or error}.",
            code="unreadable_config",
        ) from error


def _take_concepts(taking: Taking, found: Any, source: str, *, beside: Path | None) -> None:
    """OneTrainer's concepts: the first folder, the others with their repeats, and what they ask
    for.
    """
    concepts, unused = concepts_in(found, source, beside=beside)
    first, *more = concepts
    taking.set("train_data_dir", str(first.path), "path")
    taking.set("repeats", first.repeats, "balancing")
    if more:
        taking.set(
            "extra_data_dirs",
            "\n".join(f"{concept.repeats} x {concept.path}" for concept in more),
            "path",
        )
    for name, value in {
        name: value for concept in reversed(concepts) for name, value in concept.settings.items()
    }.items():
        taking.set(name, value)
    for concept in concepts:
        if concept.captions != "sample":
            taking.leave(
                f"{concept.name}: prompt_source",
                concept.captions,
                "give the file of concepts itself as Pictures",
            )
        if concept.deep:
            taking.leave(
                f"{concept.name}: include_subdirectories",
                True,
                "give the file of concepts itself as Pictures",
            )
        for key, value, reason in concept.left_out:
            taking.leave(f"{concept.name}: {key}", value, reason)
    for sentence in unused:
        taking.leave(
            "concept",
            sentence.partition(" of ")[0].removeprefix("The concept "),
            sentence.partition("left out: ")[2].rstrip("."),
        )


# --- kohya_ss and lora-scripts --------------------------------------------------------------------


def _from_gui(values: Mapping[str, Any]) -> Taking:  # noqa: C901
    """Bring what kohya_ss' page saves into sd-scripts' names, as its Start button does."""
    taking = Taking(values)
    ours = taking.values
    for theirs, name in (
        ("optimizer", "optimizer_type"),
        ("max_resolution", "resolution"),
        ("lora_network_weights", "network_weights"),
        ("vae_path", "vae"),
    ):
        if (value := taking.take(theirs)) is not None:
            ours.setdefault(name, value)
    _gui_network(taking)
    epoch = taking.take("epoch")
    if (
        is_off(ours.get("max_train_epochs"))
        and is_off(ours.get("max_train_steps"))
        and not is_off(epoch)
    ):
        ours["max_train_epochs"] = epoch
    if is_off(ours.get("lr_scheduler_num_cycles")) and not is_off(epoch):
        ours["lr_scheduler_num_cycles"] = epoch
    if is_off(ours.get("lr_warmup_steps")) and (percent := number(taking.take("lr_warmup"))):
        ours["lr_warmup_steps"] = percent / 100
    taking.take("lr_warmup")
    unet, encoder = number(ours.get("unet_lr")) or 0, number(ours.get("text_encoder_lr")) or 0
    for key, rate, other, flag in (
        ("unet_lr", unet, encoder, "text_encoder"),
        ("text_encoder_lr", encoder, unet, "unet"),
    ):
        if rate == 0:
            ours.pop(key, None)
            if other:
                ours[f"network_train_{flag}_only"] = True
    _gui_noise(taking)
    for key in (
        "seed",
        "clip_skip",
        "max_timestep",
        "min_timestep",
        "scale_weight_norms",
        "network_dropout",
    ):
        if is_off(ours.get(key)):
            ours.pop(key, None)
    _additional(taking)
    return taking


def _gui_network(taking: Taking) -> None:
    kind = str(taking.take("LoRA_type", "Standard"))
    module, algorithm = GUI_NETWORKS.get(
        kind.lower(),
        (
            ("lycoris.kohya", kind.partition("/")[2].lower())
            if kind.lower().startswith("lycoris/")
            else (kind, "")
        ),
    )
    given = {key: value for key in NETWORK_KEYS if (value := taking.take(key)) is not None}
    preset = taking.take("LyCORIS_preset")
    if module == "lycoris.kohya":
        given = {**given, "algo": algorithm, "preset": preset or "full"}
        blocks = [key for key in given if "block_" in key or key.endswith("_lr_weight")]
    else:
        blocks = []
        if kind.lower() not in ("kohya locon", "kohya loha", "kohya lokr"):
            blocks = [key for key in ("conv_dim", "conv_alpha") if key in given]
        blocks += [
            key
            for key in ("factor", "unit", "train_on_input", "use_cp", "constrain")
            if key in given
        ]
    for key in blocks:  # what the page's other kinds of LoRA have
        given.pop(key)
    if given.get("algo") not in (None, "lokr"):
        given.pop("factor", None)
    for key in ("unit", "train_on_input", "constrain"):
        given.pop(key, None)
    taking.values["network_module"] = module
    taking.values["network_args"] = {
        key: value for key, value in given.items() if not is_off(value)
    }


def _gui_noise(taking: Taking) -> None:
    kind = str(taking.take("noise_offset_type", "Original"))
    unused = (
        ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale")
        if kind == "Multires"
        else ("multires_noise_iterations", "multires_noise_discount")
    )
    for key in unused:
        taking.drop(key, f"{NOT_NEEDED}: the file's kind of noise is {kind}")


def _additional(taking: Taking) -> None:
    """Read "--name value --flag" of the page's last field as further settings."""
    text = taking.take("additional_parameters")
    if not isinstance(text, str):
        return
    if len(text) > LONGEST_ARGUMENTS:
        return taking.leave(
            "additional_parameters",
            f"{text[:40]} …",
            f"only {LONGEST_ARGUMENTS} characters are read",
        )
    for name, value in re.findall(r"--([A-Za-z0-9_]+)(?:[ =]+((?:(?!--)\S+ ?)+))?", text):
        value = value.strip()
        taking.values[name] = (
            True
            if not value
            else value.split()
            if name.endswith("_args")
            else clean(value.strip("\"'"))
        )


def _from_lora_scripts(values: Mapping[str, Any]) -> Taking:
    """Bring what lora-scripts' page saves into sd-scripts' names; a file of sd-scripts stays as it
    is.
    """
    taking = Taking(values)
    ours, given = taking.values, arguments(taking.take("network_args"))
    given.update(arguments(taking.take("network_args_custom")))
    if ours.get("network_module") == "lycoris.kohya":
        given.setdefault("algo", taking.take("lycoris_algo", "locon"))
        given.update(
            {
                key: value
                for key in ("conv_dim", "conv_alpha", "dropout", "train_norm")
                if (value := taking.take(key)) is not None
            }
        )
        if (factor := taking.take("lokr_factor")) is not None:
            given["factor"] = factor
    elif ours.get("network_module") is not None:
        given.update(
            {
                key: value
                for key in ("conv_dim", "conv_alpha")
                if (value := taking.take(key)) is not None
            }
        )
    weights = {
        key: value
        for key in ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold")
        if (value := taking.take(key)) is not None
    }
    given.update(weights if taking.take("enable_block_weights", True) is not False else {})
    if given:
        ours["network_args"] = given
    optimizer = {
        **arguments(taking.take("optimizer_args")),
        **arguments(taking.take("optimizer_args_custom")),
    }
    optimizer.update(
        {
            name.removeprefix("prodigy_"): value
            for name in ("prodigy_d0", "prodigy_d_coef")
            if (value := taking.take(name)) is not None
        }
    )
    if optimizer:
        ours["optimizer_args"] = optimizer
    return taking


# --- Data sets ------------------------------------------------------------------------------------


def _datasets(taking: Taking, nested: Mapping[str, Any]) -> None:  # noqa: C901
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
    found, sides = _same_folders(taking, found)
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
                _regularisation(taking, folder)
            elif folder is not None:
                folders.append((str(folder), repeats))
            if "batch_size" in values:
                values["train_batch_size"] = values.pop("batch_size")
            if isinstance(values.get("resolution"), (list, tuple)):
                values["resolution"] = ",".join(map(str, values["resolution"]))
            for key, value in values.items():
                if is_reg is not True and first.setdefault(key, value) != value:
                    taking.leave(
                        f"datasets[{at}] {key}",
                        value,
                        f"all folders are trained alike: as the first one says, {first[key]}",
                    )
    for key in [key for key in nested if key not in ("general", "datasets")]:
        taking.values[key] = nested[key]
    taking.values.update(
        {
            "enable_bucket": False,
            **{
                key: cleaned
                for key, value in first.items()
                if (cleaned := clean(value)) is not None
            },
        }
    )
    if sides:
        taking.values["extra_resolutions"] = ", ".join(map(str, sides))
    if folders:
        (taking.values["train_data_dir"], repeats), *more = folders
        taking.values["num_repeats"] = repeats
        if more:
            taking.values["extra_data_dirs"] = "\n".join(
                f"{number(count) or 1:g} x {folder}" for folder, count in more
            )


def _same_folders(
    taking: Taking, found: list[Mapping[str, Any]]
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
                taking.leave(
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


def _regularisation(taking: Taking, folder: Any) -> None:
    if taking.values.setdefault("reg_data_dir", folder) != folder:
        taking.leave(
            "image_dir", folder, "regularisation pictures lie in one folder here: put them together"
        )


# --- LoRAs ----------------------------------------------------------------------------------------


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Return a safetensors file's metadata and its tensors' shapes without reading them; raises
    `Refused` (code "unreadable_config").

    An upload brings the header alone, so the tensors need not be there.
    """
    try:
        with open(path, "rb") as file:
            header = parse_header(file)
    except (OSError, ValueError) as error:
        raise Refused(
            f"The LoRA {Path(path).name} cannot be read: {error}.", code="unreadable_config"
        ) from error
    return dict(header.metadata), header.shapes


def _from_lora(metadata: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> tuple[Taking, str]:
    """Read what a LoRA says of its own training: all of it where it is ours, else sd-scripts' ss_*
    keys and what the layers' names show.
    """
    if (
        isinstance(ours := _json(metadata.get(OUR_SETTINGS)), dict)
        and ours.keys() & TrainConfig.__dataclass_fields__.keys()
    ):
        taking = _from_ours(ours)
        _facts(taking, metadata)
        return taking, "a LoRA of ours"
    if not any(key.startswith("ss_network") or key == "ss_learning_rate" for key in metadata):
        raise Refused(
            "This LoRA does not say how it was trained: it holds no training metadata (ss_*). Ask"
            " its maker, or choose another.",
            code="no_settings",
        )
    said = {name: value for key, value in metadata.items() if (name := _plain_name(key))}
    if len(said) > MOST_NOTES:
        raise Refused(
            f"This LoRA holds {len(said):,} notes of its training; no trainer writes more than"
            f" {MOST_NOTES:,}.",
            code="no_settings",
        )
    long = {
        name for name, value in said.items() if len(value) > MOST_NOTE and name not in _LONG_NOTES
    }
    taking = Taking({name: value for name, value in said.items() if name not in long})
    for name in sorted(long):
        taking.leave(
            f"ss_{name}",
            said[name][:40] + "…",
            f"it has {len(said[name]):,} characters, which is no setting",
        )
    ours = taking.values
    _network_of(taking, shapes)
    ours.update(_optimizer_of(taking.take("optimizer")))
    sets = _json(taking.take("datasets"))
    for dataset in sets[:MOST_FOLDERS] if isinstance(sets, list) else []:
        _dataset_of(taking, dataset)
    _run_of(taking, metadata)
    version = str(metadata.get("ss_base_model_version", ""))
    ours["sdxl"] = version.startswith("sdxl")
    if version.endswith("_v") or metadata.get("modelspec.prediction_type") == "v":
        ours["v_parameterization"] = True
    if timesteps := re.fullmatch(r"(\d+),(\d+)", metadata.get("modelspec.timestep_range", "")):
        ours["min_timestep"], ours["max_timestep"] = timesteps.groups()
    if metadata.get("modelspec.trigger_phrase"):
        ours["trigger_word"] = metadata["modelspec.trigger_phrase"]
    _facts(taking, metadata)
    translate(taking, complete="ss_learning_rate" in metadata)
    return taking, "the metadata of a LoRA"


_RENAMED = {
    "batch_size_per_device": "train_batch_size",
    "debiased_estimation": "debiased_estimation_loss",
}
_RUN = set(
    "session_id training_started_at training_finished_at output_name num_train_images"
    " num_validation_images num_reg_images num_batches_per_epoch epoch steps total_batch_size"
    " sd_model_name sd_model_hash new_sd_model_hash vae_name vae_hash new_vae_hash"
    " sd_scripts_commit_hash base_model_version tag_frequency bucket_info training_comment"
    " loss_average num_epochs max_train_steps dataset_dirs reg_dataset_dirs dim_from_weights".split()  # noqa: E501
)


def _plain_name(key: str) -> str:
    """The name of the argument behind a metadata key; "" for what is no setting."""
    name = key.removeprefix("ss_")
    return "" if name == key or name in _RUN else _RENAMED.get(name, name)


def _network_of(taking: Taking, shapes: dict[str, tuple[int, ...]]) -> None:
    """sd-scripts does not write which parts it trained; the layers' names show it."""
    given = _json(taking.values.get("network_args"))
    if isinstance(given, dict):
        taking.values["network_args"] = given
    encoder, unet = (
        any(name.startswith(start) for name in shapes) for start in ("lora_te", "lora_unet")
    )
    if shapes and (encoder or unet):
        taking.values.update(
            {} if encoder else {"network_train_unet_only": True},
            **({} if unet else {"network_train_text_encoder_only": True}),
        )
    ranks = [
        shape[0]
        for name, shape in shapes.items()
        if name.endswith("lora_down.weight") and len(shape) > 0
    ]
    if number(taking.values.get("network_dim")) is None and ranks:
        taking.values["network_dim"] = max(set(ranks), key=ranks.count)


def _optimizer_of(text: Any) -> dict[str, Any]:
    """Read "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))"."""
    found = re.fullmatch(r"([\w.]+)(?:\((.*)\))?", str(text or ""), re.DOTALL)
    if not found:
        return {}
    if len(found[2] or "") > MOST_LITERAL:
        return {"optimizer_type": found[1]}
    try:
        call = ast.parse(f"f({found[2] or ''})", mode="eval").body
        given = {
            keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg
        }
    except NO_LITERAL:
        given = {}
    return {"optimizer_type": found[1], **({"optimizer_args": given} if given else {})}


def _dataset_of(taking: Taking, dataset: Any) -> None:
    """A run with a dataset config tells of each of its data sets; as for a config, the first one
    counts.
    """
    if not isinstance(dataset, Mapping):
        return
    said = (
        "resolution",
        "enable_bucket",
        "min_bucket_reso",
        "max_bucket_reso",
        "batch_size_per_device",
    )
    values = {
        _RENAMED.get(key, key): dataset[key] for key in said if clean(dataset.get(key)) is not None
    }
    subsets = dataset.get("subsets")
    for subset in [
        item
        for item in (subsets if isinstance(subsets, list) else [])
        if isinstance(item, Mapping) and item.get("is_reg") is not True
    ][:1]:
        values.update(
            {
                key: value
                for key, value in subset.items()
                if key
                not in (
                    "img_count",
                    "num_repeats",
                    "image_dir",
                    "is_reg",
                    "class_tokens",
                    "metadata_file",
                )
                and clean(value) is not None
            }
        )
    for key, value in values.items():
        taking.values.setdefault(key, value)


def _run_of(taking: Taking, metadata: Mapping[str, str]) -> None:
    """How long it was: in epochs where it was whole ones, else in steps; and the repeats that all
    folders shared.
    """
    epochs, steps, batches = (
        number(metadata.get(f"ss_{name}"))
        for name in ("num_epochs", "max_train_steps", "num_batches_per_epoch")
    )
    accumulated = number(metadata.get("ss_gradient_accumulation_steps")) or 1
    if epochs and steps and batches and epochs * -(-batches // accumulated) == steps:
        taking.values["max_train_epochs"] = int(epochs)
    elif steps:
        taking.values["max_train_steps"] = int(steps)
    folders = _json(metadata.get("ss_dataset_dirs"))
    repeats = (
        {entry.get("n_repeats") for entry in folders.values() if isinstance(entry, Mapping)}
        if isinstance(folders, dict)
        else set()
    )
    if len(repeats) == 1:
        taking.values["num_repeats"] = repeats.pop()
    elif repeats:
        taking.leave(
            "ss_dataset_dirs",
            folders,
            "its folders had repeats of their own: name yours so, as in 10_cat",
        )


def _facts(taking: Taking, metadata: Mapping[str, str]) -> None:
    """List what the user has to see to: the checkpoint, a VAE, regularisation pictures, a name."""
    for key, reason in (
        ("ss_output_name", "a new LoRA needs a name of its own"),
        ("ss_sd_model_name", "it was trained on this checkpoint: load it, or one of its kind"),
        ("ss_vae_name", "it was trained with this VAE: load it, if you have it"),
    ):
        if (value := clean(metadata.get(key))) is not None:
            taking.leave(
                key, PurePath(str(value)).name if key != "ss_output_name" else value, reason
            )
    if number(metadata.get("ss_num_reg_images")):
        taking.leave(
            "ss_reg_dataset_dirs",
            _json(metadata.get("ss_reg_dataset_dirs")) or metadata["ss_num_reg_images"],
            "it had regularisation pictures: choose a folder of your own under Regularisation"
            " pictures",
        )


def _json(text: Any) -> Any:
    try:
        if isinstance(text, str):
            check_json(text)
        found = json.loads(text) if isinstance(text, str) else text
        check_extent(found, most_values=MOST_IN_METADATA)
        return found
    except (ValueError, RecursionError):
        return None
