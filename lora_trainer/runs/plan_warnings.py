"""What a person should know of a run as a whole before it begins, as sentences.

Settings without effect, batches, memory, the output file, a LoRA that is trained further. What is
about pictures and captions is in picture_warnings; what would make a run fail is refused elsewhere.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..base.contracts import ModelStatus
from ..dataset.buckets import Bucket
from ..dataset.sample import Sample
from ..lora.load import LoraFile
from ..lora.save import CARD_FAMILIES
from ..settings.config import TrainConfig
from ..settings.remedies import ActionableWarning, Remedy, set_to
from ..settings.rules import resolutions_of
from ..training.batches import bucket_counts
from .output_files import same_names_elsewhere

MOST_STEPS_PER_PICTURE = 300
LARGE_CACHE_BYTES = 4_000_000_000
SMALLEST_SHARE = 0.75  # of the side that a checkpoint was made for
SIZES = {"sdxl": 1024}  # of families, where the checkpoint does not say it


def model_warnings(config: TrainConfig, model: ModelStatus) -> list[str]:
    """Return the warnings about settings that do not suit the loaded checkpoint."""
    size = model.size_px or SIZES.get(model.family, 0)
    if not model.trainable or config.resolution >= SMALLEST_SHARE * size:
        return []
    family = CARD_FAMILIES.get(model.family, model.family)
    return [
        ActionableWarning(
            f"This {family} checkpoint was made for pictures of {size} px; what it learns"
            f" from {config.resolution} px is coarse and cut off.",
            set_to("resolution", size),
        )
    ]


def setting_warnings(config: TrainConfig, total_steps: int) -> list[str]:
    """Return the warnings about settings that have no effect, or little."""
    warnings: list[str] = []
    if config.lr_warmup_steps >= total_steps:
        sentence = (
            f"The warm-up takes {config.lr_warmup_steps} steps and the run {total_steps}: the"
            " learning rate never gets to its full height."
        )
        warnings.append(ActionableWarning(sentence, set_to("lr_warmup_steps", total_steps // 10)))
    elif config.lr_warmup_steps > total_steps // 2:
        sentence = (
            f"The warm-up takes {config.lr_warmup_steps} of {total_steps} steps: the learning rate"
            " is at its full height for the rest only."
        )
        warnings.append(ActionableWarning(sentence, set_to("lr_warmup_steps", total_steps // 10)))
    if (config.conv_rank or config.conv_alpha) and config.lora_targets != "all":
        sentence = "Rank and alpha of convolutions change nothing unless Layers is all."
        warnings.append(ActionableWarning(sentence, set_to("lora_targets", "all")))
    if config.train_text_encoder and not config.text_encoder_lr:
        sentence = "The text encoder's learning rate is 0: it learns nothing."
        remedy = Remedy("Do not train the text encoder", {"train_text_encoder": False})
        warnings.append(ActionableWarning(sentence, remedy))
    return warnings


def resolution_warnings(config: TrainConfig, samples: Sequence[Sample]) -> list[str]:
    """Say in which sizes pictures are learned, where that is unusual."""
    resolutions = resolutions_of(config)
    if len(resolutions) > 1:
        return [_in_several(config, samples, resolutions)]
    if resolutions[0] % 8 == 0:
        return []
    return [
        f"The resolution is {resolutions[0]} px, the side of a square. Two numbers such as "
        "512x768, or 512,768 in a file of kohya's, are read as a "
        "rectangle of that area; to learn in two sizes, write one into More resolutions."
    ]


def _in_several(config: TrainConfig, samples: Sequence[Sample], resolutions: list[int]) -> str:
    training = [sample for sample in samples if sample.role == "train"]
    count = len({sample.picture.path for sample in training})
    listed = ", ".join(map(str, resolutions[:-1])) + f" and {resolutions[-1]}"
    sentence = f"Each picture is learned in {listed} px: {count} pictures count as {len(training)}."
    sizes = Counter((sample.picture.path, sample.bucket) for sample in training)
    if alike := sum(times - 1 for times in sizes.values()):
        why = f"sides are multiples of the bucket step, {config.bucket_step} px"
        if config.bucket_no_upscale:
            why = "small pictures are not enlarged"
        sentence += f" Of them, {alike} are of the same size as in another resolution: {why}."
    if any(sample.role == "validation" for sample in samples):
        sentence += " The pictures for validation are measured in the first."
    return sentence


def cache_warnings(config: TrainConfig, needed_bytes: int, *, resolutions: int) -> list[str]:
    """Say so where the encoded samples take much of the main memory, and what makes it so much."""
    if needed_bytes <= LARGE_CACHE_BYTES:
        return []
    causes = []
    if config.mirror:
        causes.append("Mirror doubles it")
    if config.color_jitter:
        causes.append("Colour jitter makes it fourfold")
    if resolutions > 1:
        causes.append("each picture is kept in every resolution")
    why = f" ({', '.join(causes)})" if causes else ""
    gigabytes = f"{needed_bytes / 1e9:.1f} GB"
    return [f"The encoded pictures will take about {gigabytes} of main memory{why}."]


def batch_warnings(
    config: TrainConfig,
    buckets: Sequence[Bucket],
    repeats: Sequence[int],
    *,
    pictures: int,
    total_steps: int,
    steps_per_epoch: int,
) -> list[str]:
    """Return the warnings about how `pictures` to learn from are put into steps.

    `buckets` and `repeats` have one entry for each sample, with 0 repeats for validation.
    """
    return _small_batches(config, buckets, repeats) + _too_many_steps(
        config, total_steps, steps_per_epoch, pictures=pictures
    )


def _small_batches(
    config: TrainConfig, buckets: Sequence[Bucket], repeats: Sequence[int]
) -> list[str]:
    """Say so where fewer than half of the pictures are in buckets that fill a batch."""
    counts = bucket_counts(buckets, repeats)
    total = counts.total()
    filling = {
        size: sum(count for count in counts.values() if count >= size)
        for size in range(1, config.batch_size + 1)
    }
    if 2 * filling[config.batch_size] >= total:
        return []
    remedies = [set_to("batch_size", max(size for size in filling if 2 * filling[size] >= total))]
    if config.enable_bucket and total >= config.batch_size:
        remedies.append(Remedy("Crop all to squares", {"enable_bucket": False}))
    return [
        ActionableWarning(
            f"Batch size {config.batch_size}: {total - filling[config.batch_size]} of {total}"
            " pictures (repeats included) are in buckets that hold fewer, so their batches are"
            " smaller.",
            *remedies,
        )
    ]


def _too_many_steps(
    config: TrainConfig, total_steps: int, steps_per_epoch: int, *, pictures: int
) -> list[str]:
    most = MOST_STEPS_PER_PICTURE * pictures
    if total_steps <= most:
        return []
    epochs = 0 if config.max_train_steps else most // steps_per_epoch
    remedy = set_to("epochs", epochs) if epochs else set_to("max_train_steps", most)
    return [
        ActionableWarning(
            f"{total_steps:,} steps for {pictures} picture{'s' if pictures > 1 else ''} are more"
            f" than {MOST_STEPS_PER_PICTURE} each: long before the end they are learned by heart.",
            remedy,
        )
    ]


def output_warnings(output_file: Path, lora_dir: Path, *, is_resumed: bool) -> list[str]:
    """Say so where a prompt's tag would not find the LoRA, or could mean another file."""
    moved = next(same_names_elsewhere(output_file, lora_dir), None) if is_resumed else None
    if moved:
        return [
            f"{moved} is an earlier file of this run, and {output_file.stem} in a prompt may mean"
            f" either: move it out of {lora_dir}."
        ]
    if output_file.resolve().is_relative_to(lora_dir.resolve()):
        return []
    return [
        f"{output_file.parent} is outside the LoRA folder {lora_dir}: the tag works when the file"
        " is copied there."
    ]


