"""Loads a checkpoint file as a diffusers pipeline, without a network: the configurations that
diffusers needs beside the file are written from the facts of its header.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from ...base.errors import ErrorCode, Refused
from ..checkpoint_file import CLIP, CheckpointFacts, TextEncoderFacts

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, DiffusionPipeline

logger = logging.getLogger(__name__)
TRUE_CLIP_WIDTH = 768
HEAD_WIDTH = 64
NARROW_HEAD_WIDTH = 16
VOCABULARY = 49_408
TOKENS = 77
SD1_HEADS = 8
SCALE_FACTORS = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}
PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
SIZE_NUMBER_WIDTH = 256  # of the embedding of each number of SDXL's picture size
BETA_START = 0.00085
BETA_END = 0.012
TRAINING_TIMESTEPS = 1000
Config = dict[str, Any]


def load_pipeline(
    checkpoint: Path, facts: CheckpointFacts, device: torch.device, dtype: torch.dtype
) -> "DiffusionPipeline":
    """Load a checkpoint as a diffusers pipeline in evaluation mode, SDXL's VAE in float32; raises
    `Refused` for an incomplete one.
    """
    import diffusers

    from ...demo.checkpoint import write_tokenizer

    logger.info("Loading %s on %s in %s", checkpoint.name, device, dtype)
    with tempfile.TemporaryDirectory(prefix="train-lora-") as folder, quiet_diffusers():
        write_configs(facts, Path(folder))
        try:
            for number in range(len(facts.texts)):
                write_tokenizer(Path(folder) / f"tokenizer{_suffix(number)}")
        except FileNotFoundError as error:
            raise Refused(f"{error}.", code=ErrorCode.MISSING_PACKAGE) from error
        try:
            from_folder = dict(config=folder, local_files_only=True)
            vae = diffusers.AutoencoderKL.from_single_file(
                str(checkpoint),
                subfolder="vae",
                **from_folder,
                torch_dtype=torch.float32 if facts.family == "sdxl" else dtype,
            )
            pipeline = getattr(diffusers, PIPELINES[facts.family]).from_single_file(
                str(checkpoint),
                vae=vae,
                scheduler=make_scheduler(
                    facts.prediction_type or "epsilon", facts.zero_terminal_snr
                ),
                torch_dtype=dtype,
                **_optional_parts(facts),
                **from_folder,
            )
            for module in modules_of(pipeline):
                module.to(device)  # fails for tensors that the file lacks
        except (ValueError, KeyError, RuntimeError, NotImplementedError, SafetensorError) as error:
            raise Refused(
                f"The checkpoint {checkpoint.name} cannot be loaded: {first_line(error)}. It may be"
                " incomplete or of another kind; choose a full Stable Diffusion checkpoint.",
                field="base_model",
                code=ErrorCode.WRONG_MODEL,
            ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def modules_of(pipeline: "DiffusionPipeline") -> list[torch.nn.Module]:
    """The UNet, the VAE and the text encoders of a pipeline."""
    return [pipeline.unet, pipeline.vae, *text_encoders_of(pipeline)]


def text_encoders_of(pipeline: "DiffusionPipeline") -> list[torch.nn.Module]:
    return [
        encoder
        for name in ("text_encoder", "text_encoder_2")
        if (encoder := getattr(pipeline, name, None)) is not None
    ]


def make_scheduler(prediction_type: str, zero_terminal_snr: bool) -> "DDPMScheduler":
    """Return the sampler for pictures; a schedule that ends in pure noise has to be begun there
    (arXiv 2305.08891, section 3.3).
    """
    from diffusers import DPMSolverMultistepScheduler

    spacing = (
        dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
        if zero_terminal_snr
        else dict(use_karras_sigmas=True)
    )
    return DPMSolverMultistepScheduler(
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        num_train_timesteps=TRAINING_TIMESTEPS,
        prediction_type=prediction_type,
        steps_offset=1,
        **spacing,
    )


@torch.no_grad()
def what_it_predicts(unet: torch.nn.Module) -> str:
    """Return the prediction type of an SD2 UNet, by running it once as the WebUI does.

    At the last timestep a flat latent is nearly all noise: epsilon prediction returns the latent,
    v prediction minus the picture.
    """
    device, dtype = next(unet.parameters()).device, next(unet.parameters()).dtype
    latents = torch.full((1, 4, 8, 8), 0.5, device=device, dtype=dtype)
    states = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, device=device, dtype=dtype)
    prediction = unet(
        latents,
        torch.tensor([TRAINING_TIMESTEPS - 1], device=device),
        encoder_hidden_states=states,
        return_dict=False,
    )[0]
    return "v_prediction" if (prediction - latents).float().mean() < -1 else "epsilon"


def write_configs(facts: CheckpointFacts, folder: Path) -> None:
    """Write all the configurations of a pipeline but the tokenizers'."""
    encoders = {
        f"text_encoder{_suffix(number)}": _text_config(text, facts)
        for number, text in enumerate(facts.texts)
    }
    index: Config = {
        "_class_name": PIPELINES[facts.family],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    }
    for number, (name, config) in enumerate(encoders.items()):
        index |= {
            name: ["transformers", config["architectures"][0]],
            f"tokenizer{_suffix(number)}": ["transformers", "CLIPTokenizer"],
        }
    configs = {
        "model_index": index,
        "unet/config": unet_config(facts),
        "vae/config": _vae_config(facts),
    }
    for name, values in (
        configs | {f"{name}/config": config for name, config in encoders.items()}
    ).items():
        target = folder / f"{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(values), encoding="utf-8")


