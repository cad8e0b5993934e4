"""The REST API as docs/api.md has it, and its errors."""

import io

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from PIL import Image

from lora_trainer.jobs.service import TrainingService
from lora_trainer.web import api
from tests.support.waiting import LONG, until

V1 = "/train-lora/v1"


@pytest.fixture
def client(service):
    app = FastAPI()
    api.mount(app, service)
    return TestClient(app)


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_from_upload_to_lora(client, host):
    assert client.post(f"{V1}/datasets", json={"name": "zibs"}).status_code == 201
    files = [
        ("files", (f"{number}.png", png((number * 60, 9, 9)), "image/png")) for number in range(4)
    ] + [("files", ("bad.png", b"no", "image/png"))]
    answer = client.post(f"{V1}/datasets/zibs/images", files=files).json()
    assert (
        answer["added"] == ["0.png", "1.png", "2.png", "3.png"]
        and answer["refused"][0]["filename"] == "bad.png"
    )
    assert client.patch(
        f"{V1}/datasets/zibs/captions", json={"changes": {"0.png": "<b>x</b>"}}
    ).json()["changed"] == ["0.png"]
    pictures = client.get(f"{V1}/datasets/zibs").json()["pictures"]
    assert pictures[0]["caption"] == "<b>x</b>"
    thumbnail = client.get(f"{V1}/{pictures[0]['thumbnail']}")
    assert thumbnail.status_code == 200 and thumbnail.headers["content-type"] == "image/jpeg"
    config = dict(
        train_data_dir="zibs", output_name="zib", resolution=64, max_train_steps=3, lora_rank=2
    )
    assert client.post(f"{V1}/plan", json={"config": config}).json()["steps"] == 3
    job_id = client.post(f"{V1}/jobs", json={"config": config}).json()["id"]
    while (job := client.get(f"{V1}/jobs/{job_id}").json())["state"] not in ("finished", "failed"):
        pass
    assert job["state"] == "finished" and job["output_file"] == str(
        host.lora_dir / "zib.safetensors"
    )
    assert len(client.get(f"{V1}/jobs/{job_id}/metrics?since=1").json()) == 2
    assert [lora["name"] for lora in client.get(f"{V1}/loras").json()] == ["zib"]
    clash = client.post(f"{V1}/jobs", json={"config": config})
    assert (
        clash.status_code == 409
        and clash.json()["error"]["code"] == "name_taken"
        and "zib-2" in clash.json()["error"]["message"]
    )
    assert (
        client.post(f"{V1}/jobs", json={"config": {**config, "overwrite": True}}).status_code == 201
    )


def test_information(client):
    status = client.get(f"{V1}/status").json()
    assert (
        status["model"]["trainable"]
        and status["current_job"] is None
        and status["host"]["kind"] == "standalone"
    )
    assert "settings" not in status  # asked every few seconds; they are at /settings
    assert [preset["name"] for preset in client.get(f"{V1}/presets").json()][0] == "character"


@pytest.mark.parametrize(
    "method, path, body, status, code, field",
    [
        ("post", "/jobs", {"config": {"lora_rank": 0}}, 422, "bad_value", "lora_rank"),
        ("post", "/jobs", {"config": []}, 422, "bad_request", "config"),
        ("post", "/jobs", {}, 422, "bad_request", "config"),
        ("post", "/jobs", [1], 422, "bad_request", None),
        ("get", "/jobs/999", None, 404, "not_found", None),
        ("get", "/jobs/abc", None, 404, "not_found", None),
        ("post", "/jobs/1/stop", None, 404, "not_found", None),
        ("get", "/jobs/1/metrics?since=x", None, 422, "bad_request", "since"),
        ("get", "/datasets/no", None, 404, "not_found", "train_data_dir"),
        ("get", "/datasets/%2e%2e", None, 404, None, None),
        (
            "get",
            "/datasets/no/thumbnails/..%2f..%2fx.png",
            None,
            404,
            "not_found",
            "train_data_dir",
        ),
        ("post", "/datasets", {"name": "../x"}, 422, "bad_name", "name"),
        ("post", "/datasets", {"path": "/no/such/folder"}, 422, "no_folder", "path"),
        ("post", "/datasets", {"name": 5}, 422, "bad_request", "name"),
        ("post", "/generate", {"prompt": "x", "steps": 0}, 422, "bad_value", "steps"),
        ("post", "/generate", {"prompt": 5}, 422, "bad_request", "prompt"),
    ],
)
def test_errors_name_the_field(client, method, path, body, status, code, field):
    answer = client.request(
        method.upper(), V1 + path, **({"json": body} if body is not None else {})
    )
    assert answer.status_code == status
    if code:
        error = answer.json()["error"]
        assert (
            error["code"] == code
            and error.get("field") == field
            and error["message"].endswith((".", "!"))
        )


