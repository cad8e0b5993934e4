"""Each family as the standalone host has it: the file's weights in diffusers' modules, captions
read as diffusers and open_clip read them, long and weighted ones as the WebUI does, and what the
UNet is told.
"""

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers")
if not importlib.util.find_spec("open_clip"):
    pytest.skip("CLIP's vocabulary comes with open_clip", allow_module_level=True)

from lora_trainer.base.contracts import Conditioning, ModelOptions, Size  # noqa: E402
from lora_trainer.base.errors import Refused  # noqa: E402
from lora_trainer.demo.vae_names import vae_to_ldm
from lora_trainer.hosts.standalone.loading import what_it_predicts  # noqa: E402
from lora_trainer.hosts.standalone.model import scaled_linear_alphas_cumprod  # noqa: E402
from lora_trainer.lora.weight_names import unet_to_ldm
from tests.support import narrow_checkpoint  # noqa: E402

TRAINABLE = [name for name in narrow_checkpoint.FAMILIES if name != "sdxl-refiner"]
ONE_OF_EACH = ["sd1", "sd2", "sdxl"]
SIZES = [Size(96, 64, 0, 8, 64, 64), Size(64, 64, 0, 0, 64, 64)]


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize(
    ("name", "family", "variant", "prediction_type", "zero_terminal_snr"),
    [
        ("sd1", "sd1", "", "epsilon", False),
        ("sd1-inpainting", "sd1", "inpainting", "epsilon", False),
        ("sd2", "sd2", "", "epsilon", False),
        ("sd2-v", "sd2", "", "v_prediction", False),
        ("sd2-inpainting", "sd2", "inpainting", "epsilon", False),
        ("sdxl", "sdxl", "", "epsilon", False),
        ("sdxl-v", "sdxl", "", "v_prediction", True),
        ("sdxl-inpainting", "sdxl", "inpainting", "epsilon", False),
        ("ssd-1b", "sdxl", "ssd-1b", "epsilon", False),
    ],
)
def test_what_the_status_says_is_what_is_lent(
    hosts, name, family, variant, prediction_type, zero_terminal_snr
):
    status = hosts(name).model_status()
    assert (
        status.trainable,
        status.family,
        status.variant,
        status.prediction_type,
        status.zero_terminal_snr,
        status.size_px,
    ) == (True, family, variant, prediction_type, zero_terminal_snr, 64)
    with hosts(name).borrow_model() as model:
        assert (model.family, model.variant, model.prediction_type, model.zero_terminal_snr) == (
            family,
            variant,
            prediction_type,
            zero_terminal_snr,
        )
        assert (
            model.alphas_cumprod.shape == (1000,)
            and (model.alphas_cumprod[-1] == 0) == zero_terminal_snr
        )
        assert (
            list(model.parts()) == ["unet", "te1", "te2"][: 3 if family == "sdxl" else 2]
            and len(model.sha256) == 64
        )


def test_a_refiner_is_refused(hosts):
    status = hosts("sdxl-refiner").model_status()
    assert not status.trainable and "SDXL refiner" in status.reason
    with pytest.raises(Refused, match="SDXL refiner"), hosts("sdxl-refiner").borrow_model():
        pass


@pytest.mark.parametrize("name", TRAINABLE)
def test_unet_and_vae_are_the_files(hosts, checkpoints, name):
    """Every weight stands where the file has it, none is left over, and blocks are built as for the
    true model.
    """
    family, state = narrow_checkpoint.FAMILIES[name], load_file(str(checkpoints(name)))
    pipeline = hosts(name)._load()
    found = {
        f"model.diffusion_model.{unet_to_ldm(key, len(family.widths))}": value
        for key, value in pipeline.unet.state_dict().items()
    }
    found |= {
        "first_stage_model." + vae_to_ldm(key): value
        for key, value in pipeline.vae.state_dict().items()
    }
    assert found.keys() == {
        key for key in state if key.startswith(("model.diffusion_model.", "first_stage_model."))
    }
    assert all(
        torch.equal(value.flatten(), state[key].float().flatten()) for key, value in found.items()
    )
    config = pipeline.unet.config
    for key, value in narrow_checkpoint.unet_config(family).items():
        assert _lists(config[key]) == _lists(value), key
    assert pipeline.vae.config.scaling_factor == (
        0.13025 if name.startswith(("sdxl", "ssd")) else 0.18215
    )


def _lists(value):
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


# --- Captions -------------------------------------------------------------------------------------


