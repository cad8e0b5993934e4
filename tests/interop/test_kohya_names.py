"""Why a setting of sd-scripts is left out."""

from lora_trainer.interop.conversion import (
    SkippedSetting,
)
from tests.support.kohya_settings import taken


def test_what_is_not_needed_or_not_possible_is_said_once_and_with_its_reason():
    _, left_out, _ = taken(
        {
            "xformers": True,
            "sdpa": False,
            "wandb_api_key": "secret",
            "huggingface_token": "",
            "cache_latents": True,
            "log_with": "wandb",
            "save_n_epoch_ratio": 2,
            "adaptive_noise_scale": 0.01,
            "t5xxl": "x.safetensors",
            "lora_rnak": 8,
            "qwertz": 3,
            "sample_prompts": None,
            "network_dim": 5000,
        }
    )
    assert all(isinstance(item, SkippedSetting) and item.reason for item in left_out.values())
    assert {key: item.reason.split(":")[0] for key, item in left_out.items()} == {
        "xformers": "not needed here",
        "wandb_api_key": "not needed here",
        "cache_latents": "not needed here",
        "log_with": "not needed here",
        "save_n_epoch_ratio": "it is a share of the epochs, which the file does not say",
        "adaptive_noise_scale": left_out["adaptive_noise_scale"].reason,
        "t5xxl": "not needed here",
        "lora_rnak": "this setting is not known here; is lora_rank meant?",
        "qwertz": "this setting is not known here",
        "network_dim": "Rank",
    }
    assert (
        left_out["wandb_api_key"].value == "(not shown)" and left_out["network_dim"].value == 5000
    )