def unet_config(facts: CheckpointFacts) -> Config:
    """Return diffusers' configuration of a UNet."""
    attention = [max(depths) > 0 for depths in facts.down_depths]
    config: Config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": facts.size_px // 8,
        "in_channels": facts.channels,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": facts.unet_widths,
        "cross_attention_dim": sum(text.width for text in facts.texts),
        "attention_head_dim": (
            SD1_HEADS
            if facts.family == "sd1"
            else [max(1, width // HEAD_WIDTH) for width in facts.unet_widths]
        ),
        "use_linear_projection": facts.has_linear_projections,
        "down_block_types": ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attention],
        "up_block_types": [
            "CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attention)
        ],
        **_depths(facts),
    }
    if facts.family == "sdxl":
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_NUMBER_WIDTH,
            "projection_class_embeddings_input_dim": facts.label_width,
        }
    return config


def _depths(facts: CheckpointFacts) -> Config:
    """Return how many transformer layers the blocks have: a number for each level where its blocks
    have equally many, else a number for each block.
    """
    if facts.has_middle_attention:
        return {"transformer_layers_per_block": [max(1, *depths) for depths in facts.down_depths]}
    down, up = (
        [[max(1, depth) for depth in depths] if max(depths) else 1 for depths in half]
        for half in (facts.down_depths, facts.up_depths)
    )
    return {
        "transformer_layers_per_block": down,
        "reverse_transformer_layers_per_block": up,
        "mid_block_type": "UNetMidBlock2D",
    }


def _vae_config(facts: CheckpointFacts) -> Config:
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": facts.size_px,
        "latent_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": facts.vae_widths,
        "scaling_factor": SCALE_FACTORS[facts.family],
        "force_upcast": False,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


def _text_config(text: TextEncoderFacts, facts: CheckpointFacts) -> Config:
    """Return HF's configuration of a text encoder, without SD2's last layer, whose output SD2 does
    not use.
    """
    head_width = (
        NARROW_HEAD_WIDTH if text.kind == CLIP and text.width < TRUE_CLIP_WIDTH else HEAD_WIDTH
    )
    is_pooled = facts.family == "sdxl" and text.kind != CLIP
    layers = text.layers - 1 if facts.family == "sd2" else text.layers
    return {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModelWithProjection" if is_pooled else "CLIPTextModel"],
        "hidden_size": text.width,
        "projection_dim": text.width,
        "intermediate_size": text.inner_width,
        "num_hidden_layers": layers,
        "num_attention_heads": text.width // head_width,
        "hidden_act": "quick_gelu" if text.kind == CLIP else "gelu",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": TOKENS,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": 1,
    }


def _optional_parts(facts: CheckpointFacts) -> Config:
    """Return arguments that leave out the parts of a pipeline that are not used here."""
    if facts.family == "sdxl":
        return {"add_watermarker": False, "force_zeros_for_empty_prompt": True}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _suffix(number: int) -> str:
    return "" if number == 0 else f"_{number + 1}"


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Hide the progress bars and warnings of diffusers and transformers."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    with contextlib.ExitStack() as stack:
        for theirs in (of_diffusers, of_transformers):
            stack.callback(theirs.set_verbosity, theirs.get_verbosity())
            if theirs.is_progress_bar_enabled():
                stack.callback(theirs.enable_progress_bar)
            theirs.set_verbosity_error()
            theirs.disable_progress_bar()
        yield


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".:")
