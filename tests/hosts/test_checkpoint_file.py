"""Checkpoints judged by their headers: what can train is described, what cannot is named."""
import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.core.errors import Refused
from lora_trainer.hosts.checkpoint_file import inspect_checkpoint

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model."


def header(widths=(32, 64, 64, 96), text_width=48, channels=4) -> dict[str, torch.Tensor]:
    """The few tensors that tell an SD1 checkpoint by; 1x1 kernels are enough for a header."""
    state = {f"{UNET}input_blocks.{number}.0.out_layers.3.weight": torch.zeros(width, 1) for number, width in zip((1, 4, 7, 10), widths)}
    state |= {f"first_stage_model.encoder.down.{level}.block.0.conv1.weight": torch.zeros(16 * (level + 1), 1) for level in range(4)}
    state |= {f"{TEXT}encoder.layers.{layer}.mlp.fc1.weight": torch.zeros(100, 1) for layer in range(3)}
    state[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(widths[0], channels)
    state[f"{TEXT}embeddings.token_embedding.weight"] = torch.zeros(1, text_width)
    return state


def test_widths_and_kind_come_from_the_header(tmp_path):
    save_file(header(), str(tmp_path / "a.safetensors"))
    facts = inspect_checkpoint(tmp_path / "a.safetensors")
    assert (facts.family, facts.prediction_type, facts.size_px) == ("sd1", "epsilon", 64)
    assert (facts.unet_widths, facts.vae_widths) == ((32, 64, 64, 96), (16, 32, 48, 64))
    assert (facts.text_width, facts.text_layers, facts.text_inner_width) == (48, 3, 100)


@pytest.mark.parametrize(("text_width", "metadata", "size_px"), [(768, None, 512), (48, None, 64), (768, {"modelspec.resolution": "768x512"}, 768)])
def test_size_to_draw(tmp_path, text_width, metadata, size_px):
    save_file(header(text_width=text_width), str(tmp_path / "a.safetensors"), metadata=metadata)
    assert inspect_checkpoint(tmp_path / "a.safetensors").size_px == size_px


def test_yaml_beside_it_says_v_prediction(tmp_path):
    save_file(header(), str(tmp_path / "a.safetensors"))
    (tmp_path / "a.yaml").write_text("model:\n  params:\n    parameterization: v\n")
    assert inspect_checkpoint(tmp_path / "a.safetensors").prediction_type == "v_prediction"
    (tmp_path / "a.yaml").write_text("model: [unclosed")
    with pytest.raises(Refused, match="a.yaml beside the checkpoint cannot be read"):
        inspect_checkpoint(tmp_path / "a.safetensors")


def without(prefix: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in header().items() if not key.startswith(prefix)}


@pytest.mark.parametrize(("state", "says"), [
    (header() | {"conditioner.embedders.0.x": torch.zeros(1), "conditioner.embedders.1.x": torch.zeros(1)}, "is an SDXL checkpoint"),
    (header() | {"conditioner.embedders.0.model.x": torch.zeros(1)}, "is an SDXL refiner"),
    (without(TEXT) | {"cond_stage_model.model.x": torch.zeros(1)}, "is an SD2 checkpoint"),
    (header() | {UNET + "joint_blocks.0.x": torch.zeros(1)}, "is an SD3 checkpoint"),
    (header(channels=9), "is an inpainting checkpoint"),
    (header(channels=8), "has 8 input channels"),
    (without("first_stage_model."), "has no VAE"),
    (without(TEXT), "has no text encoder"),
    (without(UNET), "holds only a VAE"),
    ({"lora_unet_x.lora_down.weight": torch.zeros(1)}, "is a LoRA, not a checkpoint"),
    ({"down_blocks.0.x": torch.zeros(1)}, "is in diffusers' layout"),
    ({"x": torch.zeros(1)}, "holds 1 tensors but no Stable Diffusion UNet"),
    (without(UNET + "input_blocks.10."), "lacks .*input_blocks.10"),
])
def test_other_models_are_named(tmp_path, state, says):
    save_file(state, str(tmp_path / "other.safetensors"))
    with pytest.raises(Refused, match=f"other.safetensors {says}.*choose") as caught:
        inspect_checkpoint(tmp_path / "other.safetensors")
    assert caught.value.field == "base_model"


@pytest.mark.parametrize(("name", "content", "says"), [
    ("missing.safetensors", None, "There is no checkpoint"),
    ("old.ckpt", b"\x80\x04anything", "pickle file.*Convert it"),
    ("empty.safetensors", b"", r"0 bytes\) is no complete safetensors file"),
    ("text.safetensors", b"<html>not found</html>" * 99, "no complete safetensors file"),
])
def test_other_files_are_refused(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=says):
        inspect_checkpoint(tmp_path / name)


def test_half_a_download_is_refused(tmp_path):
    save_file(header(), str(tmp_path / "a.safetensors"))
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[:-100])
    with pytest.raises(Refused, match="damaged or not fully downloaded"):
        inspect_checkpoint(tmp_path / "half.safetensors")
