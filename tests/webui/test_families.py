"""Every family that the WebUI loads, as small checkpoints in one running WebUI: prompts, a neutral
start, the same LoRA everywhere, a job and its tag.

Needs diffusers here, to write the checkpoints, besides a WebUI.
"""

import pytest

# name: family, variant, prediction, zero terminal SNR
FAMILIES = {
    "sd1": ("sd1", "", "epsilon", False),
    "sd2": ("sd2", "", "epsilon", False),
    "sdxl-v": ("sdxl", "", "v_prediction", True),
    "sd1-inpainting": ("sd1", "inpainting", "epsilon", False),
    "sd2-v": ("sd2", "", "v_prediction", False),
    "sd2-inpainting": ("sd2", "inpainting", "epsilon", False),
    "sdxl": ("sdxl", "", "epsilon", False),
    "sdxl-inpainting": ("sdxl", "inpainting", "epsilon", False),
    "ssd-1b": ("sdxl", "ssd-1b", "epsilon", False),
}
one_each = pytest.mark.parametrize(
    "loaded", list(FAMILIES)[:3], indirect=True
)  # where the others would add time and nothing else
PROMPT = "a red circle on a white background"
PLAIN = [PROMPT, ", ".join(["circle"] * 50), ""]  # 10, 100 and no tokens
WEIGHTED = [*PLAIN, "a (red:1.3) circle, [small], ((bright)) BREAK \\(blue\\)"]
DIFFERENCE, EFFECT = (
    1e-4,
    0.05,
)  # the largest allowed of predictions, relative; the least that a LoRA does
# Layers that a model never reads learn nothing: the last of a text encoder that is read at the
# layer before, unless its pooled embedding is used.
SILENT = {
    "sd1": "",
    "sd2": "te1.transformer.resblocks.9.",
    "sdxl": "te1.text_model.encoder.layers.1.",
}


@pytest.fixture(scope="module")
def families(tmp_path_factory, start_webui):
    """A WebUI with a checkpoint of every family; none needs a model of its own for pictures that
    are not finished.
    """
    pytest.importorskip("diffusers")
    from tests.support.narrow_checkpoint import write_family

    checkpoints = tmp_path_factory.mktemp("families")
    for name in (*FAMILIES, "sdxl-refiner"):
        write_family(name, checkpoints)
    with start_webui(tmp_path_factory.mktemp("webui"), checkpoints) as running:
        running.post("/sdapi/v1/options", {"show_progress_type": "Approx cheap"})
        yield running


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, families):
    """The WebUI with one family's checkpoint loaded."""
    families.model = families.load(request.param)
    families.model["name"] = request.param
    return families


def test_status_tells_what_is_loaded(loaded):
    model = loaded.model
    assert model["trainable"], model["reason"]
    assert (
        model["family"],
        model["variant"],
        model["prediction_type"],
        model["zero_terminal_snr"],
    ) == FAMILIES[model["name"]]
    assert model["checkpoint"] == model["name"] and model["size_px"] == 64


def test_captions_are_encoded_as_prompts(loaded):
    check_captions(loaded, WEIGHTED, weighted=True)


@one_each
def test_clip_skip_and_literal_captions_as_prompts(loaded):
    check_captions(loaded, PLAIN, weighted=False, clip_skip=2)
    check_captions(loaded, WEIGHTED, weighted=True, clip_skip=2, clip_l_skip=True)


def check_captions(loaded, captions, *, weighted, clip_skip=1, clip_l_skip=False):
    seen = loaded.post(
        "/probe/encoding-differences",
        {
            "captions": captions,
            "weighted": weighted,
            "clip_skip": clip_skip,
            "clip_l_skip": clip_l_skip,
        },
    )
    assert seen.pop("tokens together")[:2] == [len(captions), 2 * 77]
    assert set(seen.values()) == {0.0}, seen


def test_same_lora(loaded):
    check_lora(loaded, "lora", "all", text_encoder=True)


@one_each
def test_same_loha_and_lokr(loaded):
    check_lora(loaded, "loha", "attention", text_encoder=False)
    check_lora(loaded, "lokr", "attention+feed-forward", text_encoder=True)


@one_each
def test_same_lora_of_the_text_encoder_alone(loaded):
    check_lora(loaded, "lora", "all", text_encoder=True, unet=False)


def check_lora(loaded, kind, targets, *, text_encoder, unet=True):
    """New adapters change nothing and leave no trace; with weights they predict what the WebUI's
    loader makes of their file.
    """
    seen = loaded.post(
        "/probe/same-lora",
        {
            "name": f"random-{kind}",
            "captions": [PROMPT, "a blue square"],
            "kind": kind,
            "targets": targets,
            "text_encoder": text_encoder,
            "unet": unet,
        },
    )
    assert seen["start"] == 0.0 and seen["touched"] == [] and seen["unmatched"] == []
    assert seen["groups"].keys() == {
        name for name, learns in (("unet", unet), ("text_encoder", text_encoder)) if learns
    }
    assert seen["bare"] < DIFFERENCE and seen["effect"] > (EFFECT if unet else EFFECT / 5)
    assert seen["difference"] < DIFFERENCE


