"""A LoRA trains in a running WebUI, and people go on: they generate, change checkpoints and
settings, reload the page. Invariant 6 and more.
"""

import base64
import io
import os
import time

import pytest
from PIL import Image
from safetensors.torch import load_file

API = "/train-lora/v1"
PROMPT = "a red circle on a white background"
ANOTHER = "zz-another"
LONG = {"max_train_steps": 100_000, "preview": False}
STEPS, PICTURES = (300, 20) if os.environ.get("TRAIN_LORA_LONG_TESTS") else (120, 8)


@pytest.fixture
def training(webui, run):
    """Start a run that does not end by itself; it is stopped after the test."""
    started = []

    def start(**changes):
        started.append(webui.start_job(**run | LONG | changes))
        webui.wait_for(started[-1], lambda job: job["step"] >= 2)
        return started[-1]

    yield start
    for job in started:
        webui.post(f"{API}/jobs/{job}/stop")
        webui.wait(job)


@pytest.fixture(scope="module")
def alone(webui, tmp_path_factory):
    """Settings of a run of some seconds, and the LoRA that it gives when nobody does anything
    meanwhile.
    """
    folder = tmp_path_factory.mktemp("alone")
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 90, 200 - 20 * number)).save(
            folder / f"{number}.png"
        )
        (folder / f"{number}.txt").write_text(f"a colour, number {number}", encoding="utf-8")
    settings = dict(
        train_data_dir=str(folder),
        overwrite=True,
        resolution=64,
        max_train_steps=STEPS,
        batch_size=2,
        learning_rate=2e-2,
        lora_rank=4,
        preview=False,
    )
    webui.train(**settings | {"output_name": "alone"})
    return settings | {"output_name": "shared"}


@pytest.fixture
def is_as_alone(webui):
    """Compare the LoRA that was trained with others at work with the one that was trained alone,
    bit by bit.
    """

    def check():
        alone, shared = (
            load_file(webui.lora_dir / f"{name}.safetensors") for name in ("alone", "shared")
        )
        assert (
            all((alone[name] == shared[name]).all() for name in alone)
            and alone.keys() == shared.keys()
        )

    return check


@pytest.fixture
def other_lora(webui, run):
    webui.train(**run | {"output_name": "other", "seed": 7})
    return "<lora:other:0.8>"


def picture():
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def drawings(lora):
    """Every way of drawing that must give the same picture while a LoRA trains."""
    init = picture()
    return {
        "plain": dict(prompt=PROMPT),
        "another LoRA": dict(prompt=f"{PROMPT} {lora}"),
        "hires fix": dict(
            prompt=PROMPT, enable_hr=True, hr_scale=2, hr_upscaler="Latent", denoising_strength=0.6
        ),
        "hires fix with a LoRA": dict(
            prompt=PROMPT,
            enable_hr=True,
            hr_scale=2,
            hr_upscaler="Latent",
            denoising_strength=0.6,
            hr_prompt=f"{PROMPT} {lora}",
        ),
        "img2img": dict(
            path="/sdapi/v1/img2img", prompt=PROMPT, init_images=[init], denoising_strength=0.5
        ),
        "another sampler": dict(prompt=PROMPT, sampler_name="DPM++ 2M", scheduler="Karras"),
        "an ancestral sampler": dict(prompt=PROMPT, sampler_name="Euler a"),
        "batch of 4": dict(prompt=PROMPT, batch_size=4),
        "two batches of 2": dict(prompt=PROMPT, batch_size=2, n_iter=2),
        "tiling": dict(prompt=PROMPT, tiling=True),
    }


def test_pictures_drawn_meanwhile_are_the_same(webui, training, other_lora):
    """Invariant 6, by the hashes of the pixels; and the training goes on between them."""
    wanted = {name: webui.pictures(**settings) for name, settings in drawings(other_lora).items()}
    assert (
        len({tuple(pictures) for pictures in wanted.values()}) >= len(wanted) - 1
        and len(wanted["batch of 4"]) >= 4
    )  # both batches have the same seeds
    job = training()
    steps, meanwhile = [], {}
    for name, settings in drawings(other_lora).items():
        meanwhile[name] = webui.pictures(**settings)
        steps.append(
            webui.wait_for(job, lambda now: now["step"] > (steps[-1] if steps else 0))["step"]
        )
    print(
        *(f"{name}: {wanted[name][0][:12]} {meanwhile[name][0][:12]}" for name in wanted), sep="\n"
    )
    assert meanwhile == wanted
    assert webui.get(f"{API}/jobs/{job}")["state"] == "training"


