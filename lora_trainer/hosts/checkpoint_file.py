"""A checkpoint file, judged by its header alone: which model it holds, how wide and how deep, and
what it predicts.

Nothing is loaded or unpickled here. What cannot be trained without a WebUI is refused with what was
found and what to choose instead.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from ..base.errors import ErrorCode, Refused
from ..base.tensor_files import read_header
from ..runs.base_models import say_which_are_there
from .model_families import (
    INPAINTING,
    INPAINTING_CHANNELS,
    SD2_V_SIZE_PX,
    SIZES_PX,
    SSD_1B,
    size_px_in_metadata,
)

UNET = "model.diffusion_model."
VAE = "first_stage_model."
SD1_TEXT = "cond_stage_model.transformer.text_model."
SD2_TEXT = "cond_stage_model.model."
SDXL_TEXTS = ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")
CLIP = "clip"
OPEN_CLIP = "open_clip"
TRUE_TEXT_WIDTHS = {"sd1": (768,), "sd2": (1024,), "sdxl": (768, 1280)}
NARROW_SIZE_PX = 64
SSD_1B_DEPTHS = ((0, 0), (2, 2), (4, 4)), ((4, 4, 10), (2, 1, 1), (0, 0, 0))
BLOCKS_PER_LEVEL = 2
LEVEL_STRIDE = BLOCKS_PER_LEVEL + 1  # a level's blocks, and the one that changes the resolution
OTHER_CHANNELS = {
    5: "is a depth-to-image checkpoint (5 input channels)",
    7: "is an upscaler (7 input channels)",
    8: "is an instruct-pix2pix checkpoint (8 input channels)",
}
LORA_ENDINGS = (".lora_down.weight", ".lora_A.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a")
WHAT_WORKS = (
    "Without a WebUI, training needs a full Stable Diffusion 1, 2 or XL checkpoint; choose one of"
    " those"
)
Shapes = Mapping[str, tuple[int, ...]]
Depths = tuple[tuple[int, ...], ...]  # transformer layers per block of each level


@dataclasses.dataclass(frozen=True)
class TextEncoderFacts:
    """A text encoder: OpenAI's CLIP under HF's names or OpenCLIP under its own; `layers` as in the
    file.
    """

    kind: str  # CLIP or OPEN_CLIP
    width: int
    layers: int
    inner_width: int


@dataclasses.dataclass(frozen=True)
class CheckpointFacts:
    """What a header tells of a checkpoint; widths are channels per level, depths transformer layers
    per block of each level, 0 for none.
    """

    family: str  # "sd1", "sd2" or "sdxl"
    variant: str  # "", INPAINTING or SSD_1B
    prediction_type: str  # "epsilon", "v_prediction", or "" where only running it can tell
    zero_terminal_snr: bool
    unet_widths: tuple[int, ...]
    down_depths: Depths
    up_depths: Depths  # from the deepest level up
    has_middle_attention: bool
    has_linear_projections: bool
    channels: int  # that go into the UNet
    label_width: int  # of what SDXL's UNet gets besides the caption
    vae_widths: tuple[int, ...]
    texts: tuple[TextEncoderFacts, ...]
    size_px: int  # of the pictures it was trained on: a sensible size to draw

    @property
    def is_true_size(self) -> bool:
        return tuple(text.width for text in self.texts) == TRUE_TEXT_WIDTHS[self.family]

    def that_predicts(self, prediction_type: str) -> "CheckpointFacts":
        """Return these facts with what running the model has shown."""
        size_px = (
            SD2_V_SIZE_PX
            if self.family == "sd2" and prediction_type == "v_prediction" and self.is_true_size
            else self.size_px
        )
        return dataclasses.replace(self, prediction_type=prediction_type, size_px=size_px)


def inspect_checkpoint(path: Path) -> CheckpointFacts:
    """Read a checkpoint's header; raises `Refused` (field `base_model`) for anything but a complete
    SD1, SD2 or SDXL safetensors file.
    """
    shapes, metadata = _read_header(path)
    _refuse_other_models(path, shapes)
    family = "sdxl" if _has(shapes, SDXL_TEXTS[1]) else "sd2" if _has(shapes, SD2_TEXT) else "sd1"
    try:
        facts = _facts(family, shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise _refused(
            path,
            f"lacks {error}, which every checkpoint of its kind has",
            "It may be incomplete or of another kind; choose a full Stable Diffusion 1, 2 or XL"
            " checkpoint",
        ) from error
    if family == "sdxl" and not facts.has_middle_attention and facts.variant != SSD_1B:
        raise _refused(path, "is a cut-down SDXL of another kind than SSD-1B", WHAT_WORKS)
    says = _prediction_type(path, metadata, shapes)
    facts = dataclasses.replace(
        facts,
        prediction_type=says or ("" if _only_running_tells(facts) else "epsilon"),
        zero_terminal_snr="ztsnr" in shapes,
    )
    return dataclasses.replace(facts, size_px=_size_px(metadata, facts))


def _facts(family: str, shapes: Shapes) -> CheckpointFacts:
    """Gather everything but what it predicts; raises KeyError, IndexError or ValueError for a
    tensor that is missing.
    """
    levels = _count_levels(shapes)
    down, up = _depths(shapes, levels)
    channels = shapes[UNET + "input_blocks.0.0.weight"][1]
    has_middle_attention = _depth(shapes, "middle_block") > 0
    return CheckpointFacts(
        family,
        variant=_variant(channels, down, up, has_middle_attention=has_middle_attention),
        prediction_type="",
        zero_terminal_snr=False,
        down_depths=down,
        up_depths=up,
        has_middle_attention=has_middle_attention,
        channels=channels,
        unet_widths=tuple(
            shapes[f"{UNET}input_blocks.{1 + LEVEL_STRIDE * level}.0.out_layers.3.weight"][0]
            for level in range(levels)
        ),
        has_linear_projections=_has_linear_projections(shapes),
        label_width=shapes[UNET + "label_emb.0.0.weight"][1] if family == "sdxl" else 0,
        vae_widths=tuple(
            shapes[f"{VAE}encoder.down.{level}.block.0.conv1.weight"][0] for level in range(4)
        ),
        texts=_texts(family, shapes),
        size_px=0,
    )


def _count_levels(shapes: Shapes) -> int:
    """Count the UNet's levels, by its input blocks; raises ValueError where there are none."""
    found = (re.match(re.escape(UNET) + r"input_blocks\.(\d+)\.", key) for key in shapes)
    last_block = max(int(match[1]) for match in found if match)
    return 1 + last_block // LEVEL_STRIDE


