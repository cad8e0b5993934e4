"""What a page needs to show the settings: their groups, under which other settings each has an
effect, and which optimizers can be used here.

Everything else about a setting is where it is declared, in settings/config.py.
"""

from collections.abc import Mapping
from typing import Any

from ..settings.config import GROUPS, schema
from ..training.optimizers import optimizer_choices

Wanted = (
    tuple[Any, ...] | bool
)  # one of these values; or whether it is on: anything but its empty value, 0, false or "off"
Condition = Mapping[str, Wanted]  # all of it has to hold

_UNET, _FRESH = {"train_unet": True}, {"init_lora": False}
_FEED_FORWARD = {**_UNET, **_FRESH, "lora_targets": ("attention+feed-forward", "all")}
_CONVOLUTIONS = {**_UNET, **_FRESH, "lora_targets": ("all",)}
_SHUFFLED = ({"shuffle_caption": True}, {"caption_tag_dropout_rate": True})
_HUBER = ({"loss_type": ("huber", "smooth_l1")},)
_MEASURED = ({"validation_split": True},)

# A setting has an effect when one of its conditions holds; those that are not here always have.
EFFECTIVE_WHEN: dict[str, tuple[Condition, ...]] = {
    "epochs": ({"max_train_steps": False},),
    **dict.fromkeys(
        ("bucket_step", "bucket_min", "bucket_max", "bucket_no_upscale"), ({"enable_bucket": True},)
    ),
    "masked_loss_floor": ({"masked_loss": True},),
    "prior_loss_weight": ({"reg_data_dir": True},),
    "validate_every": _MEASURED,
    "keep_snapshots": ({"save_steps": True}, {"save_every_n_epochs": True}),
    "keep_tokens": _SHUFFLED,
    "trigger_only_rate": ({"trigger_word": True},),
    **dict.fromkeys(
        (
            "lora_rank",
            "lora_alpha",
            "lora_type",
            "lora_targets",
            "rslora",
            "use_dora",
            "train_unet",
            "train_text_encoder",
        ),
        (_FRESH,),
    ),
    **dict.fromkeys(("attention_rank", "attention_alpha", "lora_blocks"), ({**_UNET, **_FRESH},)),
    "block_learning_rates": (_UNET,),
    "loraplus_lr_ratio": ({"lora_type": ("lora",)}, {"init_lora": True}),
    "loraplus_text_encoder_lr_ratio": (
        {"train_text_encoder": True, "lora_type": ("lora",)},
        {"init_lora": True},
    ),
    **dict.fromkeys(("feed_forward_rank", "feed_forward_alpha"), (_FEED_FORWARD,)),
    **dict.fromkeys(("conv_rank", "conv_alpha"), (_CONVOLUTIONS,)),
    "lokr_factor": ({**_FRESH, "lora_type": ("lokr",)},),
    "text_encoder_lr": ({"train_text_encoder": True}, {"init_lora": True}),
    **dict.fromkeys(
        ("text_encoder_rank", "text_encoder_alpha"), ({"train_text_encoder": True, **_FRESH},)
    ),
    "scheduler_cycles": ({"scheduler": ("cosine_with_restarts",)},),
    "scheduler_power": ({"scheduler": ("polynomial",)},),
    **dict.fromkeys(("huber_c", "huber_schedule"), _HUBER),
    "v_pred_like_loss": ({"prediction_type": ("epsilon",)},),
    "scale_v_pred_loss": ({"prediction_type": ("v_prediction",)},),
    "noise_offset_random": ({"noise_offset": True},),
    "multires_noise_discount": ({"multires_noise_iterations": True},),
    "input_perturbation_random": ({"input_perturbation": True},),
    **dict.fromkeys(("logit_mean", "logit_std"), ({"timestep_sampling": ("logit_normal",)},)),
}


def form() -> dict[str, Any]:
    """Return `groups` in their order, each `{name, title}`, and `settings`: config.schema() with
    `effective_when`, and with choices that say what they need.
    """
    return {
        "groups": [{"name": name, "title": title} for name, title in GROUPS.items()],
        "settings": [_entry(entry) for entry in schema()],
    }


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    choices = {"choices": _optimizers(entry["choices"])} if entry["name"] == "optimizer" else {}
    return {
        **entry,
        **choices,
        "effective_when": [dict(condition) for condition in EFFECTIVE_WHEN.get(entry["name"], ())],
    }


def _optimizers(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the optimizers as `{value, title, needs}`; `needs` is the command that installs what
    is missing, else "".
    """
    known = {choice["name"]: choice for choice in optimizer_choices()}
    return [
        {
            "value": name,
            "title": known[name]["title"] if name in known else name,
            "needs": known[name]["needs"] if name in known and not known[name]["available"] else "",
        }
        for name in names
    ]
