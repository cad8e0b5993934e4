"""The routes of settings: what there is to set, settings out of files and LoRAs, and as YAML."""

import struct

import pytest
import yaml
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from lora_trainer.jobs.service import TrainingService
from lora_trainer.settings.config import GROUPS, TrainConfig
from lora_trainer.web import api
from tests.support.trained_lora import TRAINED

IMPORT = "/train-lora/v1/settings/import"
EXPORT = "/train-lora/v1/settings/export"
KOHYA = b'network_dim = 24\nunet_lr = 0.0003\nxformers = true\nnetwork_module = "networks.lora"\n'


def test_what_there_is_to_set(client):
    form = client.get("/train-lora/v1/settings").json()
    assert [group["name"] for group in form["groups"]] == list(GROUPS) and len(
        form["settings"]
    ) == len(TrainConfig().to_dict())
    rank = next(entry for entry in form["settings"] if entry["name"] == "lora_rank")
    assert (
        rank["kohya"] == ["network_dim"]
        and rank["group"] == "main"
        and rank["maximum"] == 1024
        and rank["effective_when"] == [{"init_lora": False}]
    )
    optimizer = next(entry for entry in form["settings"] if entry["name"] == "optimizer")
    assert (
        optimizer["choices"][0]["value"] == "adamw"
        and not optimizer["choices"][0]["needs"]
        and all(choice["title"] for choice in optimizer["choices"])
    )


def test_a_file_is_imported(client):
    answer = client.post(IMPORT, files={"file": ("cat.toml", KOHYA)})
    found = answer.json()
    assert (
        answer.status_code == 200
        and found["settings"]["lora_rank"] == 24
        and found["filename"] == "cat.toml"
    )
    assert [left["key"] for left in found["left_out"]] == ["xformers"] and set(found) == {
        "settings",
        "assumed",
        "left_out",
        "source",
        "filename",
    }


def test_a_lora_is_imported_by_its_header_or_by_name(client, host):
    (host.lora_dir / "deep").mkdir()
    (host.lora_dir / "deep" / "older.safetensors").write_bytes(TRAINED)
    header = client.post(
        IMPORT,
        files={"file": ("x.safetensors", TRAINED[: 8 + struct.unpack("<Q", TRAINED[:8])[0]])},
    ).json()
    named = client.post(IMPORT, files={"lora": (None, "older")}).json()
    assert (
        header["settings"] == named["settings"]
        and header["settings"]["lora_rank"] == 24
        and named["filename"] == "older.safetensors"
    )


@pytest.mark.parametrize(
    "files, status, code",
    [
        ({"file": ("x.ckpt", b"\x80\x04.")}, 422, "unreadable_config"),
        ({"file": ("x.toml", b"a" * 1_000_001)}, 413, "too_large"),
        ({"file": ("x.safetensors", b"\xff" * 9)}, 422, "unreadable_config"),
        ({"lora": (None, "nothing")}, 404, "not_found"),
        ({"lora": (None, "../../x")}, 404, "not_found"),
        ({"other": (None, "x")}, 422, "bad_request"),
    ],
)
def test_what_cannot_be_imported(client, files, status, code):
    answer = client.post(IMPORT, files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_it_is_guarded_like_the_rest(service):
    def guard(request):
        raise HTTPException(401, "no")

    app = FastAPI()
    api.mount(app, service, guard=guard)
    locked, files = TestClient(app), {"file": ("cat.toml", KOHYA)}
    assert (
        locked.post(IMPORT, files=files).status_code == 401
        and locked.get("/train-lora/v1/settings").status_code == 401
    )
    open_app = FastAPI()
    api.mount(open_app, service)
    assert (
        TestClient(open_app)
        .post(
            IMPORT,
            files=files,
            headers={"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        )
        .status_code
        == 403
    )


def test_exported_settings_are_a_config_again(client, settings, tmp_path):
    answer = client.post(EXPORT, json={"config": {**settings, "network_dim": 9}})
    assert (
        answer.status_code == 200
        and answer.headers["content-type"].startswith("application/yaml")
        and "attachment" in answer.headers["content-disposition"]
    )
    (tmp_path / "run.yaml").write_bytes(answer.content)
    again = TrainConfig.load(tmp_path / "run.yaml")
    assert (
        again.train_data_dir == settings["train_data_dir"]
        and again.to_dict() == yaml.safe_load(answer.text)
        and again.resolution == 64
    )
    refused = client.post(EXPORT, json={"config": {"lora_rank": 0}})
    assert refused.status_code == 422 and refused.json()["error"]["field"] == "lora_rank"


def test_a_reachable_webui_reads_no_folder_by_any_setting(host, settings, pictures, tmp_path):
    service = TrainingService(host, allowed_roots=[pictures, host.lora_dir, host.data_dir])
    outside = tmp_path / "outside"
    outside.mkdir()
    for field, value in (
        ("extra_data_dirs", str(outside)),
        ("extra_data_dirs", f"{pictures}\n5 x {outside}"),
        ("reg_data_dir", str(outside)),
        ("init_lora", str(outside / "x.safetensors")),
        ("extra_data_dirs", "5 x \\\\server\\share"),
    ):
        errors = service.planner.plan({**settings, field: value})["errors"]
        assert [(error["field"], error["code"]) for error in errors] == [
            (field, "forbidden_path")
        ], (field, value)


def test_the_plan_counts_pictures_by_what_they_are_for(client, settings, pictures, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    for number in range(2):
        (others / f"{number}.png").write_bytes((pictures / "0.png").read_bytes())
    plan = client.post(
        "/train-lora/v1/plan",
        json={"config": {**settings, "validation_split": 0.3, "reg_data_dir": str(others)}},
    ).json()
    assert (
        plan["errors"] == []
        and (plan["pictures"] + plan["validation_pictures"], plan["regularisation_pictures"])
        == (6, 2)
        and plan["validation_pictures"] > 0
    )
