"""A checkpoint file, judged by its header alone: which model it holds, how wide, and how diffusers has to be told so.

Nothing is loaded or unpickled here. What cannot be trained without a WebUI is refused with what was found and what to choose instead.
"""
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from ..core.errors import Refused

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
SD1_TEXT_WIDTH, SD1_TEXT_HEADS, SD1_SIZE_PX = 768, 12, 512
NARROW_HEAD_WIDTH, NARROW_SIZE_PX = 16, 64
VOCABULARY, TOKENS = 49_408, 77
UNET_HEADS = 8
SCALE_FACTOR = 0.18215
BETA_START, BETA_END, TRAINING_TIMESTEPS = 0.00085, 0.012, 1000
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class CheckpointFacts:
    """What a header tells of an SD1 checkpoint; widths are channels per level."""
    family: str
    prediction_type: str           # "epsilon" or "v_prediction"
    unet_widths: tuple[int, ...]
    vae_widths: tuple[int, ...]
    text_width: int
    text_layers: int
    text_inner_width: int
    size_px: int                   # of the pictures it was trained on: a sensible size to draw


def inspect_checkpoint(path: Path) -> CheckpointFacts:
    """Read a checkpoint's header; raises `Refused` (field `base_model`) for anything but a complete SD1 safetensors file."""
    shapes, metadata = _read_header(path)
    _refuse_other_models(path, shapes)
    try:
        widths = tuple(shapes[f"{UNET}input_blocks.{number}.0.out_layers.3.weight"][0] for number in (1, 4, 7, 10))
        vae_widths = tuple(shapes[f"{VAE}encoder.down.{level}.block.0.conv1.weight"][0] for level in range(4))
        text_width = shapes[f"{TEXT}embeddings.token_embedding.weight"][1]
        inner_width = shapes[f"{TEXT}encoder.layers.0.mlp.fc1.weight"][0]
    except (KeyError, IndexError) as error:
        raise _refused(path, f"lacks {error}, which every Stable Diffusion 1 checkpoint has",
                       "It may be incomplete or of another kind; choose a full SD1 checkpoint") from error
    layers = 1 + max(int(found[1]) for key in shapes if (found := re.match(re.escape(TEXT) + r"encoder\.layers\.(\d+)\.", key)))
    return CheckpointFacts("sd1", _prediction_type(path, metadata), widths, vae_widths, text_width, layers, inner_width,
                           _size_px(metadata, text_width))


def write_configs(facts: CheckpointFacts, folder: Path) -> None:
    """Write what diffusers' single-file loading needs to know besides the file: everything but the tokenizer."""
    head_width = facts.text_width // SD1_TEXT_HEADS if facts.text_width == SD1_TEXT_WIDTH else NARROW_HEAD_WIDTH
    configs = {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "DPMSolverMultistepScheduler"]},
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel", "sample_size": facts.size_px // 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
            "block_out_channels": facts.unet_widths, "cross_attention_dim": facts.text_width, "attention_head_dim": UNET_HEADS},
        "vae/config.json": {
            "_class_name": "AutoencoderKL", "sample_size": facts.size_px, "latent_channels": 4, "layers_per_block": 2,
            "block_out_channels": facts.vae_widths, "scaling_factor": SCALE_FACTOR, "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4},
        "text_encoder/config.json": {
            "model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "hidden_size": facts.text_width, "projection_dim": facts.text_width,
            "intermediate_size": facts.text_inner_width, "num_hidden_layers": facts.text_layers, "hidden_act": "quick_gelu",
            "num_attention_heads": facts.text_width // head_width, "vocab_size": VOCABULARY, "max_position_embeddings": TOKENS,
            "bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": 1},
        "scheduler/scheduler_config.json": {
            "_class_name": "DPMSolverMultistepScheduler", "beta_start": BETA_START, "beta_end": BETA_END, "beta_schedule": "scaled_linear",
            "num_train_timesteps": TRAINING_TIMESTEPS, "prediction_type": facts.prediction_type, "use_karras_sigmas": True, "steps_offset": 1},
    }
    for name, values in configs.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(values), encoding="utf-8")


def _read_header(path: Path) -> tuple[Shapes, dict[str, str]]:
    if not path.is_file():
        raise Refused(f"There is no checkpoint {path}. Give the path of a Stable Diffusion 1 checkpoint (.safetensors).",
                      field="base_model", code="no_model")
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise _refused(path, "is a pickle file, which can run any code when it is read, so it is not opened", "Convert it to .safetensors")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _refused(path, f"({path.stat().st_size:,} bytes) is no complete safetensors file ({error})",
                       "It may be damaged or not fully downloaded; get it again") from error


def _refuse_other_models(path: Path, shapes: Shapes) -> None:
    """Name what a file holds when it is not an SD1 checkpoint with its text encoder and VAE."""
    def has(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in shapes)
    channels = shapes.get(UNET + "input_blocks.0.0.weight", (0, 0))[1]
    found = next((words for words, true in (
        ("is a LoRA, not a checkpoint", any(key.endswith((".lora_down.weight", ".lora_A.weight")) for key in shapes)),
        ("is an SD3 checkpoint", has(UNET + "joint_blocks.", "joint_blocks.")),
        ("is a Flux checkpoint", has(UNET + "double_blocks.", "double_blocks.")),
        ("is an SDXL checkpoint", has("conditioner.embedders.1.")),
        ("is an SDXL refiner", has("conditioner.embedders.")),
        ("holds only a VAE", not channels and has(VAE, "encoder.conv_in.", "encoder.down")),
        ("is in diffusers' layout, not a WebUI checkpoint", not channels and has("down_blocks.", "conv_in.")),
        (f"holds {len(shapes)} tensors but no Stable Diffusion UNet", not channels),
        ("is an inpainting checkpoint (9 input channels)", channels == 9),
        (f"has {channels} input channels in its UNet instead of 4", channels != 4),
        ("is an SD2 checkpoint", has("cond_stage_model.model.")),
        ("has no text encoder of SD1's kind", not has(TEXT)),
        ("has no VAE in it", not has(VAE)),
    ) if true), None)
    if found:
        raise _refused(path, found, "Without a WebUI, training needs a full Stable Diffusion 1 checkpoint; choose one of those")


def _refused(path: Path, found: str, remedy: str) -> Refused:
    return Refused(f"The checkpoint {path.name} {found}. {remedy}.", field="base_model", code="wrong_model")


def _prediction_type(path: Path, metadata: Mapping[str, str]) -> str:
    """Epsilon, unless the file's metadata or the .yaml beside it (as the WebUI reads it) says v."""
    says = metadata.get("modelspec.prediction_type", "")
    beside = path.with_suffix(".yaml")
    if beside.is_file():
        try:
            says = _parameterization(yaml.safe_load(beside.read_text(encoding="utf-8"))) or says
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise Refused(f"The file {beside.name} beside the checkpoint cannot be read ({error}). Mend or remove it.",
                          field="base_model", code="wrong_model") from error
    return "v_prediction" if says.lower().startswith("v") else "epsilon"


def _parameterization(config: Any) -> str:
    for key in ("model", "params"):
        config = config.get(key) if isinstance(config, Mapping) else None
    return str(config.get("parameterization", "")) if isinstance(config, Mapping) else ""


def _size_px(metadata: Mapping[str, str], text_width: int) -> int:
    found = re.match(r"\s*(\d+)", metadata.get("modelspec.resolution", ""))
    if found and 64 <= int(found[1]) <= 2048:
        return int(found[1]) // 8 * 8
    return SD1_SIZE_PX if text_width == SD1_TEXT_WIDTH else NARROW_SIZE_PX