@one_each
def test_every_layer_that_is_read_learns(loaded):
    """Through UNet and text encoders, and the same with gradient checkpointing."""
    seen = loaded.post("/probe/gradients", {"captions": [PROMPT, "a blue square"]})
    silent = SILENT[loaded.model["family"]]
    assert len(seen["silent"]) == (6 if silent else 0) and all(
        path.startswith(silent) for path in seen["silent"]
    )
    assert seen["same_silent"] and seen["difference"] < 1e-5 and seen["untouched"]


@one_each
def test_vae_held_in_halves(loaded):
    """A 16-bit VAE encodes in float32 on the CPU, as SDXL's does everywhere, and its own tensors
    are back.
    """
    seen = loaded.get("/probe/pictures-in-halves")
    assert seen["difference"] < 1e-5 and seen["untouched"] and seen["dtype"] == "torch.float32"


@one_each
def test_plan_counts_while_another_job_trains(loaded):
    seen = loaded.get("/probe/counted")
    assert seen["before"] == seen["while"] > 1000


def test_from_pictures_to_a_prompt(loaded, run):
    without = loaded.draw(PROMPT)
    clean = loaded.get("/probe/state")
    name = loaded.model["name"]
    job = loaded.train(
        **run
        | {
            "output_name": f"mine-{name}",
            "max_train_steps": 3,
            "learning_rate": 1e-2,
            "train_text_encoder": True,
            "text_encoder_lr": 1e-2,
            "gradient_checkpointing": True,
            "save_precision": "fp32",
            "mixed_precision": "bf16" if name.endswith("-v") else "auto",
        }
    )
    assert job["state"] == "finished", job["error"]
    after = loaded.get("/probe/state")
    assert [key for key in clean if clean[key] != after[key]] == []
    assert loaded.draw(f"{PROMPT} <lora:mine-{name}:1>") != without
    assert loaded.draw(PROMPT) == without


# --- One family is enough -------------------------------------------------------------------------


def test_reader_knows_better_than_the_checkpoint(families):
    families.load("sdxl")
    assert families.post("/probe/read-as", {})["last"] > 0.004
    seen = families.post(
        "/probe/read-as", {"prediction_type": "v_prediction", "zero_terminal_snr": True}
    )
    assert (seen["prediction_type"], seen["zero_terminal_snr"], seen["last"]) == (
        "v_prediction",
        True,
        0.0,
    )
    families.load("sdxl-v")
    assert families.post("/probe/read-as", {})["last"] == 0.0
    seen = families.post(
        "/probe/read-as", {"prediction_type": "epsilon", "zero_terminal_snr": False}
    )
    assert (seen["prediction_type"], seen["zero_terminal_snr"]) == ("epsilon", False) and seen[
        "last"
    ] > 0.004


@pytest.mark.parametrize(("name", "most"), [("sd1", 2), ("sd2", 2), ("sdxl", 2)])
def test_clip_skip_that_the_model_has_not_is_refused(families, name, most):
    families.load(name)
    assert "refused" not in families.post("/probe/read-as", {"clip_skip": most})
    seen = families.post("/probe/read-as", {"clip_skip": most + 1})
    assert seen["field"] == "clip_skip" and f"Clip skip {most + 1}" in seen["refused"]


def test_refiner_is_refused(families):
    model = families.load("sdxl-refiner")
    assert not model["trainable"] and "refiner" in model["reason"]


@pytest.mark.parametrize("name", ["sd2", "sdxl-v", "sd1-inpainting"])
def test_medvram_trains_the_unet_alone(families, run, name):
    """The WebUI's own hooks move each part to the GPU when it is wanted; captions that vary would
    want two there.
    """
    families.load("sdxl-refiner")  # so that the next is made anew
    families.post("/probe/medvram", {"on": True})
    try:
        assert families.load(name)["trainable"]
        seen = families.get("/probe/medvram-moves")
        assert seen == {
            "encodes_between_steps": False,
            "encode_images": "vae",
            "encode_captions": "text",
            "parts": "unet",
            "predict": "unet",
            "finite": True,
        }
        trained = run | {"output_name": "medvram", "max_train_steps": 2}
        assert families.train(**trained)["state"] == "finished"
        refused = families.train(**trained | {"train_text_encoder": True})
        assert refused["state"] == "failed" and "--medvram" in refused["error"]
    finally:
        families.post("/probe/medvram", {"on": False})
        families.load("sdxl-refiner")