def test_pictures_wait_for_one_step_and_change_nothing(webui, alone, is_as_alone):
    """The LoRA is bit for bit the one of a run without pictures."""
    job = webui.start_job(**alone)
    webui.wait_for(job, lambda now: now["step"] >= 3)
    webui.get("/probe/waits")
    for number in range(PICTURES):
        webui.wait_for(job, lambda now: now["step"] >= 5 + 12 * number)
        webui.draw(f"{PROMPT}, number {number}", seed=number)
    waits, ended = webui.get("/probe/waits"), webui.wait(job)
    print(
        "steps and milliseconds that each picture waited:",
        *(f"{wait['steps']}/{1000 * wait['seconds']:.0f}" for wait in waits),
    )
    assert ended["state"] == "finished" and len(waits) == PICTURES
    assert max(wait["steps"] for wait in waits) <= 1
    is_as_alone()


def test_nobody_starves_beside_busy_threads(webui, training):
    """The queue's lock forgets whom it has woken; the trainer lets them in all the same."""
    job = training()
    webui.post("/probe/busy", {"threads": 2})
    try:
        webui.get("/probe/waits")
        for number in range(3):
            webui.draw(PROMPT, seed=number, steps=1)  # everything is slow beside such threads
            step = webui.get(f"{API}/jobs/{job}")["step"]
            webui.wait_for(job, lambda now: now["step"] > step)
    finally:
        webui.post("/probe/busy", {"threads": 0})
    waits = webui.get("/probe/waits")
    assert len(waits) == 3 and max(wait["steps"] for wait in waits) <= 1


def test_exclusive_lets_pictures_wait_until_the_end(webui, run):
    job = webui.start_job(**run | {"max_train_steps": 60, "sharing": "exclusive", "preview": False})
    webui.wait_for(job, lambda now: now["step"] >= 2)
    webui.draw(PROMPT)
    assert webui.get(f"{API}/jobs/{job}")["step"] == 60


def set_option(webui, **options):
    webui.post("/sdapi/v1/options", options)


def checkpoint_title(webui, name):
    return next(
        each["title"] for each in webui.get("/sdapi/v1/sd-models") if each["model_name"] == name
    )


@pytest.mark.parametrize("same_objects", [False, True], ids=["other objects", "same objects"])
def test_another_checkpoint_pauses_and_the_button_brings_it_back(
    webui, alone, is_as_alone, same_objects
):
    first = webui.get(f"{API}/status")["model"]["checkpoint"]
    webui.post("/probe/same-config", {"on": same_objects})
    try:
        job, model = webui.start_job(**alone), webui.get("/probe/model-object")
        webui.wait_for(job, lambda now: now["step"] >= 20)
        set_option(webui, sd_model_checkpoint=checkpoint_title(webui, ANOTHER))
        paused = webui.wait_for(job, lambda now: now["waiting_for"] == "checkpoint")
        assert (
            paused["state"] == "paused"
            and paused["checkpoint"] == first
            and paused["message"]
            == f"Paused: waiting for the checkpoint {first}; {ANOTHER} is loaded."
        )
        assert (webui.get("/probe/model-object") == model) == same_objects
        other = webui.draw(PROMPT)
        time.sleep(1)
        assert webui.get(f"{API}/jobs/{job}")["step"] == paused["step"]
        webui.post(f"{API}/jobs/{job}/load-checkpoint")
        assert webui.wait(job)["state"] == "finished"
        assert webui.draw(PROMPT) != other
    finally:
        webui.post("/probe/same-config", {"on": False})
    is_as_alone()


