"""How much a run will take is what it takes."""

import dataclasses

import pytest
from PIL import Image

from lora_trainer.lora.adapters import Adapters
from lora_trainer.lora.target_layers import assign_ranks
from lora_trainer.runs.memory import estimate
from lora_trainer.runs.step_options import adapter_spec, encoding_options, layer_settings
from lora_trainer.settings.config import TrainConfig
from lora_trainer.training import encoded_dataset
from tests.support.plans import estimated, planned


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(lora_type="loha", lora_targets="all", conv_rank=2),
        dict(lora_type="lokr", lokr_factor=4),
        dict(train_text_encoder=True, text_encoder_rank=2),
        dict(train_unet=False, train_text_encoder=True),
    ],
)
def test_the_estimate_is_what_is_built(host, settings, changes):
    config = TrainConfig.parse({**settings, **changes})
    parts = host.loaded_parts()
    found = estimated(planned(settings, host, **changes), config, parts)
    parameters = sum(
        weight.numel()
        for weight in Adapters.create(
            parts, assign_ranks(parts, layer_settings(config)), adapter_spec(config)
        ).parameters()
    )
    assert found.pop("cache_bytes") > 0
    assert (
        found
        == dict(
            trainable_parameters=parameters,
            estimated_memory_bytes=16 * parameters,
            file_bytes=4 * parameters,
        )
        and parameters > 0
    )


def test_memory_by_optimizer_and_average(host, settings):
    def memory(**changes):
        found = estimated(
            planned(settings, host), TrainConfig.parse({**settings, **changes}), host.loaded_parts()
        )
        return found["estimated_memory_bytes"] / found["trainable_parameters"]

    assert [memory(optimizer=name) for name in ("adamw", "adamw8bit", "lion", "prodigy")] == [
        16,
        10,
        12,
        24,
    ] and memory(ema_decay=0.9) == 20


def test_nothing_is_known_of_a_model_that_is_not_there(host, settings):
    found = estimated(planned(settings, host), TrainConfig.parse(settings))
    assert found.pop("cache_bytes") > 0 and set(found.values()) == {
        None
    }  # but what the pictures take is


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(mirror=True),
        dict(color_jitter=0.1, mirror=True, validation_split=0.2),
        dict(random_crop=True, bucket_step=64),
        dict(masked_loss="alpha", mirror=True),
        dict(masked_loss="files", random_crop=True),
        dict(
            extra_resolutions="96, 128",
            masked_loss="files",
            mirror=True,
            random_crop=True,
            validation_split=0.2,
        ),
    ],
)
def test_the_memory_of_encoded_pictures_is_what_they_take(host, settings, pictures, changes):
    Image.new("RGBA", (128, 64), (0, 0, 0, 0)).save(pictures / "0.png")
    Image.new("L", (64, 64), 100).save(pictures / "1-masklabel.png")
    config, plan = TrainConfig.parse({**settings, **changes}), planned(settings, host, **changes)
    encoded = encoded_dataset.encode(
        host.model, plan.samples, encoding_options(config, with_captions=False)
    )
    taken = sum(
        tensor.numel() * tensor.element_size()
        for item in encoded
        for tensor in (item.latents, item.masks)
        if tensor is not None
    )
    without_captions = [dataclasses.replace(sample, caption="") for sample in plan.samples]
    one_caption = estimate(config, without_captions, None)["cache_bytes"] - taken
    assert (
        0 < one_caption < 1_000_000
        and estimated(plan, config)["cache_bytes"] == taken + 6 * one_caption
    )
    assert (
        estimated(plan, config.replace(shuffle_caption=True))["cache_bytes"]
        == estimated(plan, config.replace(train_text_encoder=True))["cache_bytes"]
        == taken
    )
