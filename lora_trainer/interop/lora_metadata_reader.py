"""Settings from the metadata of a LoRA: ours where it holds them, else sd-scripts' ss_* keys. Only
the header is read.
"""

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from ..base.errors import ErrorCode, Refused
from ..base.tensor_files import check_json, parse_header
from ..base.text import number
from ..settings.config import TrainConfig
from ..settings.files import check_extent
from ..settings.setting import WrittenSettings
from .conversion import MOST_LITERAL, NO_LITERAL, Conversion, parse_text
from .kohya import translate
from .kohya_datasets import MOST_FOLDERS
from .kohya_names import OUR_SETTINGS_KEY
from .our_settings import from_our_names

MOST_NOTES = 1000  # keys in which a LoRA describes its training
MOST_NOTE = 20_000  # characters of one of them
_LONG_NOTES = {"datasets"}  # those that list the tags of pictures and may be longer
MOST_IN_METADATA = 200_000  # values in one JSON text of it


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
            f"The LoRA {Path(path).name} cannot be read: {error}.", code=ErrorCode.UNREADABLE_CONFIG
        ) from error
    return dict(header.metadata), header.shapes


def from_lora(
    metadata: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> tuple[Conversion, str]:
    """Read what a LoRA says of its own training: all of it where it is ours, else sd-scripts' ss_*
    keys and what the layers' names show.
    """
    our_settings = read_json_text(metadata.get(OUR_SETTINGS_KEY))
    if (
        isinstance(our_settings, dict)
        and our_settings.keys() & TrainConfig.__dataclass_fields__.keys()
    ):
        conversion = from_our_names(our_settings)
        _facts(conversion, metadata)
        return conversion, "a LoRA of ours"
    if not any(key.startswith("ss_network") or key == "ss_learning_rate" for key in metadata):
        raise Refused(
            "This LoRA does not say how it was trained: it holds no training metadata (ss_*). Ask"
            " its maker, or choose another.",
            code=ErrorCode.NO_SETTINGS,
        )
    conversion = _training_notes(metadata)
    _network_of(conversion, shapes)
    conversion.values.update(_optimizer_of(conversion.take("optimizer")))
    sets = read_json_text(conversion.take("datasets"))
    for dataset in sets[:MOST_FOLDERS] if isinstance(sets, list) else []:
        _dataset_of(conversion, dataset)
    _run_of(conversion, metadata)
    _model_of(conversion, metadata)
    _facts(conversion, metadata)
    translate(conversion, complete="ss_learning_rate" in metadata)
    return conversion, "the metadata of a LoRA"


def _training_notes(metadata: Mapping[str, str]) -> Conversion:
    """Return sd-scripts' arguments in the ss_* keys. Raises `Refused` for more than there can be;
    single ones that are too long are left out.
    """
    said = {name: value for key, value in metadata.items() if (name := _plain_name(key))}
    if len(said) > MOST_NOTES:
        raise Refused(
            f"This LoRA holds {len(said):,} notes of its training; no trainer writes more than"
            f" {MOST_NOTES:,}.",
            code=ErrorCode.NO_SETTINGS,
        )
    too_long = {
        name for name, value in said.items() if len(value) > MOST_NOTE and name not in _LONG_NOTES
    }
    conversion = Conversion({name: value for name, value in said.items() if name not in too_long})
    for name in sorted(too_long):
        conversion.skip(
            f"ss_{name}",
            said[name][:40] + "…",
            f"it has {len(said[name]):,} characters, which is no setting",
        )
    return conversion


def _model_of(conversion: Conversion, metadata: Mapping[str, str]) -> None:
    """Take over what the metadata says of the base model, the timesteps and the trigger word."""
    values = conversion.values
    version = str(metadata.get("ss_base_model_version", ""))
    values["sdxl"] = version.startswith("sdxl")
    if version.endswith("_v") or metadata.get("modelspec.prediction_type") == "v":
        values["v_parameterization"] = True
    if timesteps := re.fullmatch(r"(\d+),(\d+)", metadata.get("modelspec.timestep_range", "")):
        values["min_timestep"], values["max_timestep"] = timesteps.groups()
    if metadata.get("modelspec.trigger_phrase"):
        values["trigger_word"] = metadata["modelspec.trigger_phrase"]


_RENAMED = {
    "batch_size_per_device": "train_batch_size",
    "debiased_estimation": "debiased_estimation_loss",
}


_RUN = set(  # notes of one run, which are no settings
    (
        "session_id training_started_at training_finished_at output_name num_train_images"
        " num_validation_images num_reg_images num_batches_per_epoch epoch steps"
        " total_batch_size sd_model_name sd_model_hash new_sd_model_hash vae_name vae_hash"
        " new_vae_hash sd_scripts_commit_hash base_model_version tag_frequency bucket_info"
        " training_comment loss_average num_epochs max_train_steps dataset_dirs"
        " reg_dataset_dirs dim_from_weights"
    ).split()
)


def _plain_name(key: str) -> str:
    """The name of the argument behind a metadata key; "" for what is no setting."""
    name = key.removeprefix("ss_")
    return "" if name == key or name in _RUN else _RENAMED.get(name, name)


def _network_of(conversion: Conversion, shapes: dict[str, tuple[int, ...]]) -> None:
    """sd-scripts does not write which parts it trained; the layers' names show it."""
    given = read_json_text(conversion.values.get("network_args"))
    if isinstance(given, dict):
        conversion.values["network_args"] = given
    encoder, unet = (
        any(name.startswith(start) for name in shapes) for start in ("lora_te", "lora_unet")
    )
    if shapes and (encoder or unet):
        conversion.values.update(
            {} if encoder else {"network_train_unet_only": True},
            **({} if unet else {"network_train_text_encoder_only": True}),
        )
    ranks = [
        shape[0]
        for name, shape in shapes.items()
        if name.endswith("lora_down.weight") and len(shape) > 0
    ]
    if number(conversion.values.get("network_dim")) is None and ranks:
        conversion.values["network_dim"] = max(set(ranks), key=ranks.count)


def _optimizer_of(text: object) -> WrittenSettings:
    """Read "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))"."""
    found = re.fullmatch(r"([\w.]+)(?:\((.*)\))?", str(text or ""), re.DOTALL)
    if not found:
        return {}
    if len(found[2] or "") > MOST_LITERAL:
        return {"optimizer_type": found[1]}
    try:
        call = ast.parse(f"f({found[2] or ''})", mode="eval").body
        keywords = call.keywords if isinstance(call, ast.Call) else []
        given = {
            keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords if keyword.arg
        }
    except NO_LITERAL:
        given = {}
    return {"optimizer_type": found[1], **({"optimizer_args": given} if given else {})}


def _dataset_of(conversion: Conversion, dataset: object) -> None:
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
        _RENAMED.get(key, key): dataset[key]
        for key in said
        if parse_text(dataset.get(key)) is not None
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
                and parse_text(value) is not None
            }
        )
    for key, value in values.items():
        conversion.values.setdefault(key, value)


