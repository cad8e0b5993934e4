"""Describes the checkpoint that the WebUI has loaded: its family, prediction type and picture size,
and whether it can be trained.
"""

import sys
from typing import TYPE_CHECKING

import torch
from modules import devices, sd_models, sd_unet, shared

from ...base.contracts import ModelStatus
from ...base.tensor_files import read_header
from ..model_families import (
    INPAINTING,
    INPAINTING_CHANNELS,
    SD2_V_SIZE_PX,
    SIZES_PX,
    SSD_1B,
    size_px_in_metadata,
)

if TYPE_CHECKING:
    from modules.sd_models_types import WebuiSdModel

TITLES = {
    "sd1": "SD 1.x",
    "sd2": "SD 2.x",
    "sdxl": "SDXL",
    "sd3": "SD 3",
    "unknown": "an unknown kind",
}
TRAINABLE = ("sd1", "sd2", "sdxl")
OTHER_CHANNELS = {
    5: "depth-to-image",
    7: "enlarging pictures",
    8: "editing pictures (instruct-pix2pix)",
}
TEXT_WRAPPERS = {
    "sd1": ("FrozenCLIPEmbedderWithCustomWords",),
    "sd2": ("FrozenOpenCLIPEmbedderWithCustomWords",),
    "sdxl": ("FrozenCLIPEmbedderForSDXLWithCustomWords", "FrozenOpenCLIPEmbedder2WithCustomWords"),
}


def family(sd_model: "WebuiSdModel") -> str:
    return next(
        (name for name in ("sd1", "sd2", "sdxl", "sd3") if getattr(sd_model, f"is_{name}", False)),
        "unknown",
    )


def variant(sd_model: "WebuiSdModel") -> str:
    if channels(sd_model) == INPAINTING_CHANNELS:
        return INPAINTING
    return SSD_1B if getattr(sd_model, "is_ssd", False) else ""


def channels(sd_model: "WebuiSdModel") -> int:
    return getattr(sd_model.model.diffusion_model, "in_channels", 4)


def prediction_type(sd_model: "WebuiSdModel") -> str:
    """Return the prediction type: by the WebUI's configuration or, for SDXL, which the WebUI always
    configures as epsilon, by the checkpoint's file.
    """
    if getattr(sd_model, "parameterization", "eps") == "v":
        return "v_prediction"
    of_file = family(sd_model) == "sdxl" and (
        "v_pred" in keys_of(sd_model)
        or _metadata(sd_model, "modelspec.prediction_type").lower().startswith("v")
    )
    return "v_prediction" if of_file else "epsilon"


def zero_terminal_snr(sd_model: "WebuiSdModel") -> bool:
    return family(sd_model) == "sdxl" and "ztsnr" in keys_of(sd_model)


def size_px(sd_model: "WebuiSdModel") -> int:
    """Return the side of the pictures that a checkpoint was trained on: by its metadata, else by
    its family.
    """
    kind = family(sd_model)
    if found := size_px_in_metadata(_metadata(sd_model, "modelspec.resolution")):
        return found
    if kind == "sd2" and prediction_type(sd_model) == "v_prediction":
        return SD2_V_SIZE_PX
    return SIZES_PX.get(kind, 512)


def _metadata(sd_model: "WebuiSdModel", name: str) -> str:
    return str((sd_model.sd_checkpoint_info.metadata or {}).get(name, ""))


def keys_of(sd_model: "WebuiSdModel") -> frozenset[str]:
    """Return the names of the tensors in the checkpoint's file, by its header alone.

    Empty for a file that is not safetensors.
    """
    path = sd_model.sd_checkpoint_info.filename
    if not path.lower().endswith(".safetensors"):
        return frozenset()
    try:
        return frozenset(read_header(path).entries)
    except (OSError, ValueError):
        return frozenset()


# --- What can train -------------------------------------------------------------------------------


def status_of(sd_model: "WebuiSdModel") -> ModelStatus:
    """Describe a loaded model, or None, and say why it cannot train if so; never waits, never
    loads.
    """
    if sd_model is None:
        return ModelStatus(False, _why_none_is_loaded())
    if not isinstance(sd_model, torch.nn.Module) or "ldm_patched" in sys.modules:
        return ModelStatus(
            False,
            "This is Forge or reForge, which keep the model in a way that cannot be trained yet."
            " Use AUTOMATIC1111's WebUI.",
        )
    info, weight = sd_model.sd_checkpoint_info, next(sd_model.model.diffusion_model.parameters())
    reason = _refusal(sd_model, weight)
    return ModelStatus(
        not reason,
        reason,
        checkpoint=info.name_for_extra,
        family=family(sd_model),
        variant=variant(sd_model),
        prediction_type=prediction_type(sd_model),
        zero_terminal_snr=zero_terminal_snr(sd_model),
        size_px=size_px(sd_model),
        sha256=info.sha256,
        device=str(devices.device),
        dtype=str(weight.dtype).removeprefix("torch."),
    )


