"""Checkpoints judged by their headers: what can train is described, what cannot is named."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.base.errors import Refused
from lora_trainer.hosts.checkpoint_file import SSD_1B_DEPTHS, inspect_checkpoint

UNET, VAE, TEXT = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.text_model.",
)
SDXL_TEXT, SDXL_OPEN_CLIP, SD2_TEXT = (
    "conditioner.embedders.0.transformer.text_model.",
    "conditioner.embedders.1.model.",
    "cond_stage_model.model.",
)
SD1_DEPTHS = ((1, 1), (1, 1), (1, 1), (0, 0)), ((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1))
SDXL_DEPTHS = ((0, 0), (2, 2), (10, 10)), ((10, 10, 10), (2, 2, 2), (0, 0, 0))


def unet(widths, depths, *, channels=4, middle=1, linear=True) -> dict[str, tuple[int, ...]]:
    """The shapes that tell UNets apart."""
    shapes = {f"{UNET}input_blocks.0.0.weight": (widths[0], channels, 3, 3)}
    for level, width in enumerate(widths):
        for half in range(2):
            for block, depth in enumerate(depths[half][level]):
                path = (
                    f"{UNET}input_blocks.{1 + 3 * level + block}"
                    if half == 0
                    else f"{UNET}output_blocks.{3 * level + block}"
                )
                shapes |= {f"{path}.0.out_layers.3.weight": (width, width, 3, 3)} | _transformer(
                    path, depth, width, linear
                )
    return (
        shapes
        | {f"{UNET}middle_block.0.in_layers.2.weight": (1,)}
        | _transformer(f"{UNET}middle_block", middle, widths[-1], linear)
    )


def _transformer(path: str, depth: int, width: int, linear: bool) -> dict[str, tuple[int, ...]]:
    shapes = {
        f"{path}.1.transformer_blocks.{number}.attn1.to_q.weight": (width, width)
        for number in range(depth)
    }
    return shapes | (
        {f"{path}.1.proj_in.weight": (width, width) if linear else (width, width, 1, 1)}
        if depth
        else {}
    )


def clip(prefix: str, width: int, layers: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}embeddings.token_embedding.weight": (49408, width)} | {
        f"{prefix}encoder.layers.{layer}.mlp.fc1.weight": (4 * width, width)
        for layer in range(layers)
    }


def open_clip(prefix: str, width: int, layers: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}token_embedding.weight": (49408, width),
        f"{prefix}ln_final.weight": (width,),
    } | {
        f"{prefix}transformer.resblocks.{layer}.mlp.c_fc.weight": (4 * width, width)
        for layer in range(layers)
    }


def vae(width=128) -> dict[str, tuple[int, ...]]:
    return {
        f"{VAE}encoder.down.{level}.block.0.conv1.weight": (width * (level + 1), 1)
        for level in range(4)
    }


def sd1(text_width=768, widths=(320, 640, 1280, 1280), **options):
    return unet(widths, SD1_DEPTHS, linear=False, **options) | clip(TEXT, text_width, 12) | vae()


def sd2(text_width=1024, **options):
    return (
        unet((320, 640, 1280, 1280), SD1_DEPTHS, **options)
        | open_clip(SD2_TEXT, text_width, 24)
        | vae()
    )


def sdxl(depths=SDXL_DEPTHS, **options):
    return (
        unet((320, 640, 1280), depths, **options)
        | {f"{UNET}label_emb.0.0.weight": (1280, 2816)}
        | clip(SDXL_TEXT, 768, 12)
        | open_clip(SDXL_OPEN_CLIP, 1280, 32)
        | vae()
    )


def write_header(path, shapes, metadata=None):
    """Write a safetensors file of this header whose gigabytes of tensors are a hole in the file."""
    header, end = ({"__metadata__": metadata} if metadata else {}), 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture
def inspect(tmp_path):
    return lambda shapes, metadata=None: inspect_checkpoint(
        write_header(tmp_path / "a.safetensors", shapes, metadata)
    )


def test_true_sd1(inspect):
    facts = inspect(sd1())
    assert (
        facts.family,
        facts.variant,
        facts.prediction_type,
        facts.zero_terminal_snr,
        facts.size_px,
    ) == ("sd1", "", "epsilon", False, 512)
    assert (facts.unet_widths, facts.vae_widths) == (
        (320, 640, 1280, 1280),
        (128, 256, 384, 512),
    ) and (facts.down_depths, facts.up_depths) == SD1_DEPTHS
    assert [(text.kind, text.width, text.layers, text.inner_width) for text in facts.texts] == [
        ("clip", 768, 12, 3072)
    ]
    assert facts.has_middle_attention and not facts.has_linear_projections and facts.is_true_size


def test_true_sd2_says_by_its_header_all_but_what_it_predicts(inspect):
    facts = inspect(sd2())
    assert (facts.family, facts.prediction_type, facts.size_px, facts.has_linear_projections) == (
        "sd2",
        "",
        512,
        True,
    )
    assert [(text.kind, text.width, text.layers) for text in facts.texts] == [
        ("open_clip", 1024, 24)
    ]
    found = facts.that_predicts("v_prediction")
    assert (found.prediction_type, found.size_px) == ("v_prediction", 768) and facts.that_predicts(
        "epsilon"
    ).size_px == 512
    assert inspect(sd2(), {"modelspec.prediction_type": "v"}).size_px == 768


def test_true_sdxl(inspect):
    facts = inspect(sdxl())
    assert (
        facts.family,
        facts.variant,
        facts.prediction_type,
        facts.size_px,
        facts.label_width,
    ) == ("sdxl", "", "epsilon", 1024, 2816)
    assert (facts.down_depths, facts.up_depths) == SDXL_DEPTHS and len(facts.unet_widths) == 3
    assert [(text.kind, text.width, text.layers) for text in facts.texts] == [
        ("clip", 768, 12),
        ("open_clip", 1280, 32),
    ]


def test_keys_of_noobai_say_v_and_zero_terminal_snr(inspect):
    facts = inspect(sdxl() | {"v_pred": (0,), "ztsnr": (0,)})
    assert (facts.prediction_type, facts.zero_terminal_snr) == ("v_prediction", True)


@pytest.mark.parametrize(
    ("shapes", "variant"),
    [
        (sd1(channels=9), "inpainting"),
        (sd2(channels=9), "inpainting"),
        (sdxl(channels=9), "inpainting"),
        (sdxl(SSD_1B_DEPTHS, middle=0), "ssd-1b"),
        (sdxl(), ""),
    ],
)
def test_variants(inspect, shapes, variant):
    facts = inspect(shapes)
    assert facts.variant == variant and facts.prediction_type == "epsilon"
    assert facts.has_middle_attention == (variant != "ssd-1b")


@pytest.mark.parametrize(
    ("text_width", "metadata", "size_px"),
    [(768, None, 512), (48, None, 64), (768, {"modelspec.resolution": "768x512"}, 768)],
)
def test_size_to_draw(inspect, text_width, metadata, size_px):
    assert inspect(sd1(text_width), metadata).size_px == size_px


@pytest.mark.parametrize(
    ("shapes", "text", "says"),
    [
        (sd1(), "model:\n  params:\n    parameterization: v\n", "v_prediction"),
        (
            sd2(),
            (
                "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n   "
                " linear_start: 0.1\n"
            ),
            "epsilon",
        ),
        (
            sdxl(),
            (
                "model: {params: {denoiser_config: {params: {scaling_config: {target:"
                " sgm.denoiser_scaling.VScaling}}}}}"
            ),
            "v_prediction",
        ),
        (
            sdxl() | {"v_pred": (0,)},
            (
                "model: {params: {denoiser_config: {params: {scaling_config: {target:"
                " x.EpsScaling}}}}}"
            ),
            "v_prediction",
        ),
        (sd1(), "nothing of it", "epsilon"),
    ],
)
def test_yaml_beside_it_says_what_it_predicts(inspect, tmp_path, shapes, text, says):
    (tmp_path / "a.yaml").write_text(text)
    assert inspect(shapes).prediction_type == says


def test_broken_yaml_is_refused(inspect, tmp_path):
    (tmp_path / "a.yaml").write_text("model: [unclosed")
    with pytest.raises(Refused, match="a.yaml beside the checkpoint cannot be read"):
        inspect(sd1())


def without(shapes, *prefixes: str):
    return {key: shape for key, shape in shapes.items() if not key.startswith(prefixes)}


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (
            without(sdxl(), "conditioner.") | open_clip("conditioner.embedders.0.model.", 1280, 2),
            "is an SDXL refiner",
        ),
        (sd1() | {UNET + "joint_blocks.0.x": (1,)}, "is an SD3 checkpoint"),
        ({"double_blocks.0.x": (1,)}, "is a Flux checkpoint"),
        (sd1(channels=8), "is an instruct-pix2pix checkpoint"),
        (sd2(channels=5), "is a depth-to-image checkpoint"),
        (sd1(channels=6), "has 6 input channels"),
        (sdxl() | {"edm_mean": (4,)}, "is a Playground v2.5 checkpoint"),
        (
            sdxl(SSD_1B_DEPTHS[:1] + (SDXL_DEPTHS[1],), middle=0),
            "is a cut-down SDXL of another kind",
        ),
        (without(sd1(), VAE), "has no VAE"),
        (without(sd1(), TEXT), "has no text encoder"),
        (without(sd1(), UNET), "holds only a VAE"),
        ({"lora_unet_x.lora_down.weight": (1,)}, "is a LoRA, not a checkpoint"),
        ({"lora_unet_x.lokr_w1": (1,)}, "is a LoRA, not a checkpoint"),
        ({"down_blocks.0.x": (1,)}, "is in diffusers' layout"),
        ({"x": (1,)}, "holds 1 tensors but no Stable Diffusion UNet"),
        (without(sd1(), UNET + "input_blocks.7."), "lacks .*input_blocks.7"),
    ],
)
def test_other_models_are_named(tmp_path, shapes, says):
    with pytest.raises(Refused, match=f"other.safetensors {says}.*choose") as caught:
        inspect_checkpoint(write_header(tmp_path / "other.safetensors", shapes))
    assert caught.value.field == "base_model"


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(Refused, match="is a folder in diffusers' layout.*choose"):
        inspect_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.safetensors", None, "There is no checkpoint"),
        ("old.ckpt", b"\x80\x04anything", "pickle file.*Convert it"),
        ("empty.safetensors", b"", r"0 bytes\) is no complete safetensors file"),
        ("text.safetensors", b"<html>not found</html>" * 99, "no complete safetensors file"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=says):
        inspect_checkpoint(tmp_path / name)


def test_half_a_download_is_refused(tmp_path):
    save_file({"x": torch.zeros(1000)}, str(tmp_path / "a.safetensors"))
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[:-100])
    with pytest.raises(Refused, match="damaged or not fully downloaded"):
        inspect_checkpoint(tmp_path / "half.safetensors")
