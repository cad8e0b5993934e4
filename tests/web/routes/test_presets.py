"""The routes of presets, and presets on the command line."""

from urllib.parse import quote

import pytest
import yaml

from lora_trainer.cli import main
from tests.cli.test_train import make_host

V1 = "/train-lora/v1"
NAME = "水墨 🖌"


def own(client):
    return [preset for preset in client.get(f"{V1}/presets").json() if preset["own"]]


def test_saved_renamed_shared_and_deleted(client, settings, host):
    saved = client.put(
        f"{V1}/presets/{quote(NAME)}",
        json={"settings": {**settings, "lora_rank": 24}, "help": "ink"},
    )
    assert (
        saved.status_code == 200
        and saved.json()["settings"]["lora_rank"] == 24
        and not {"train_data_dir", "output_name"} & saved.json()["settings"].keys()
    )
    assert own(client) == [saved.json()] and (host.data_dir / "presets" / f"{NAME}.yaml").is_file()
    assert client.put(f"{V1}/presets/{quote(NAME)}", json={"settings": settings}).status_code == 409
    assert (
        client.put(
            f"{V1}/presets/{quote(NAME)}", json={"settings": settings, "overwrite": True}
        ).json()["settings"]["lora_rank"]
        == 4
    )
    exported = client.get(f"{V1}/presets/{quote(NAME)}/export")
    assert (
        exported.headers["content-type"].startswith("application/yaml")
        and quote(NAME) in exported.headers["content-disposition"]
    )
    renamed = client.post(f"{V1}/presets/{quote(NAME)}/rename", json={"to": "墨"})
    assert renamed.json()["name"] == "墨" and [preset["name"] for preset in own(client)] == ["墨"]
    taken = client.post(f"{V1}/presets/import", files={"file": (f"{NAME}.yaml", exported.content)})
    assert (
        taken.json()["name"] == NAME
        and taken.json()["left_out"] == []
        and taken.json()["settings"] == renamed.json()["settings"]
    )
    assert [
        preset["name"]
        for preset in client.delete(f"{V1}/presets/{quote('墨')}").json()
        if preset["own"]
    ] == [NAME]


def test_the_packages_are_shared_and_never_changed(client):
    assert yaml.safe_load(client.get(f"{V1}/presets/style/export").text)["title"] == "Style"
    assert (
        client.delete(f"{V1}/presets/style").status_code == 404
        and client.put(f"{V1}/presets/style", json={"settings": {"lora_rank": 3}}).status_code
        == 409
    )
    assert client.post(f"{V1}/presets/style/rename", json={"to": "x"}).status_code == 404


@pytest.mark.parametrize(
    "act, status, code",
    [
        (
            lambda client: client.put(f"{V1}/presets/x", json={"settings": {"lora_rank": 0}}),
            422,
            "bad_value",
        ),
        (
            lambda client: client.put(f"{V1}/presets/..%5Cx", json={"settings": {"lora_rank": 2}}),
            422,
            "bad_name",
        ),
        (lambda client: client.put(f"{V1}/presets/x", json={"settings": 3}), 422, "bad_request"),
        (lambda client: client.get(f"{V1}/presets/nix/export"), 404, "not_found"),
        (
            lambda client: client.post(f"{V1}/presets/import", files={"file": ("x.txt", b"a: 1")}),
            422,
            "unreadable_config",
        ),
        (
            lambda client: client.post(
                f"{V1}/presets/import", files={"file": ("x.yaml", b"a" * 200_000)}
            ),
            413,
            "too_large",
        ),
        (
            lambda client: client.post(
                f"{V1}/presets/import", files={"file": ("x.yaml", b"lora_rank: 3")}
            ),
            422,
            "unreadable_config",
        ),
        (lambda client: client.post(f"{V1}/presets/import"), 422, "bad_request"),
    ],
)
def test_what_is_refused(client, act, status, code):
    answer = act(client)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code) and own(
        client
    ) == []


def test_in_a_webui_an_imported_file_names_its_checkpoint_and_all_else_is_taken_over(client, host):
    host.kind = "webui"
    text = (
        b"train_data_dir: ./data/x\nbase_model:"
        b" ./models/Stable-diffusion/v1-5-pruned.safetensors\nlora_rank: 8\noutput_dir:"
        b" ./output/ink_lora\n"
    )
    found = client.post(f"{V1}/settings/import", files={"file": ("ink.yaml", text)}).json()
    assert found["settings"] == {
        "train_data_dir": "./data/x",
        "lora_rank": 8,
        "output_dir": "./output/ink_lora",
        "output_name": "ink_lora",
    }
    assert [left["key"] for left in found["left_out"]] == [
        "base_model"
    ] and "v1-5-pruned.safetensors" in found["left_out"][0]["reason"]
    assert found["assumed"] == ["output_name"]


def test_on_the_command_line_a_preset_comes_first_the_file_next_and_options_last(
    client, settings, tmp_path, host, monkeypatch, capsys
):
    monkeypatch.setattr(
        "lora_trainer.cli.train.run_job",
        lambda service, values: (
            seen.update(values)
            or {"remarks": [], "state": "finished", "output_file": "", "lora_tag": ""}
        ),
    )
    seen = {}
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / f"{NAME}.yaml").write_text(
        "settings: {lora_rank: 24, batch_size: 3, mirror: true, learning_rate: 0.5}\n",
        encoding="utf-8",
    )
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {
                "train_data_dir": settings["train_data_dir"],
                "base_model": "x.safetensors",
                "network_dim": 12,
                "unet_lr": 0.1,
            }
        )
    )
    command = [
        "train",
        "--config",
        str(tmp_path / "run.yaml"),
        "--data-dir",
        str(tmp_path),
        "--learning-rate",
        "0.2",
    ]
    assert main.main([*command, "--preset", NAME], make_host=make_host) == 0
    assert {
        name: seen[name]
        for name in ("lora_rank", "batch_size", "mirror", "learning_rate", "output_name")
    } == {
        "lora_rank": 12,
        "batch_size": 3,
        "mirror": True,
        "learning_rate": 0.2,
        "output_name": "run",
    }
    assert (
        main.main([*command, "--preset", "nix"], make_host=make_host) == 1
        and NAME in capsys.readouterr().err
    )
