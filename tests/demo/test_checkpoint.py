"""The embedded checkpoint: whole, readable by every loader, and drawing what its caption says.

The pictures are judged with diffusers, through diffusers' own conversion of LDM keys, which shares
no line with ours.
"""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lora_trainer.demo import checkpoint, wide_world, world

TEXTS = (
    "a red circle on an orange background",
    "zib",
    "",
    "Ünïcödé, (weights:1.2) & 3 <tags>!",
    "word " * 60,
)


# --- What any machine can check -------------------------------------------------------------------


def test_the_asset_is_small_and_finite_in_half_precision():
    assert checkpoint.ASSET.stat().st_size < 16_000_000
    state = checkpoint.load_state_dict()
    floats = [tensor for tensor in state.values() if tensor.is_floating_point()]
    assert all(tensor.dtype == torch.float16 for tensor in floats)
    assert all(tensor.isfinite().all() for tensor in floats)


def test_the_keys_are_those_of_stable_diffusion_1():
    state = checkpoint.load_state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert (
        len(shapes) == (686 - 4) + (248 - 8) + 16 * checkpoint.TEXT_LAYERS + 5
    )  # SD1's, less six skip convolutions between equal widths
    assert shapes["model.diffusion_model.input_blocks.0.0.weight"] == (64, 4, 3, 3)
    assert shapes[
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight"
    ] == (64, checkpoint.TEXT_WIDTH)
    assert shapes["first_stage_model.decoder.mid.attn_1.q.weight"] == (64, 64, 1, 1)
    assert shapes["first_stage_model.encoder.down.2.downsample.conv.weight"] == (64, 64, 3, 3)
    assert shapes["cond_stage_model.transformer.text_model.embeddings.position_ids"] == (1, 77)
    assert shapes[checkpoint.TOKEN_EMBEDDING] == (49408, checkpoint.TEXT_WIDTH)


def test_token_embeddings_are_the_same_everywhere():
    embeddings = checkpoint.token_embeddings()
    assert embeddings[320, :3].tolist() == [-2.3828125, 0.419921875, 1.8271484375]
    assert embeddings.std() == pytest.approx(1, abs=0.01)


def test_a_missing_asset_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "ASSET", tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="lora_trainer.demo.pretrain all"):
        checkpoint.load_state_dict()


def test_weights_that_overflow_half_precision_are_refused(tmp_path):
    from safetensors.torch import save_file

    for part, key in (
        ("unet", "conv_in.weight"),
        ("vae", "encoder.conv_in.weight"),
        ("text", "text_model.final_layer_norm.weight"),
    ):
        save_file({key: torch.full((4,), 1e6)}, tmp_path / f"{part}.safetensors")
    with pytest.raises(ValueError, match="3 weights are not finite"):
        checkpoint.pack(tmp_path, tmp_path / "asset.safetensors")
    assert not (tmp_path / "asset.safetensors").exists()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("models") / "ein Ordner, übung #1"
    return checkpoint.write_checkpoint(folder)


def test_writing_twice_changes_nothing_and_leaves_nothing_behind(written):
    files = {path: path.read_bytes() for path in written.parent.rglob("*") if path.is_file()}
    assert checkpoint.write_checkpoint(written.parent) == written
    assert files == {
        path: path.read_bytes() for path in written.parent.rglob("*") if path.is_file()
    }
    assert sorted(path.name for path in written.parent.iterdir()) == [
        f"{checkpoint.NAME}{end}" for end in ("-clip", ".safetensors", ".yaml")
    ]


def test_the_written_checkpoint_holds_every_weight(written):
    from safetensors.torch import load_file

    state, expected = load_file(written), checkpoint.load_state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)


def test_the_webui_config_names_the_tokenizer_folder(written):
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load(written.with_suffix(".yaml").read_text(encoding="utf-8"))["model"][
        "params"
    ]
    version = config["cond_stage_config"]["params"]["version"]
    assert version == str(written.parent / f"{checkpoint.NAME}-clip")
    assert config["unet_config"]["params"]["model_channels"] == 64
    assert config["unet_config"]["params"]["channel_mult"] == [1, 1, 1, 1]


def test_windows_paths_are_valid_yaml():
    yaml = pytest.importorskip("yaml")
    path = r"C:\Users\José 😀\new: \temp"
    assert (
        yaml.safe_load(checkpoint.webui_config(path))["model"]["params"]["cond_stage_config"][
            "params"
        ]["version"]
        == path
    )


