"""Captioners and label lists by REST: the forms of requests and answers that the page relies on."""

import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from lora_trainer.demo import world
from lora_trainer.jobs.service import TrainingService
from lora_trainer.web import api

V1 = "/train-lora/v1"


@pytest.fixture
def service(host):
    return TrainingService(host)


@pytest.fixture
def client(service, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    folder = tmp_path / "shapes"
    folder.mkdir()
    for number, scene in enumerate(
        (world.Scene("circle", "red", "blue"), world.Scene("cross", "green", "white"))
    ):
        Image.fromarray(world.paint(scene)).resize((128, 128)).save(folder / f"{number}.png")
    app = FastAPI()
    api.mount(app, service)
    client = TestClient(app)
    assert client.post(f"{V1}/datasets", json={"path": str(folder)}).status_code == 201
    return client


def finish(client, job_id):
    deadline = time.monotonic() + 60
    while (job := client.get(f"{V1}/jobs/{job_id}").json())["state"] not in (
        "finished",
        "failed",
        "stopped",
    ):
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def test_captioners_describe_themselves(client):
    found = {each["name"]: each for each in client.get(f"{V1}/captioners").json()}
    assert list(found) == ["clip-labels", "coca", "wd-tagger", "fixed"]
    assert all(
        set(each)
        == {"name", "title", "help", "ready", "needs", "download_bytes", "downloads", "options"}
        for each in found.values()
    )
    assert (
        found["fixed"]["ready"]
        and found["fixed"]["needs"] == ""
        and found["fixed"]["download_bytes"] is None
    )
    options = {option["name"]: option for option in found["clip-labels"]["options"]}
    assert options["threshold"] == {
        "name": "threshold",
        "title": "Threshold",
        "type": "float",
        "default": 0.2,
        "minimum": 0.0,
        "maximum": 1.0,
        "step": 0.05,
        "help": options["threshold"]["help"],
    }
    assert options["model"]["type"] == "choice" and {
        choice["value"] for choice in options["model"]["choices"]
    } >= {"demo", "ViT-L-14", "custom"}
    common = {"trigger_word", "prefix", "suffix", "exclude", "underscores_to_spaces", "separator"}
    assert all(common <= {option["name"] for option in each["options"]} for each in found.values())


def test_readiness_follows_the_options(client):
    def ask(name, **options):
        return client.post(f"{V1}/captioners/{name}/readiness", json={"options": options})

    assert ask("clip-labels", model="demo").json() == {
        "ready": True,
        "needs": "",
        "download_bytes": None,
        "downloads": "",
    }
    assert ask("nothing").status_code == 404
    answer = ask("clip-labels", threshold=7)
    assert (
        answer.status_code == 422
        and answer.json()["error"]["field"] == "threshold"
        and "0 to 1" in answer.json()["error"]["message"]
    )
    assert client.post(f"{V1}/captioners/fixed/readiness", json={"options": []}).status_code == 422


def test_captions_are_written(client):
    options = {"model": "demo", "trigger_word": "zib", "exclude": "blue background"}
    answer = client.post(
        f"{V1}/datasets/shapes/autocaption", json={"captioner": "clip-labels", "options": options}
    )
    assert answer.status_code == 201
    job = finish(client, answer.json()["id"])
    assert (job["kind"], job["state"], job["error"]) == ("captioning", "finished", None)
    assert {
        "stage",
        "message",
        "fraction",
        "done",
        "total",
        "written",
        "skipped",
        "failed",
        "eta_seconds",
        "dataset",
        "captioner",
        "stopping",
    } <= set(job)
    pictures = client.get(f"{V1}/datasets/shapes").json()["pictures"]
    assert [(each["caption"], each["automatic"]) for each in pictures] == [
        ("zib, circle, red", True),
        ("zib, cross, green, white background", True),
    ]
    assert client.get(f"{V1}/status").json()["current_job"] is None


@pytest.mark.parametrize(
    "body, status, field",
    [
        ({}, 422, "captioner"),
        ({"captioner": "nothing"}, 404, "captioner"),
        ({"captioner": "fixed", "overwrite": "yes"}, 422, "overwrite"),
        ({"captioner": "fixed", "filenames": "0.png"}, 422, "filenames"),
        ({"captioner": "fixed", "filenames": ["../0.png"]}, 404, "filenames"),
        ({"captioner": "fixed", "options": {"separator": 3}}, 422, "separator"),
        ({"captioner": "fixed", "options": "x"}, 422, "options"),
    ],
)
def test_bad_requests_are_refused(client, body, status, field):
    answer = client.post(f"{V1}/datasets/shapes/autocaption", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


def test_label_lists_are_edited_and_come_back(client):
    lists = {each["name"]: each for each in client.get(f"{V1}/labels").json()}
    assert (
        list(lists) == ["default", "shapes"]
        and set(lists["shapes"]) >= {"name", "title", "editable", "path", "groups"}
        and not lists["shapes"]["changed"]
    )
    answer = client.put(
        f"{V1}/labels/shapes",
        json={"groups": {"form": "prompt: a picture of {}\nround = a circle\ncrossed = a cross"}},
    )
    assert answer.status_code == 200 and answer.json()["changed"]
    job = finish(
        client,
        client.post(
            f"{V1}/datasets/shapes/autocaption",
            json={"captioner": "clip-labels", "options": {"model": "demo"}},
        ).json()["id"],
    )
    assert job["state"] == "finished"
    assert [each["caption"] for each in client.get(f"{V1}/datasets/shapes").json()["pictures"]] == [
        "round",
        "crossed",
    ]
    bad = client.put(f"{V1}/labels/shapes", json={"groups": {"form": "one"}})
    assert bad.status_code == 422 and "has 1 labels" in bad.json()["error"]["message"]
    assert client.put(f"{V1}/labels/..%2Fx", json={"groups": {"a": "b\nc"}}).status_code in (
        404,
        405,
        422,
    )
    restored = client.delete(f"{V1}/labels/shapes")
    assert restored.status_code == 200 and {
        each["name"]: each["changed"] for each in restored.json()
    } == {"default": False, "shapes": False}
    assert client.delete(f"{V1}/labels/nothing").status_code == 404