def _depths(shapes: Shapes, levels: int) -> tuple[Depths, Depths]:
    """Return the depths on the way down and on the way up, as `CheckpointFacts` has them."""
    down = tuple(
        tuple(
            _depth(shapes, f"input_blocks.{1 + LEVEL_STRIDE * level + block}")
            for block in range(BLOCKS_PER_LEVEL)
        )
        for level in range(levels)
    )
    up = tuple(
        tuple(
            _depth(shapes, f"output_blocks.{LEVEL_STRIDE * level + block}")
            for block in range(BLOCKS_PER_LEVEL + 1)
        )
        for level in range(levels)
    )
    return down, up


def _variant(channels: int, down: Depths, up: Depths, *, has_middle_attention: bool) -> str:
    if channels == INPAINTING_CHANNELS:
        return INPAINTING
    if (down, up) == SSD_1B_DEPTHS and not has_middle_attention:
        return SSD_1B
    return ""


def _has_linear_projections(shapes: Shapes) -> bool:
    """Tell whether the attention blocks project by linear layers, not by 1 x 1 convolutions."""
    for key, shape in shapes.items():
        if key.startswith(UNET) and key.endswith(".proj_in.weight"):
            return len(shape) == 2
    return False


def _depth(shapes: Shapes, block: str) -> int:
    """Count the transformer layers of a block, 0 for one without attention."""
    number = 0
    while f"{UNET}{block}.1.transformer_blocks.{number}.attn1.to_q.weight" in shapes:
        number += 1
    return number


def _texts(family: str, shapes: Shapes) -> tuple[TextEncoderFacts, ...]:
    if family == "sd1":
        return (_clip(SD1_TEXT, shapes),)
    if family == "sd2":
        return (_open_clip(SD2_TEXT, shapes),)
    return _clip(SDXL_TEXTS[0], shapes), _open_clip(SDXL_TEXTS[1], shapes)


def _clip(prefix: str, shapes: Shapes) -> TextEncoderFacts:
    return TextEncoderFacts(
        CLIP,
        shapes[prefix + "embeddings.token_embedding.weight"][1],
        _layers(prefix + "encoder.layers.", shapes),
        shapes[prefix + "encoder.layers.0.mlp.fc1.weight"][0],
    )


def _open_clip(prefix: str, shapes: Shapes) -> TextEncoderFacts:
    return TextEncoderFacts(
        OPEN_CLIP,
        shapes[prefix + "token_embedding.weight"][1],
        _layers(prefix + "transformer.resblocks.", shapes),
        shapes[prefix + "transformer.resblocks.0.mlp.c_fc.weight"][0],
    )


def _layers(prefix: str, shapes: Shapes) -> int:
    return 1 + max(
        (int(key[len(prefix) :].partition(".")[0]) for key in shapes if key.startswith(prefix)),
        default=-1,
    )


def _read_header(path: Path) -> tuple[Shapes, dict[str, str]]:
    if path.is_dir():
        raise _refused(
            path,
            "is a folder"
            + (" in diffusers' layout" if (path / "model_index.json").is_file() else ""),
            WHAT_WORKS,
        )
    if not path.is_file():
        advice = (
            say_which_are_there(path)
            or "Give the path of a Stable Diffusion checkpoint (.safetensors)."
        )
        raise Refused(
            f"There is no checkpoint {path}. {advice}", field="base_model", code=ErrorCode.NO_MODEL
        )
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise _refused(
            path,
            "is a pickle file, which can run any code when it is read, so it is not opened",
            "Convert it to .safetensors",
        )
    try:
        header = read_header(path)
    except (ValueError, OSError) as error:
        raise _refused(
            path,
            f"({path.stat().st_size:,} bytes) is no complete safetensors file ({error})",
            "It may be damaged or not fully downloaded; get it again",
        ) from error
    return header.shapes, dict(header.metadata)