def test_a_job_from_the_queue_waits_for_its_checkpoint(webui, run):
    """It was added while the first was loaded; when its turn comes another is."""
    first, api = webui.get(f"{API}/status")["model"]["checkpoint"], f"{API}/queue"
    webui.post(f"{api}/hold")
    job = webui.start_job(**run | {"output_name": "queued", "preview": False})
    set_option(webui, sd_model_checkpoint=checkpoint_title(webui, ANOTHER))
    webui.post(f"{api}/start")
    paused = webui.wait_for(job, lambda now: now["waiting_for"] == "checkpoint")
    assert paused["checkpoint"] == first and paused["step"] == 0
    webui.post(f"{API}/jobs/{job}/load-checkpoint")
    assert webui.wait(job)["state"] == "finished"


def test_stop_while_the_checkpoint_is_another(webui, training):
    """What was learned is saved, though the model is not there."""
    first = webui.get(f"{API}/status")["model"]["checkpoint"]
    job = training(output_name="left")
    set_option(webui, sd_model_checkpoint=checkpoint_title(webui, ANOTHER))
    webui.wait_for(job, lambda now: now["waiting_for"] == "checkpoint")
    webui.post(f"{API}/jobs/{job}/stop")
    ended = webui.wait(job)
    assert (
        ended["state"] == "stopped"
        and (webui.lora_dir / "left.safetensors").is_file()
        and ended["resumable"]
    )
    webui.post(f"{API}/jobs/{job}/resume")
    paused = webui.get(f"{API}/jobs/{job}")  # it waits for its checkpoint, as before
    while paused["waiting_for"] != "checkpoint":
        paused = webui.get(f"{API}/jobs/{job}")
    assert paused["checkpoint"] == first
    webui.post(f"{API}/jobs/{job}/load-checkpoint")
    webui.wait_for(job, lambda now: now["step"] > ended["step"] + 2)


def test_weights_that_others_changed_are_noticed(webui, training):
    job = training()
    webui.post("/probe/spoil")
    paused = webui.wait_for(job, lambda now: now["waiting_for"] == "checkpoint")
    assert "weights" in paused["message"] and "Load the checkpoint again" in paused["message"]
    webui.post(f"{API}/jobs/{job}/load-checkpoint")
    webui.wait_for(job, lambda now: now["step"] > paused["step"] + 2)


def test_settings_changed_meanwhile_do_not_change_the_lora(webui, alone, is_as_alone):
    """The run goes on by itself, or when the setting is put back."""
    changes = {
        "cross_attention_optimization": "InvokeAI",
        "CLIP_stop_at_last_layers": 2,
        "sd_vae": "None",
        "fp8_storage": "Enable",
        "token_merging_ratio": 0.3,
        "sd_checkpoints_limit": 2,
        "lora_functional": True,
        "eta_noise_seed_delta": 5,
    }
    before = {
        name: value for name, value in webui.get("/sdapi/v1/options").items() if name in changes
    }
    job = webui.start_job(**alone)
    for number, (name, value) in enumerate(changes.items()):
        webui.wait_for(job, lambda now: now["step"] >= 5 + 8 * number)
        try:
            set_option(webui, **{name: value})
            webui.draw(PROMPT)
        finally:
            set_option(webui, **{name: before[name]})
    assert webui.wait(job)["state"] == "finished"
    is_as_alone()


def test_unloading_and_loading_the_checkpoint(webui, training):
    """The WebUI's own unload asks for no lock; it waits for the step, and training goes on when the
    checkpoint is where it computes.
    """
    job = training()
    before = len(webui.get("/probe/moves"))
    for _ in range(5):
        webui.post("/sdapi/v1/unload-checkpoint")
        webui.post("/sdapi/v1/reload-checkpoint")
    moves = webui.get("/probe/moves")[before:]
    assert moves == [False] * 5  # never while a step had the model
    step = webui.get(f"{API}/jobs/{job}")["step"]
    webui.wait_for(job, lambda now: now["step"] > step + 2)