def their_encoding(pipeline, captions, clip_skip=None):
    """Encode as diffusers does, with the filling that the true models' tokenizers have. Its clip
    skip looks for a module that new transformers lack.
    """
    if pipeline.unet.config.use_linear_projection:
        (getattr(pipeline, "tokenizer_2", None) or pipeline.tokenizer).pad_token = "!"
    if not hasattr(pipeline.text_encoder, "text_model"):
        vars(pipeline.text_encoder)["text_model"] = pipeline.text_encoder
    try:
        encoded = pipeline.encode_prompt(
            captions,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=clip_skip,
        )
    finally:
        vars(pipeline.text_encoder).pop("text_model", None)
    return encoded[0], (encoded[2] if len(encoded) > 2 else None)


@pytest.mark.parametrize(
    ("name", "clip_skip"),
    [("sd1", 1), ("sd1", 2), ("sd2", 0), ("sd2-v", 2), ("sdxl", 0), ("sdxl-v", 2), ("ssd-1b", 1)],
)
@torch.no_grad()
def test_short_captions_are_encoded_as_by_diffusers(hosts, name, clip_skip):
    captions = ["a red circle, on the left", "", "Two SQUARES!"]
    with hosts(name).borrow_model() as model:
        model.configure(ModelOptions(clip_skip=clip_skip))
        ours = model.encode_captions(captions)
    hidden_states, pooled = their_encoding(
        hosts(name)._load(), captions, clip_skip=1 if (name, clip_skip) == ("sd1", 2) else None
    )
    assert (
        apart(ours.hidden_states, hidden_states) < 1e-5
        and ours.hidden_states.dtype == torch.float32
        and ours.sizes is None
    )
    assert (ours.pooled is None) == (pooled is None)
    if pooled is not None:
        assert apart(ours.pooled, pooled) < 1e-5


@torch.no_grad()
def test_open_clip_is_read_as_by_open_clip(hosts, checkpoints):
    """The penultimate layer without the last norm, and the pooled embedding, by open_clip's own
    model with the file's weights.
    """
    import open_clip

    prefix = "conditioner.embedders.1.model."
    state = {
        key.removeprefix(prefix): value.float()
        for key, value in load_file(str(checkpoints("sdxl"))).items()
        if key.startswith(prefix)
    }
    theirs = open_clip.create_model(narrow_checkpoint.OPEN_CLIP).eval()
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all(
        key.startswith("visual.") for key in missing.missing_keys
    )
    into_last = []
    theirs.transformer.resblocks[-1].register_forward_pre_hook(
        lambda module, inputs: into_last.append(inputs[0])
    )
    ids = open_clip.tokenize(["a red circle", "two"])
    pooled = theirs.encode_text(ids)
    hidden_states = into_last[0] if into_last[0].shape[0] == 2 else into_last[0].transpose(0, 1)
    with hosts("sdxl").borrow_model() as model:
        ours = model.encode_captions(["a red circle", "two"])
    assert (
        apart(ours.hidden_states[:, :, narrow_checkpoint.CLIP_WIDTH :], hidden_states) < 1e-5
        and apart(ours.pooled, pooled) < 1e-5
    )


@pytest.mark.parametrize("name", ONE_OF_EACH)
@torch.no_grad()
def test_long_captions_are_read_in_chunks(hosts, name):
    """Each chunk is encoded as a caption of its own; the pooled embedding is the first one's;
    shorter captions are filled with empty chunks.
    """
    with hosts(name).borrow_model() as model:
        first, second = " ".join(["circle"] * 75), " ".join(["square"] * 75)
        both = model.encode_captions([f"{first} {second}", "short"])
        alone, empty = model.encode_captions([first, second, "short"]), model.encode_captions([""])
        assert both.hidden_states.shape[1] == 154 and alone.hidden_states.shape[1] == 77
        torch.testing.assert_close(
            both.hidden_states[0],
            torch.cat([alone.hidden_states[0], alone.hidden_states[1]]),
            rtol=1e-4,
            atol=1e-5,
        )
        torch.testing.assert_close(
            both.hidden_states[1],
            torch.cat([alone.hidden_states[2], empty.hidden_states[0]]),
            rtol=1e-4,
            atol=1e-5,
        )
        if both.pooled is not None:
            torch.testing.assert_close(both.pooled, alone.pooled[[0, 2]], rtol=1e-4, atol=1e-5)
        apiece = Conditioning.cat(
            [model.encode_captions([f"{first} {second}"]), model.encode_captions(["short"])], empty
        )
        torch.testing.assert_close(both.hidden_states, apiece.hidden_states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("most", "tokens"), [(75, 77), (150, 154), (225, 231)])
def test_captions_are_cut_where_the_reading_says(hosts, most, tokens):
    with hosts("sd1").borrow_model() as model:
        model.configure(ModelOptions(max_token_length=most))
        assert model.encode_captions(["word " * 500]).hidden_states.shape == (
            1,
            tokens,
            narrow_checkpoint.CLIP_WIDTH,
        )
        assert str(most) in model.encoding_key()