def draw(client):
    answer = client.post(f"{V1}/generate", json={"prompt": "a cat"})
    return answer.status_code if answer.status_code == 200 else answer.json()["error"]["code"]


def test_pictures_are_drawn_while_a_lora_trains(client, service, settings):
    job_id = service.start({**settings, **LONG})
    until(lambda: service.job(job_id)["step"])
    assert draw(client) == 200 and service.current_job()["id"] == job_id
    service.pause(job_id)
    until(lambda: service.job(job_id)["state"] == "paused")
    assert draw(client) == 200


def test_not_while_one_keeps_the_model_for_itself(client, service, settings):
    job_id = service.start({**settings, **LONG, "sharing": "exclusive"})
    until(lambda: service.job(job_id)["step"])
    assert draw(client) == "busy"
    service.pause(job_id)
    until(lambda: service.job(job_id)["state"] == "paused")
    assert draw(client) == 200
    service.resume(job_id)
    until(lambda: service.job(job_id)["state"] == "training")
    service.stop(job_id)
    service.wait(job_id, 30)
    assert draw(client) == 200


@pytest.mark.parametrize("kind, answer", [("webui", 200), ("standalone", "busy")])
def test_captions_give_way_where_they_take_turns(client, service, host, monkeypatch, kind, answer):
    monkeypatch.setattr(host, "kind", kind)
    monkeypatch.setattr(
        service, "current_job", lambda: {"kind": "captioning", "state": "captioning", "config": {}}
    )
    assert draw(client) == answer


def test_broken_json_is_refused(client):
    answer = client.post(f"{V1}/jobs", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "error" in answer.json()


def test_an_unforeseen_error_keeps_the_format(client, host, monkeypatch):
    monkeypatch.setattr(host, "model_status", lambda: 1 / 0)
    answer = client.get(f"{V1}/status")
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal"


def test_other_sites_change_nothing(client):
    answer = client.post(
        f"{V1}/datasets", json={"name": "x"}, headers={"origin": "https://evil.example"}
    )
    assert answer.status_code == 403 and client.get(f"{V1}/datasets").json() == []
    assert (
        client.post(
            f"{V1}/datasets", json={"name": "x"}, headers={"origin": "http://testserver"}
        ).status_code
        == 201
    )
    assert (
        client.post(
            f"{V1}/datasets", content=b'{"name": "y"}', headers={"content-type": "text/plain"}
        ).status_code
        == 415
    )


def test_every_route_asks_the_guard(host):
    def nobody(request):
        raise HTTPException(401, "Log in first.", headers={"WWW-Authenticate": "Basic"})

    app = FastAPI()
    api.mount(app, TrainingService(host), guard=nobody)
    client, tried = TestClient(app), 0
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            url = (
                path.replace("{name}", "x").replace("{job_id}", "1").replace("{filename}", "y.png")
            )
            answer = client.request(
                method.upper(), url, **({"json": {}} if method in ("post", "patch") else {})
            )
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "not_allowed", (
                method,
                path,
            )
            tried += 1
    assert tried >= 15