def _run_of(conversion: Conversion, metadata: Mapping[str, str]) -> None:
    """How long it was: in epochs where it was whole ones, else in steps; and the repeats that all
    folders shared.
    """
    epochs, steps, batches = (
        number(metadata.get(f"ss_{name}"))
        for name in ("num_epochs", "max_train_steps", "num_batches_per_epoch")
    )
    accumulated = number(metadata.get("ss_gradient_accumulation_steps")) or 1
    if epochs and steps and batches and epochs * -(-batches // accumulated) == steps:
        conversion.values["max_train_epochs"] = int(epochs)
    elif steps:
        conversion.values["max_train_steps"] = int(steps)
    folders = read_json_text(metadata.get("ss_dataset_dirs"))
    repeats = (
        {entry.get("n_repeats") for entry in folders.values() if isinstance(entry, Mapping)}
        if isinstance(folders, dict)
        else set()
    )
    if len(repeats) == 1:
        conversion.values["num_repeats"] = repeats.pop()
    elif repeats:
        conversion.skip(
            "ss_dataset_dirs",
            folders,
            "its folders had repeats of their own: name yours so, as in 10_cat",
        )


def _facts(conversion: Conversion, metadata: Mapping[str, str]) -> None:
    """List what the user has to see to: the checkpoint, a VAE, regularisation pictures, a name."""
    for key, reason in (
        ("ss_output_name", "a new LoRA needs a name of its own"),
        ("ss_sd_model_name", "it was trained on this checkpoint: load it, or one of its kind"),
        ("ss_vae_name", "it was trained with this VAE: load it, if you have it"),
    ):
        if (value := parse_text(metadata.get(key))) is not None:
            conversion.skip(
                key, PurePath(str(value)).name if key != "ss_output_name" else value, reason
            )
    if number(metadata.get("ss_num_reg_images")):
        conversion.skip(
            "ss_reg_dataset_dirs",
            read_json_text(metadata.get("ss_reg_dataset_dirs")) or metadata["ss_num_reg_images"],
            "it had regularisation pictures: choose a folder of your own under Regularisation"
            " pictures",
        )


def read_json_text(text: object) -> Any:
    try:
        if isinstance(text, str):
            check_json(text)
        found = json.loads(text) if isinstance(text, str) else text
        check_extent(found, most_values=MOST_IN_METADATA)
        return found
    except (ValueError, RecursionError):
        return None