@pytest.mark.parametrize("name", ONE_OF_EACH)
@torch.no_grad()
def test_weighted_captions(hosts, name):
    """Hidden states times weights, scaled back to the mean they had, each text encoder by itself;
    the pooled embedding is as without.
    """
    with hosts(name).borrow_model() as model:
        plain = model.encode_captions(["a red circle"])
        literal = model.encode_captions(["a (red:1.5) circle"])
        model.configure(ModelOptions(weighted_captions=True))
        weighted = model.encode_captions(["a (red:1.5) circle", "a red circle"])
    weights = np.ones((77, 1))
    weights[2] = 1.5  # start, a, red
    widths = (
        [narrow_checkpoint.CLIP_WIDTH, narrow_checkpoint.OPEN_CLIP_WIDTH]
        if name == "sdxl"
        else [plain.hidden_states.shape[2]]
    )
    expected = []
    for states in np.split(plain.hidden_states[0].double().numpy(), np.cumsum(widths)[:-1], axis=1):
        expected.append(states * weights * (states.mean() / (states * weights).mean()))
    np.testing.assert_allclose(
        weighted.hidden_states[0].numpy(), np.concatenate(expected, axis=1), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(weighted.hidden_states[1], plain.hidden_states[0])
    assert apart(literal.hidden_states, plain.hidden_states) > 0.05
    if plain.pooled is not None:
        torch.testing.assert_close(weighted.pooled[0], plain.pooled[0])


@pytest.mark.parametrize(
    ("name", "clip_skip", "in_use"),
    [("sd1", 0, 1), ("sd1", 1, 1), ("sd1", 2, 2), ("sd2", 0, 2), ("sd2", 1, 2), ("sdxl", 2, 2)],
)
def test_clip_skip_in_use(hosts, name, clip_skip, in_use):
    """SD2 and SDXL are always read at the layer before the last, whatever the WebUI is set to."""
    with hosts(name).borrow_model() as model:
        model.configure(ModelOptions(clip_skip=clip_skip))
        assert model.clip_skip == in_use


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sd1", "has 2 layers"),
        ("sd2", "always read at the layer before"),
        ("sdxl", "always read at the layer before"),
    ],
)
def test_impossible_clip_skip_is_refused(hosts, name, says):
    with hosts(name).borrow_model() as model, pytest.raises(Refused, match=says) as caught:
        model.configure(ModelOptions(clip_skip=3))
    assert caught.value.field == "clip_skip"


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl-v"])
def test_captions_are_differentiable(hosts, name):
    """Gradients reach what learns in every text encoder, and the conditioning of the UNet."""
    with hosts(name).borrow_model() as model:
        weights = [
            weight
            for encoder in model.text_encoders
            for path, weight in encoder.named_parameters()
            if path.endswith("layers.0.self_attn.q_proj.weight")
        ]
        assert len(weights) == len(model.text_encoders)
        for weight in weights:
            weight.requires_grad_(True)
        told = model.encode_captions(["a red circle"]).of_sizes(SIZES[:1])
        model.predict(torch.randn(1, 4, 8, 8), torch.tensor([500]), told).pow(2).mean().backward()
        gradients = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None
    assert all(gradient.abs().max() > 0 for gradient in gradients)


# --- The UNet -------------------------------------------------------------------------------------