def init_lora_warnings(config: TrainConfig, init_lora: LoraFile | None) -> list[str]:
    """Say where a LoRA that is trained further decides, instead of the settings."""
    if init_lora is None:
        return []
    name, kind = init_lora.path.name, init_lora.kind
    warnings = [
        f"Going on from {name}: its rank {init_lora.rank}, alpha {init_lora.alpha:g} and layers"
        " are used, whatever the settings say."
    ]
    if kind != config.lora_type:
        warnings.append(f"{name} is a {kind}, and so will this be; Kind says {config.lora_type}.")
    if kind != "lora" and config.loraplus_lr_ratio != 1:
        warnings.append(f"{name} is a {kind}, which has no halves: LoRA+ ratio is without effect.")
    if init_lora.is_dora != config.use_dora:
        warnings.append(
            f"{name} is {'a' if init_lora.is_dora else 'no'} DoRA, and so will this be; DoRA is"
            f" switched {'on' if config.use_dora else 'off'}."
        )
    return warnings + _trained_part_warnings(config, init_lora)


def _trained_part_warnings(config: TrainConfig, init_lora: LoraFile) -> list[str]:
    name = init_lora.path.name
    has_text_encoder = init_lora.text_encoder_layers > 0
    has_unet = init_lora.text_encoder_layers < len(init_lora.ranks)
    warnings = []
    if has_text_encoder and not config.train_text_encoder and config.text_encoder_lr:
        warnings.append(
            f"{name} has layers of the text encoder, so that learns too, at"
            f" {config.text_encoder_lr:g}; 0 as its learning rate keeps it as it is."
        )
    if not has_text_encoder and config.train_text_encoder:
        warnings.append(f"{name} has no layers of the text encoder, so that does not learn.")
    if has_unet and not config.train_unet:
        warnings.append(
            f"{name} has layers of the UNet, so that learns too, although it is switched off."
        )
    if not has_unet and config.train_unet:
        warnings.append(f"{name} has no layers of the UNet, so that does not learn.")
    return warnings