def test_the_tokenizer_is_clips_own(written):
    open_clip, transformers = pytest.importorskip("open_clip"), pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        str(written.parent / f"{checkpoint.NAME}-clip")
    )
    for text in TEXTS:
        theirs = open_clip.tokenize([text])[0]
        theirs = theirs[: int(theirs.argmax()) + 1].tolist()
        assert tokenizer(text, truncation=True, max_length=77).input_ids == theirs
    assert tokenizer("", padding="max_length", max_length=77).input_ids == [49406] + [49407] * 76


def test_the_text_encoder_loads_completely(written):
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPTextModel(
        transformers.CLIPTextConfig.from_pretrained(str(written.parent / f"{checkpoint.NAME}-clip"))
    )
    missing, unexpected = load_text_encoder(model)
    assert {key.rpartition(".")[2] for key in (*missing, *unexpected)} <= {"position_ids"}


# --- What it draws --------------------------------------------------------------------------------


def load_text_encoder(model):
    """Load the checkpoint's text encoder; transformers 5 leaves `text_model.` off its keys."""
    prefix = (
        ""
        if not any(key.startswith("text_model.") for key in model.state_dict())
        else "text_model."
    )
    state = {
        prefix + key.removeprefix(checkpoint.TEXT_PREFIX): (
            tensor.float() if tensor.is_floating_point() else tensor
        )
        for key, tensor in checkpoint.load_state_dict().items()
        if key.startswith(checkpoint.TEXT_PREFIX)
    }
    return model.load_state_dict(state, strict=False)


@pytest.fixture(scope="module")
def models():
    """UNet, VAE and text encoder, loaded strictly through diffusers' own conversion of LDM keys."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    from diffusers.loaders import single_file_utils

    unet = diffusers.UNet2DConditionModel(**checkpoint.UNET_CONFIG).eval()
    vae = diffusers.AutoencoderKL(**checkpoint.VAE_CONFIG).eval()
    state = {key: tensor.float() for key, tensor in checkpoint.load_state_dict().items()}
    unet.load_state_dict(
        single_file_utils.convert_ldm_unet_checkpoint(dict(state), config=dict(unet.config)),
        strict=True,
    )
    vae.load_state_dict(
        single_file_utils.convert_ldm_vae_checkpoint(dict(state), config=dict(vae.config)),
        strict=True,
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**checkpoint.TEXT_ENCODER_CONFIG)
    ).eval()
    load_text_encoder(text)
    return unet, vae, text


@torch.no_grad()
def test_pictures_never_seen_survive_the_vae(models):
    vae, rng = models[1], np.random.RandomState(77)
    pixels = (
        torch.from_numpy(np.stack([wide_world.random_picture(rng) for _ in range(64)]))
        .permute(0, 3, 1, 2)
        .contiguous()
        * 2
        - 1
    )
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(16)])
    restored = torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in latents.split(16)])
    assert (10 * (4 / (restored - pixels).pow(2).mean((1, 2, 3))).log10()).mean() >= 24
    assert (latents * checkpoint.SCALE_FACTOR).std() == pytest.approx(1, abs=0.15)


@torch.no_grad()
def test_held_out_captions_are_drawn_right(models, written):
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    unet, vae, text = models
    tokenizer = CLIPTokenizer.from_pretrained(str(written.parent / f"{checkpoint.NAME}-clip"))
    rng = np.random.RandomState(78)
    scenes = [world.random_scene(rng, held_out=True) for _ in range(24)]
    captions = [scene.caption for scene in scenes] + [""] * len(scenes)
    context = text(
        tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
    ).last_hidden_state
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    scheduler.set_timesteps(12)
    latents = torch.randn(len(scenes), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        guided, plain = unet(torch.cat([latents] * 2), timestep, context).sample.chunk(2)
        latents = scheduler.step(plain + 4 * (guided - plain), timestep, latents).prev_sample
    pixels = (vae.decode(latents / checkpoint.SCALE_FACTOR).sample.clamp(-1, 1) + 1) * 127.5
    seen = [world.see(picture) for picture in pixels.round().byte().permute(0, 2, 3, 1).numpy()]
    assert np.mean([a == b for a, b in zip(seen, scenes)]) >= 0.8


def test_it_says_for_which_pictures_it_was_made(written):
    """So that a WebUI offers that size, and warns of others."""
    with safe_open(written, "pt") as file:
        assert file.metadata()["modelspec.resolution"] == "64x64"
