"""What `hosts/webui/host.py` promises, seen from inside a running WebUI through
tests/webui/probe.
"""

import time

import pytest

PROMPT, TAG = "a red circle on a white background", "<lora:mine:0.8>"


@pytest.fixture
def clean(webui):
    """The model's state after a picture without anything: no LoRA in it."""
    webui.draw(PROMPT)
    return webui.get("/probe/state")


def changed(before: dict, after: dict) -> list[str]:
    return [key for key in before if before[key] != after[key]]


@pytest.mark.parametrize(
    "settings",
    [
        {"preview": True},
        {"lora_targets": "all", "gradient_checkpointing": True, "lora_dropout": 0.2},
        {"mixed_precision": "bf16"},
    ],
)
def test_finished_run_leaves_no_trace(webui, run, clean, settings):
    assert webui.train(**run | settings)["state"] == "finished"
    assert changed(clean, webui.get("/probe/state")) == []


def test_stopped_run_leaves_no_trace(webui, run, clean):
    job = webui.start_job(**run | {"max_train_steps": 100_000})
    while webui.get(f"/train-lora/v1/jobs/{job}")["step"] < 2:
        time.sleep(0.05)
    webui.post(f"/train-lora/v1/jobs/{job}/stop")
    assert webui.wait(job)["state"] == "stopped"
    assert changed(clean, webui.get("/probe/state")) == []


def test_run_that_breaks_leaves_no_trace(webui, run, clean):
    job = webui.train(
        **run
        | {
            "output_name": "broken",
            "learning_rate": 1.0,
            "lora_alpha": 4096,
            "max_grad_norm": 0,
            "max_train_steps": 50,
        }
    )
    assert job["state"] == "failed" and "learning rate" in job["error"]
    assert not (webui.lora_dir / "broken.safetensors").exists()
    assert changed(clean, webui.get("/probe/state")) == []


def test_exception_in_the_middle_of_a_step_leaves_no_trace(webui, clean):
    seen = webui.post("/probe/fail")
    assert seen["raised"] == "in the middle"
    assert changed(seen["before"], seen["after"]) == []
    assert changed(clean, seen["after"]) == []


def test_what_the_last_picture_left_is_not_trained_on(webui, run, clean):
    """A LoRA in the weights and tiling, of the picture before, do not get into the run: its result
    is that of a run without them.
    """
    webui.train(**run)
    webui.draw(PROMPT)
    first = webui.draw(f"{PROMPT} {TAG}")
    webui.draw(f"{PROMPT} <lora:mine:1.0>", tiling=True)
    dirty = webui.get("/probe/state")
    assert dirty["applied_loras"] > 0 and dirty["tiling"][0]
    webui.train(**run)
    after = webui.get("/probe/state")
    assert (
        after["weights"] == clean["weights"]
        and after["storages"] == clean["storages"]
        and after["applied_loras"] == 0
    )
    assert after["tiling"] == dirty["tiling"]
    assert webui.draw(f"{PROMPT} {TAG}") == first


def test_webui_loader_predicts_the_same(webui, run):
    for changes in (
        {"lora_targets": "attention"},
        {"lora_targets": "attention+feed-forward"},
        {"lora_targets": "all"},
        {"lora_targets": "all", "use_dora": True},
    ):
        webui.train(**run | changes)
        seen = webui.post("/probe/predictions", {"name": "mine"})
        assert seen["unmatched"] == []
        assert seen["effect"] > 0.01
        assert seen["difference"] < 1e-4 * max(1.0, seen["effect"])
    assert set(seen["start_differences"].values()) == {0.0}


def test_overwritten_file_is_in_the_next_picture(webui, run):
    webui.train(**run)
    first = webui.draw(f"{PROMPT} {TAG}")
    assert webui.draw(f"{PROMPT} {TAG}") == first
    webui.train(**run | {"seed": 7})
    second = webui.draw(f"{PROMPT} {TAG}")
    assert second != first
    webui.train(**run)
    assert webui.draw(f"{PROMPT} {TAG}") == first


def test_card_is_there_in_both_tabs(webui, run):
    before = webui.get("/probe/cards")  # the WebUI keeps the cards it has drawn once
    assert "fresh" not in before["txt2img"]
    webui.train(**run | {"output_name": "fresh"})
    after = webui.get("/probe/cards")
    assert "fresh" in after["txt2img"] and "fresh" in after["img2img"]


def test_captions_are_encoded_as_prompts(webui):
    seen = webui.post("/probe/encodings", {"caption": PROMPT})
    assert seen["caption_difference"] == 0.0
    assert seen["picture_difference"] < 1e-6
    assert seen["untouched"] and not seen["requires_grad"]


def test_captions_are_literal_and_end_after_225_tokens(webui):
    assert (
        webui.post("/probe/encodings", {"caption": "a (red:1.5) circle"})["caption_difference"]
        > 0.01
    )
    assert webui.post("/probe/encodings", {"caption": "circle " * 300})["shape"][1] == 3 * 77


def test_clip_skip_is_honoured(webui):
    webui.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 2})
    try:
        assert webui.post("/probe/encodings", {"caption": PROMPT})["caption_difference"] == 0.0
    finally:
        webui.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 1})


def test_what_cannot_train_is_refused_in_a_sentence(webui):
    said = webui.get("/probe/refusals")
    assert said.pop("as it is") is None
    for case, sentence in said.items():
        assert sentence and sentence.endswith("."), case
    assert (
        "--lowvram" in said["lowvram"]
        and "fp8" in said["fp8"]
        and "8 channels" in said["editing"]
        and "9 channels" in said["not set up for inpainting"]
    )


def test_previews_are_the_webui_s_own_pictures(webui, run):
    webui.train(**run)
    request = dict(prompt=f"{PROMPT} {TAG}", seed=1, steps=4, width=64, height=64)
    assert webui.post("/probe/generate", request)["pixels"] == webui.draw(f"{PROMPT} {TAG}")
    assert webui.post("/probe/generate-while-lent", request)["left"] == []


def test_previews_leave_no_trace(webui, run, clean):
    webui.train(**run)
    webui.post(
        "/probe/generate", dict(prompt=f"{PROMPT} {TAG}", seed=1, steps=2, width=64, height=64)
    )
    assert changed(clean, webui.get("/probe/state")) == []


@pytest.mark.parametrize(
    ("api_auth", "login", "welcome"),
    [
        (None, False, {"nobody", "cookie", "wrong cookie", "basic", "wrong basic", "nonsense"}),
        ("me:x,u:p:w", False, {"basic"}),
        (None, True, {"cookie"}),
        ("me:x,u:p:w", True, {"basic", "cookie"}),
    ],
)
def test_guard_lets_in_whom_the_webui_would(webui, api_auth, login, welcome):
    said = webui.post("/probe/guard", {"api_auth": api_auth, "login": login})
    assert {name for name, answer in said.items() if answer == "in"} == welcome
    assert {answer for name, answer in said.items() if name not in welcome} <= {401}