@torch.no_grad()
def test_sdxl_is_told_pooled_captions_and_sizes(hosts):
    """As diffusers' own pipeline would tell it: pooled embedding and height, width, top, left,
    height, width.
    """
    latents, timesteps = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([10, 900]),
    )
    with hosts("sdxl").borrow_model() as model:
        told = model.encode_captions(["a red circle", ""]).of_sizes(SIZES)
        ours = model.predict(latents, timesteps, told)
        assert apart(model.predict(latents, timesteps, told.of_sizes(SIZES[::-1])), ours) > 1e-3
        with pytest.raises(ValueError, match="of_sizes"):
            model.predict(latents, timesteps, Conditioning(told.hidden_states, told.pooled))
    numbers = torch.tensor([[64, 96, 8, 0, 64, 64], [64, 64, 0, 0, 64, 64]])
    theirs = (
        hosts("sdxl")
        ._load()
        .unet(
            latents,
            timesteps,
            encoder_hidden_states=told.hidden_states,
            added_cond_kwargs={"text_embeds": told.pooled, "time_ids": numbers},
        )
        .sample
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["sd1-inpainting", "sd2-inpainting", "sdxl-inpainting"])
@torch.no_grad()
def test_inpainting_is_told_to_paint_everything(hosts, name):
    """The mask is 1 everywhere and what it leaves of the picture is grey, in diffusers' order:
    latents, mask, masked picture.
    """
    latents, timesteps = (
        torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0)),
        torch.tensor([10, 900]),
    )
    with hosts(name).borrow_model() as model:
        told = model.encode_captions(["a red circle", ""]).of_sizes(SIZES)
        ours = model.predict(latents, timesteps, told)
        grey = model.encode_images(torch.zeros(2, 3, 64, 48))
        model.offload_encoders()
        assert model.predict(latents.repeat(1, 1, 2, 1), timesteps, told).shape == (2, 4, 16, 6)
    added = {} if told.pooled is None else {"text_embeds": told.pooled, "time_ids": told.sizes}
    theirs = (
        hosts(name)
        ._load()
        .unet(
            torch.cat([latents, torch.ones(2, 1, 8, 6), grey], dim=1),
            timesteps,
            encoder_hidden_states=told.hidden_states,
            added_cond_kwargs=added,
        )
        .sample
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_pictures_are_encoded_to_the_means(hosts, name):
    pixels = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with hosts(name).borrow_model() as model:
        ours = model.encode_images(pixels)
        assert ours.shape == (2, 4, 8, 6) and not ours.requires_grad
        restored = model.decode_images(ours)
    pipeline = hosts(name)._load()
    scale = 0.13025 if name == "sdxl" else 0.18215
    with torch.no_grad():
        torch.testing.assert_close(
            ours, pipeline.vae.encode(pixels).latent_dist.mean * scale, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            restored, pipeline.vae.decode(ours / scale).sample, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_user_knows_better_what_it_predicts(hosts, prediction_type):
    with hosts("sdxl-v").borrow_model() as model:
        model.configure(ModelOptions(prediction_type=prediction_type, zero_terminal_snr=False))
        assert (model.prediction_type, model.zero_terminal_snr) == (prediction_type, False)
        torch.testing.assert_close(model.alphas_cumprod, scaled_linear_alphas_cumprod())
        model.configure(ModelOptions())
        assert (model.prediction_type, model.zero_terminal_snr) == ("v_prediction", True)


def test_noise_schedules_are_diffusers(hosts):
    from diffusers import DDIMScheduler

    for name, rescaled in (("sd1", False), ("sdxl-v", True)):
        theirs = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            rescale_betas_zero_snr=rescaled,
        ).alphas_cumprod
        with hosts(name).borrow_model() as model:
            torch.testing.assert_close(model.alphas_cumprod, theirs, rtol=1e-4, atol=1e-6)


class Answering(torch.nn.Module):
    """A UNet that answers as a trained one would to nearly pure noise: epsilon is what it sees, v
    is minus the picture.
    """

    def __init__(self, answer) -> None:
        super().__init__()
        self.weight, self.answer, self.config = (
            torch.nn.Parameter(torch.zeros(1)),
            answer,
            type("config", (), {"cross_attention_dim": 1024}),
        )

    def forward(self, latents, timesteps, encoder_hidden_states, return_dict):
        assert timesteps.tolist() == [999] and encoder_hidden_states.shape[2] == 1024
        return (self.answer(latents),)


def test_sd2_is_asked_what_it_predicts():
    assert what_it_predicts(Answering(lambda latents: latents * 0.99)) == "epsilon"
    assert what_it_predicts(Answering(lambda latents: latents - 1.7)) == "v_prediction"


# --- Pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd2-v", "sdxl", "sdxl-v", "ssd-1b", "sdxl-inpainting"])
def test_pictures_follow_the_prompt(hosts, name):
    drawing = dict(steps=2, width=64, height=64)
    one, two, long = (
        np.asarray(hosts(name).generate(prompt, **drawing), float)
        for prompt in ("a", "a (circle:1.3)", "word " * 100)
    )
    assert one.shape == (64, 64, 3) and np.abs(one - two).max() > 5 and np.abs(two - long).max() > 5
    assert np.array_equal(one, hosts(name).generate("a", **drawing))


def test_pictures_are_those_of_diffusers_pipeline(hosts):
    """Given the same noise and words, its text-to-picture pipeline draws the same with everything
    left to it.
    """
    pipeline, noise = (
        hosts("sdxl")._load(),
        torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(5)),
    )
    pipeline.tokenizer_2.pad_token = "!"
    ours = np.asarray(
        hosts("sdxl").generate("a red circle", seed=5, steps=3, guidance=5.0, width=64, height=64),
        float,
    )
    theirs = pipeline(
        "a red circle",
        latents=noise,
        num_inference_steps=3,
        guidance_scale=5.0,
        width=64,
        height=64,
    ).images[0]
    assert np.abs(ours - np.asarray(theirs, float)).max() <= 1
