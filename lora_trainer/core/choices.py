"""The settings as the steps take them: plain values for one purpose each; and those that contradict each other."""
import dataclasses
from typing import Any

from .adapters import Form, LayerChoice
from .config import TrainConfig
from .errors import Refused
from .variation import Variation


def layer_choice(config: TrainConfig) -> LayerChoice:
    """Return which layers are to learn, with what rank and alpha."""
    return _filled(LayerChoice, config, targets="lora_targets", rank="lora_rank", alpha="alpha", blocks="lora_blocks", unet="train_unet",
                   text_encoder="train_text_encoder")


def form_of(config: TrainConfig) -> Form:
    """Return what kind of adapter is built into each layer."""
    return _filled(Form, config, kind="lora_type", dropout="lora_dropout")


def _filled(made: type, config: TrainConfig, **called: str) -> Any:
    """Fill a dataclass from the settings of the same names, or as they are `called`; what is no setting keeps its default."""
    names = {field.name: called.get(field.name, field.name) for field in dataclasses.fields(made)}
    return made(**{name: getattr(config, setting) for name, setting in names.items() if hasattr(config, setting)})


def variation_of(config: TrainConfig) -> Variation:
    """Return how captions vary while training."""
    return Variation(config.shuffle_caption, config.keep_tokens, config.keep_tokens_separator, config.caption_dropout_rate, config.caption_tag_dropout_rate,
                     config.trigger_only_rate, config.trigger_word)


def check_choices(config: TrainConfig) -> None:
    """Raise `Refused` for the first settings that contradict each other."""
    contradictions = [
        (config.min_timestep >= config.max_timestep, "min_timestep",
         f"Training from timestep {config.min_timestep} to {config.max_timestep} leaves none. From must be lower than to."),
        (not (config.train_unet or config.train_text_encoder), "train_unet",
         "Neither the UNet nor the text encoder is to learn, so nothing would. Switch one of them on."),
        (config.enable_bucket and not config.bucket_no_upscale and config.bucket_min > config.resolution, "bucket_min",
         f"The shortest side, {config.bucket_min} px, is longer than the resolution, {config.resolution} px. Lower it, or set it to 0."),
        (config.enable_bucket and not config.bucket_no_upscale and 0 < config.bucket_max < config.resolution, "bucket_max",
         f"The longest side, {config.bucket_max} px, is shorter than the resolution, {config.resolution} px. Raise it, or set it to 0."),
        (config.zero_terminal_snr == "on" and config.prediction_type == "epsilon", "zero_terminal_snr",
         "Zero terminal SNR: a model that predicts noise learns nothing from pure noise. Set it to off, or The model predicts to v_prediction."),
        (config.lora_type == "lokr" and config.lokr_factor == 0, "lokr_factor", "LoKr factor: 0 is none. Use -1 for as evenly as possible, or 2 and more."),
        (config.trigger_only_rate > 0 and not config.trigger_word, "trigger_only_rate",
         "Captions are to be the trigger word alone at times, and there is none. Give a trigger word, or set the share to 0."),
        (config.caption_dropout_rate + config.trigger_only_rate > 1, "caption_dropout_rate",
         f"Captions are left out {config.caption_dropout_rate:.0%} of the times and the trigger word alone {config.trigger_only_rate:.0%}: more than all. Lower one of them."),
    ]
    for wrong, field, sentence in contradictions:
        if wrong:
            raise Refused(sentence, field=field, code="contradiction")