def _has(shapes: Shapes, *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in shapes)


def _refuse_other_models(path: Path, shapes: Shapes) -> None:
    """Raise `Refused` unless a file is an SD1, SD2 or SDXL checkpoint with its text encoders and
    VAE; say what it is.
    """
    found = _another_kind(shapes) or _what_it_lacks(shapes)
    if found:
        raise _refused(path, found, WHAT_WORKS)


def _another_kind(shapes: Shapes) -> str:
    """Say what a file is that holds another kind of model; "" for all others."""
    if any(key.endswith(LORA_ENDINGS) for key in shapes):
        return "is a LoRA, not a checkpoint"
    if _has(shapes, UNET + "joint_blocks.", "joint_blocks."):
        return "is an SD3 checkpoint"
    if _has(shapes, UNET + "double_blocks.", "double_blocks."):
        return "is a Flux checkpoint"
    if _has(shapes, "conditioner.embedders.") and not _has(shapes, "conditioner.embedders.1."):
        return "is an SDXL refiner, which finishes pictures and cannot be trained here"
    if "edm_mean" in shapes:
        return "is a Playground v2.5 checkpoint, whose noise schedule is another"
    if _has(shapes, "embedder.model.", "noise_augmentor."):
        return "is an unCLIP checkpoint"
    return ""


def _what_it_lacks(shapes: Shapes) -> str:
    """Say which part a checkpoint lacks, or has in another form; "" when it is complete."""
    channels = shapes.get(UNET + "input_blocks.0.0.weight", (0, 0))[1]
    if not channels:
        return _without_unet(shapes)
    if channels not in (4, INPAINTING_CHANNELS):
        unusual = f"has {channels} input channels in its UNet instead of 4"
        return OTHER_CHANNELS.get(channels, unusual)
    is_sdxl = all(_has(shapes, text) for text in SDXL_TEXTS)
    if not (is_sdxl or _has(shapes, SD1_TEXT) or _has(shapes, SD2_TEXT)):
        return "has no text encoder of a known kind"
    return "" if _has(shapes, VAE) else "has no VAE in it"


def _without_unet(shapes: Shapes) -> str:
    """Say what a file without a UNet holds."""
    if _has(shapes, VAE, "encoder.conv_in.", "encoder.down"):
        return "holds only a VAE"
    if _has(shapes, "down_blocks.", "conv_in."):
        return "is in diffusers' layout, not a WebUI checkpoint"
    return f"holds {len(shapes)} tensors but no Stable Diffusion UNet"


def _refused(path: Path, found: str, remedy: str) -> Refused:
    return Refused(
        f"The checkpoint {path.name} {found}. {remedy}.",
        field="base_model",
        code=ErrorCode.WRONG_MODEL,
    )


def _prediction_type(path: Path, metadata: Mapping[str, str], shapes: Shapes) -> str:
    """What the .yaml beside the file says (as the WebUI reads it), else its metadata, else the keys
    with which NoobAI's model says v; "" for nothing.
    """
    beside = path.with_suffix(".yaml")
    says = ""
    if beside.is_file():
        try:
            says = _said_by(yaml.safe_load(beside.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise Refused(
                f"The file {beside.name} beside the checkpoint cannot be read ({error}). Mend or"
                " remove it.",
                field="base_model",
                code=ErrorCode.WRONG_MODEL,
            ) from error
    says = says or ("v" if "v_pred" in shapes else metadata.get("modelspec.prediction_type", ""))
    return "" if not says else "v_prediction" if says.lower().startswith("v") else "epsilon"


def _said_by(config: object) -> str:
    """Find LDM's `parameterization`, eps where it is left out, or sgm's VScaling in a parsed .yaml.
    sgm's EpsScaling says nothing: the WebUI's own .yaml has it for every SDXL.
    """
    model = _within(config, "model")
    params, is_ldm = _within(model, "params"), str(model.get("target", "")).startswith("ldm.")
    scaling = str(_within(params, "denoiser_config", "params", "scaling_config").get("target", ""))
    return (
        "v"
        if scaling.endswith("VScaling")
        else str(params.get("parameterization", "eps" if is_ldm else ""))
    )


def _within(config: object, *keys: str) -> Mapping:
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config if isinstance(config, Mapping) else {}


def _only_running_tells(facts: CheckpointFacts) -> bool:
    """SD2's v models differ from its epsilon models by their weights' values alone; its inpainting
    models predict epsilon.
    """
    return facts.family == "sd2" and facts.is_true_size and facts.variant != INPAINTING


def _size_px(metadata: Mapping[str, str], facts: CheckpointFacts) -> int:
    if found := size_px_in_metadata(metadata.get("modelspec.resolution", "")):
        return found
    if not facts.is_true_size:
        return NARROW_SIZE_PX
    if (facts.family, facts.prediction_type) == ("sd2", "v_prediction"):
        return SD2_V_SIZE_PX
    return SIZES_PX[facts.family]
