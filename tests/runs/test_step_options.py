"""Settings as the steps take them."""

from lora_trainer.dataset.caption_augmentation import CaptionAugmentation
from lora_trainer.lora.adapter_layers import AdapterSpec
from lora_trainer.lora.target_layers import LayerSettings
from lora_trainer.runs.step_options import adapter_spec, caption_augmentation, layer_settings
from lora_trainer.settings.config import TrainConfig


def test_settings_as_the_steps_take_them():
    config = TrainConfig.parse(
        dict(
            lora_rank=4,
            lora_alpha=2,
            lora_type="lokr",
            lora_dropout=0.1,
            rank_dropout=0.2,
            module_dropout=0.3,
            rslora=True,
            lokr_factor=8,
            conv_rank=3,
            text_encoder_alpha=1.5,
            lora_blocks="MID",
            lora_targets="all",
            train_text_encoder=True,
            train_unet=False,
        )
    )
    assert adapter_spec(config) == AdapterSpec("lokr", True, 8, 0.1, 0.2, 0.3)
    assert layer_settings(config) == LayerSettings(
        targets="all",
        rank=4,
        alpha=2.0,
        conv_rank=3,
        text_encoder_alpha=1.5,
        blocks="MID",
        unet=False,
        text_encoder=True,
    )
    varied = TrainConfig.parse(
        dict(
            shuffle_caption=True,
            keep_tokens=2,
            keep_tokens_separator="|",
            caption_dropout_rate=0.1,
            caption_tag_dropout_rate=0.2,
            trigger_only_rate=0.3,
            trigger_word="zib",
        )
    )
    assert caption_augmentation(varied) == CaptionAugmentation(True, 2, "|", 0.1, 0.2, 0.3, "zib")