def test_interrupt_and_skip_are_for_pictures(webui, training):
    job = training()
    for button in ("interrupt", "skip"):
        webui.post(f"/sdapi/v1/{button}")
    step = webui.get(f"{API}/jobs/{job}")["step"]
    webui.wait_for(job, lambda now: now["step"] > step + 2)


def test_live_lora_is_what_was_learned_up_to_the_picture(webui, training):
    job = training(output_name="alive", live=True, learning_rate=5e-2)
    pictures = []
    for _ in range(3):
        pictures.append(webui.draw(f"{PROMPT} <lora:alive:1>"))
        step = webui.get(f"{API}/jobs/{job}")["step"]
        webui.wait_for(job, lambda now: now["step"] > step + 10)
    assert len({*pictures, webui.draw(PROMPT)}) == 4
    written = (webui.lora_dir / "alive.safetensors").stat().st_mtime_ns
    webui.draw(PROMPT)
    assert (
        webui.lora_dir / "alive.safetensors"
    ).stat().st_mtime_ns == written  # a picture that does not name it writes nothing


def test_the_name_means_the_newest_snapshot(webui, training):
    job = training(output_name="steps", save_steps=20, learning_rate=5e-2)
    webui.wait_for(job, lambda now: len(now["snapshots"]) >= 1)
    first = webui.draw(f"{PROMPT} <lora:steps:1>")
    count = len(webui.get(f"{API}/jobs/{job}")["snapshots"])
    webui.wait_for(job, lambda now: len(now["snapshots"]) >= count + 1)
    webui.post(f"{API}/jobs/{job}/pause")
    webui.wait_for(job, lambda now: now["state"] == "paused")
    newest = webui.get(f"{API}/jobs/{job}")["snapshots"][-1]
    assert (
        webui.draw(f"{PROMPT} <lora:steps:1>") == webui.draw(f"{PROMPT} <lora:{newest}:1>") != first
    )


def test_pause_frees_the_webui_and_resume_goes_on(webui, training):
    job = training()
    for body in ({}, {"free_memory": True}):
        webui.post(f"{API}/jobs/{job}/pause", body)
        paused = webui.wait_for(job, lambda now: now["state"] == "paused")
        assert (
            paused["waiting_for"] == "user"
            and paused["state_step"] == paused["step"]
            and not webui.get("/probe/state")["locked"]
        )
        assert webui.get("/probe/state")["own_forwards"] == []
        webui.draw(PROMPT)
        assert webui.get(f"{API}/jobs/{job}")["step"] == paused["step"]
        webui.post(f"{API}/jobs/{job}/resume")
        webui.wait_for(job, lambda now: now["step"] > paused["step"] + 2)


def test_memory_that_runs_out_leaves_a_webui_that_draws(webui, run):
    wanted = webui.draw(PROMPT)
    webui.post("/probe/out-of-memory", {"times": 2})
    job = webui.train(**run | {"preview": False})
    assert (
        job["state"] == "finished"
        and len(job["remarks"]) == 2
        and "gradient checkpointing" in job["remarks"][0]
    )
    assert webui.draw(PROMPT) == wanted
    webui.post("/probe/out-of-memory", {"times": 10**6})
    job = webui.train(**run | {"output_name": "never", "preview": False})
    webui.post("/probe/out-of-memory", {"times": 0})
    assert job["state"] == "failed" and "Memory ran out" in job["error"]
    assert webui.draw(PROMPT) == wanted


def test_reload_ui_in_the_middle(webui, alone, is_as_alone):
    """The page is made anew while the run goes on; it ends with the LoRA that it would have had."""
    job = webui.start_job(**alone)
    webui.wait_for(job, lambda now: now["step"] >= 5)
    log = webui.folder / "log.txt"
    starts, deadline = log.read_bytes().count(b"Startup time"), time.monotonic() + 60
    webui.post("/probe/reload-ui")
    while (
        log.read_bytes().count(b"Startup time") == starts and time.monotonic() < deadline
    ):  # a request before that would break the WebUI's start
        time.sleep(0.2)
    ended = webui.wait(job)
    assert ended["state"] == "finished"
    webui.draw(PROMPT)
    is_as_alone()
