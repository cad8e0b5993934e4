"""A job's files and the disk, by the API."""

import io
import os
import zipfile

import pytest

from lora_trainer.web.routes import storage as storage_routes

URL = "/train-lora/v1"


def test_the_files_of_a_job(client, job):
    files = client.get(f"{URL}/jobs/{job['id']}/files").json()
    assert [(file["name"], file["lora"], file["part"]) for file in files] == [
        ("zib ü.safetensors", "zib ü", "lora"),
        ("zib ü.json", "zib ü", "card"),
        ("zib ü.png", "zib ü", "preview"),
        ("zib ü-000002.safetensors", "zib ü-000002", "lora"),
        ("zib ü-000002.json", "zib ü-000002", "card"),
    ]
    for file in files:
        answer = client.get(f"{URL}/jobs/{job['id']}/files/{file['name']}")
        assert answer.status_code == 200 and len(answer.content) == file["size_bytes"]
        assert (
            answer.headers["content-disposition"]
            .lower()
            .startswith("attachment; filename*=utf-8''zib%20%c3%bc")
        )


def test_a_zip_of_a_lora_with_its_card(client, job):
    for query, wanted in (
        ("", {"zib ü.safetensors", "zib ü.json", "zib ü.png"}),
        ("?lora=zib ü-000002", {"zib ü-000002.safetensors", "zib ü-000002.json"}),
    ):
        answer = client.get(f"{URL}/jobs/{job['id']}/files.zip{query}")
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.testzip() is None and set(archive.namelist()) == wanted
    assert client.get(f"{URL}/jobs/{job['id']}/files.zip?lora=other").status_code == 404


def test_a_file_that_says_it_is_of_1970_is_packed_as_any_other(client, job, host):
    os.utime(host.lora_dir / "zib ü.json", (0, 0))
    answer = client.get(f"{URL}/jobs/{job['id']}/files.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None and "zib ü.json" in archive.namelist()


@pytest.mark.parametrize(
    "name",
    [
        "..%2F..%2Ftrain_lora%2Fjobs.sqlite3",
        "%2Fetc%2Fpasswd",
        "zib%20%C3%BC",
        "config.yaml",
        "log.txt",
        "zib ü.safetensors%00.png",
    ],
)
def test_no_other_file(client, job, name):
    assert client.get(f"{URL}/jobs/{job['id']}/files/{name}").status_code == 404
    assert client.get(f"{URL}/jobs/99/files").status_code == 404


def test_storage(client, job):
    before = client.get(f"{URL}/storage").json()
    assert (
        before["states"]["count"] == 1 and before["jobs"]["bytes"] > before["states"]["bytes"] > 0
    )
    assert client.post(f"{URL}/storage/clear", json={"what": "states"}).json() == {
        "count": 1,
        "bytes": before["states"]["bytes"],
        "problems": [],
    }
    assert (
        client.post(f"{URL}/storage/clear", json={"what": "jobs", "keep": 1}).json()["count"] == 0
    )
    assert client.post(f"{URL}/storage/clear", json={"what": "all"}).status_code == 422
    assert (
        client.post(
            f"{URL}/storage/clear",
            json={"what": "jobs"},
            headers={"origin": "http://elsewhere.example"},
        ).status_code
        == 403
    )
    assert (
        client.post(f"{URL}/storage/clear", json={"what": "jobs"}).json()["count"] == 1
        and client.get(f"{URL}/jobs").json() == []
    )


def test_tensorboard_is_looked_for_on_this_machine_only(client, service, monkeypatch):
    monkeypatch.setattr(storage_routes, "find_tensorboard", lambda: "http://localhost:6006/")
    local = {"Host": "127.0.0.1:7860"}
    assert client.get(f"{URL}/tensorboard", headers=local).json() == {
        "url": "http://localhost:6006/"
    }
    assert client.get(f"{URL}/tensorboard", headers={"Host": "train.example.com"}).json() == {
        "url": None
    }  # whose localhost is another machine
    monkeypatch.setattr(service.path_rules, "allowed_roots", [])
    assert client.get(f"{URL}/tensorboard", headers=local).json() == {"url": None}