def _why_none_is_loaded() -> str:
    if sd_models.model_data.lock.locked():
        return (
            "The checkpoint is still being loaded; wait until the WebUI shows its name at the top"
            " left."
        )
    return "No checkpoint is loaded: choose one at the top left and wait until it is loaded."


def _refusal(sd_model: "WebuiSdModel", weight: torch.nn.Parameter) -> str:
    """Return why a model cannot train, in a sentence, or nothing."""
    flags, kind = shared.cmd_opts, family(sd_model)
    always_exact = devices.device.type != "cuda" or devices.cuda_no_autocast()
    parked = (
        weight.device.type != devices.device.type
        and not getattr(sd_model, "lowvram", False)
        and sd_unet.current_unet is None
    )
    reasons = (
        (
            flags.lowvram,
            (
                "The WebUI was started with --lowvram, which keeps the UNet in pieces. Start it"
                " with --medvram or without either to train."
            ),
        ),
        (
            flags.upcast_sampling,
            (
                "The WebUI was started with --upcast-sampling, which changes weights as it goes."
                " Start it with --no-half to train."
            ),
        ),
        (
            flags.precision == "half",
            (
                "The WebUI was started with --precision half, which is too coarse to train in."
                " Start it without."
            ),
        ),
        (
            devices.fp8 or weight.dtype not in (torch.float32, torch.float16, torch.bfloat16),
            (
                "The checkpoint is held in fp8, which is too coarse to train. Set Settings >"
                " Optimizations > FP8 weight to Disable."
            ),
        ),
        (
            weight.is_meta or parked,
            "The checkpoint is unloaded. Choose Settings > Actions > Load SD checkpoint to VRAM.",
        ),
        (
            weight.dtype != torch.float32 and always_exact,
            (
                "This device cannot train a checkpoint held in 16 bits. Start the WebUI with"
                " --no-half."
            ),
        ),
        (
            kind not in TRAINABLE,
            (
                f"The checkpoint is of {TITLES[kind]}; those of SD 1.x, SD 2.x and SDXL can be"
                " trained."
            ),
        ),
        *_refusals_by_kind(sd_model, kind),
    )
    return next((sentence for applies, sentence in reasons if applies), "")


def _refusals_by_kind(sd_model: "WebuiSdModel", kind: str) -> list[tuple[bool, str]]:
    """Return the reasons against a checkpoint of a trainable family, each with whether it holds."""
    if kind not in TRAINABLE:
        return []
    found = channels(sd_model)
    conditioning_key = sd_model.model.conditioning_key
    purpose = OTHER_CHANNELS.get(found, "a purpose that is not known")
    return [
        (
            kind == "sdxl" and len(text_wrappers(sd_model)) == 1,
            "This is an SDXL refiner. Train on a base checkpoint.",
        ),
        (
            conditioning_key == "crossattn-adm",
            (
                "This is an unCLIP checkpoint, whose UNet is also told a picture. Train on the"
                " ordinary one it was made from."
            ),
        ),
        (
            found not in (4, INPAINTING_CHANNELS),
            (
                f"The checkpoint is for {purpose}: its UNet takes {found} channels, not 4, or 9 as"
                " for inpainting. Train on the ordinary one it was made from."
            ),
        ),
        (
            found == INPAINTING_CHANNELS and kind != "sdxl" and conditioning_key != "hybrid",
            (
                "The checkpoint's UNet takes 9 channels, but it is not set up for inpainting. Give"
                " its .yaml the name of the checkpoint, or remove it."
            ),
        ),
        (
            kind == "sdxl" and "edm_mean" in keys_of(sd_model),
            (
                "This is a Playground 2.5 checkpoint, whose noise schedule is another. Train on one"
                " of SDXL."
            ),
        ),
        (
            text_wrapper_names(sd_model) != TEXT_WRAPPERS[kind],
            (
                f"The checkpoint has another text encoder than those of {TITLES[kind]}, as"
                " AltDiffusion does. Choose an ordinary one."
            ),
        ),
    ]


def text_wrappers(sd_model: "WebuiSdModel") -> list[torch.nn.Module]:
    """Return the WebUI's wrapper of each text encoder; other settings make new wrappers."""
    text = getattr(sd_model, "cond_stage_model", None)  # missing while the WebUI changes it
    if not hasattr(text, "embedders"):
        return [text]
    return [embedder for embedder in text.embedders if hasattr(embedder, "tokenize")]


def text_wrapper_names(sd_model: "WebuiSdModel") -> tuple[str, ...]:
    return tuple(type(each).__name__ for each in text_wrappers(sd_model))
