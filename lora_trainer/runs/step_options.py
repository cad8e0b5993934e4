"""A run's settings as its steps take them: plain values for one purpose each. The config ends here;
what of it contradicts itself was refused before (settings/rules.py).
"""

from ..dataset.caption_augmentation import CaptionAugmentation
from ..lora.adapter_layers import AdapterSpec
from ..lora.target_layers import LayerSettings
from ..settings.config import TrainConfig
from ..training.encoded_dataset import EncodingOptions
from ..training.parameter_groups import RateChoice


def layer_settings(config: TrainConfig) -> LayerSettings:
    """Return which layers are to learn, with what rank and alpha."""
    return LayerSettings(
        targets=config.lora_targets,
        rank=config.lora_rank,
        alpha=config.alpha,
        attention_rank=config.attention_rank,
        attention_alpha=config.attention_alpha,
        feed_forward_rank=config.feed_forward_rank,
        feed_forward_alpha=config.feed_forward_alpha,
        conv_rank=config.conv_rank,
        conv_alpha=config.conv_alpha,
        text_encoder_rank=config.text_encoder_rank,
        text_encoder_alpha=config.text_encoder_alpha,
        blocks=config.lora_blocks,
        block_rates=config.block_learning_rates,
        unet=config.train_unet,
        text_encoder=config.train_text_encoder,
    )


def adapter_spec(config: TrainConfig) -> AdapterSpec:
    """Return what kind of adapter is built into each layer."""
    return AdapterSpec(
        kind=config.lora_type,
        rslora=config.rslora,
        lokr_factor=config.lokr_factor,
        dropout=config.lora_dropout,
        rank_dropout=config.rank_dropout,
        module_dropout=config.module_dropout,
        use_dora=config.use_dora,
    )


def rate_choice(config: TrainConfig) -> RateChoice:
    """Return which weights learn how fast."""
    return RateChoice(
        learning_rate=config.learning_rate,
        text_encoder_lr=config.text_encoder_lr,
        loraplus_lr_ratio=config.loraplus_lr_ratio,
        loraplus_text_encoder_lr_ratio=config.loraplus_text_encoder_lr_ratio,
        block_learning_rates=config.block_learning_rates,
    )


def caption_augmentation(config: TrainConfig) -> CaptionAugmentation:
    """Return how captions vary while training."""
    return CaptionAugmentation(
        config.shuffle_caption,
        config.keep_tokens,
        config.keep_tokens_separator,
        config.caption_dropout_rate,
        config.caption_tag_dropout_rate,
        config.trigger_only_rate,
        config.trigger_word,
        alternatives=config.caption_lines == "alternatives",
        wildcards=config.caption_wildcards,
    )


def encoding_options(config: TrainConfig, *, with_captions: bool) -> EncodingOptions:
    """Return what encoding makes of the samples."""
    return EncodingOptions(
        mirror=config.mirror,
        random_crop=config.random_crop,
        color_jitter=config.color_jitter,
        masks_from_alpha=config.masked_loss == "alpha",
        mask_floor=config.masked_loss_floor,
        with_captions=with_captions,
        seed=config.seed,
    )
