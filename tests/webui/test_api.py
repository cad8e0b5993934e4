"""The main job by HTTP, in a running WebUI: pictures in, a LoRA out, its tag in the next prompt."""

import json
from pathlib import Path

import pytest

API, PROMPT = "/train-lora/v1", "a red circle on a white background"


@pytest.fixture(scope="module")
def answer_type(webui):
    """The exception that `webui` raises for a refusal; conftest.py cannot be imported by name."""
    with pytest.raises(Exception) as refusal:
        webui.get(f"{API}/jobs/none")
    return type(refusal.value)


def test_status_describes_the_loaded_checkpoint(webui):
    status = webui.get(f"{API}/status")
    assert status["host"]["kind"] == "webui"
    assert (
        status["model"]["trainable"]
        and status["model"]["family"] == "sd1"
        and status["model"]["dtype"] == "float32"
    )
    assert status["lora_dir"] == str(webui.lora_dir)
    assert Path(status["data_dir"]) == webui.folder / "train_lora"


def test_from_pictures_to_a_prompt(webui, pictures, run):
    without = webui.draw(PROMPT)
    files = {path.name: path.read_bytes() for path in sorted(pictures.iterdir())}
    webui.post(f"{API}/datasets", {"name": "circles"})
    received = webui.upload(
        f"{API}/datasets/circles/images", files | {"not-a-picture.png": b"hello"}
    )
    assert sorted(received["added"]) == sorted(files) and [
        each["filename"] for each in received["refused"]
    ] == ["not-a-picture.png"]
    assert len(webui.get(f"{API}/datasets/circles")["pictures"]) == 6

    config = run | {
        "train_data_dir": "circles",
        "output_name": "circles",
        "overwrite": False,
        "trigger_word": "zib",
        "preview": True,
    }
    plan = webui.post(f"{API}/plan", {"config": config})
    assert plan["errors"] == [] and plan["pictures"] == 6 and plan["steps"] == 6
    job = webui.train(**config)
    assert job["state"] == "finished", job["error"]
    assert job["step"] == job["total_steps"] == 6 and job["lora_tag"] == "<lora:circles:0.8>"
    output = Path(job["output_file"])
    assert output == webui.lora_dir / "circles.safetensors" and output.is_file()
    assert (
        json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["activation text"]
        == "zib"
    )
    assert [path.name for path in webui.lora_dir.glob("circles*.png")]

    assert "circles" in [lora["name"] for lora in webui.get("/sdapi/v1/loras")]
    assert webui.draw(f"{PROMPT} {job['lora_tag']}") != without
    assert webui.draw(PROMPT) == without
    assert [row["step"] for row in webui.get(f"{API}/jobs/{job['id']}/metrics")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_taken_name_is_refused(webui, run, answer_type):
    webui.train(**run)
    with pytest.raises(answer_type) as refusal:
        webui.start_job(**run | {"overwrite": False})
    assert (
        refusal.value.status == 409
        and refusal.value.error["code"] == "name_taken"
        and refusal.value.error["field"] == "output_name"
    )


def test_second_job_waits_for_the_first(webui, run):
    first = webui.start_job(**run | {"max_train_steps": 100_000})
    second = webui.post(f"{API}/jobs", {"config": run | {"output_name": "second"}})
    assert second["state"] == "queued" and second["position"] == 0
    webui.post(f"{API}/jobs/{first}/stop")
    assert (
        webui.wait(first)["state"] == "stopped" and webui.wait(second["id"])["state"] == "finished"
    )


def test_first_step_and_tag_come_soon(webui, run):
    """From the request to the first step at most 5 s and encoding, from the last step to a working
    tag at most 1 s: the job's log says so.
    """
    job = webui.train(**run)
    log = (webui.folder / "train_lora" / "jobs" / str(job["id"]) / "log.txt").read_text(
        encoding="utf-8"
    )
    first = next(line for line in log.splitlines() if "first step done" in line)
    ready = next(line for line in log.splitlines() if "after the last step" in line)
    assert float(first.split("done ")[1].split()[0]) - float(first.split("took ")[1].split()[0]) < 5
    assert float(ready.split("ready ")[1].split()[0]) < 1
