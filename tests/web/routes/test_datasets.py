"""The routes of data sets by HTTP: editing with versions, undo, tables, files, checks, views; and
requests that get nothing.
"""

import io
import json
import os
import time
import zipfile

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_trainer.jobs.service import TrainingService
from lora_trainer.settings.config import setting_of
from lora_trainer.web import api

SETS = "/train-lora/v1/datasets"
CATS = f"{SETS}/my cats"


def png(colour="red", size=(96, 64), **extra):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG", **extra)
    return buffer.getvalue()


@pytest.fixture
def service(host):
    made = TrainingService(host)
    yield made
    made.library.close()


@pytest.fixture
def client(service):
    app = FastAPI()
    api.mount(app, service)
    client = TestClient(app)
    client.post(SETS, json={"name": "my cats"})
    files = {"a.png": png(), "a.txt": b"zib, cat", "b.png": png("blue"), "猫 #1%.png": png("green")}
    answer = client.post(
        f"{CATS}/images", files=[("files", (name, data)) for name, data in files.items()]
    )
    assert answer.json() == {"added": list(files), "refused": []}
    return client


def captions(client):
    return {row["filename"]: row["caption"] for row in client.get(CATS).json()["pictures"]}


NUMBERS_OF_CHECKS = ("resolution", "bucket_step", "bucket_min", "bucket_max", "max_token_length")


@pytest.mark.parametrize("name", NUMBERS_OF_CHECKS)
def test_checks_take_what_the_settings_take_and_nothing_else(client, name):
    setting = setting_of(name)
    for value in (setting.minimum, setting.maximum):
        assert client.post(f"{CATS}/checks", json={name: value}).status_code == 200
    for value in (setting.minimum - 1, setting.maximum + 1):
        answer = client.post(f"{CATS}/checks", json={name: value})
        assert answer.status_code == 422 and answer.json()["error"]["field"] == name
        assert f"from {setting.minimum:g} to {setting.maximum:g}" in answer.text


def test_edit_conflict_undo_redo(client, service):
    seen = {row["filename"]: row["version"] for row in client.get(CATS).json()["pictures"]}
    first = client.patch(f"{CATS}/captions", json={"changes": {"a.png": "one"}, "versions": seen})
    assert (
        first.status_code == 200
        and first.json()["changed"] == ["a.png"]
        and first.json()["captions"]["a.png"]["caption"] == "one"
    )
    second = client.patch(f"{CATS}/captions", json={"changes": {"a.png": "two"}, "versions": seen})
    error = second.json()["error"]
    assert second.status_code == 409 and error["code"] == "changed_meanwhile"
    assert error["conflicts"] == [
        {
            "filename": "a.png",
            "caption": "one",
            "version": first.json()["captions"]["a.png"]["version"],
        }
    ]
    assert client.get(f"{CATS}/revision").json() == {
        "revision": first.json()["revision"],
        "history": {"undo": "Caption of a.png", "redo": None},
    }
    assert client.post(f"{CATS}/captions/undo").json()["captions"]["a.png"]["caption"] == "zib, cat"
    (service.library.path("my cats") / "a.txt").write_text("outside", encoding="utf-8")
    assert client.post(f"{CATS}/captions/redo", json={}).status_code == 409
    assert (
        client.post(f"{CATS}/captions/redo", json={"if_changed": "overwrite"}).json()["label"]
        == "Caption of a.png"
    )
    assert captions(client)["a.png"] == "one"
    assert client.post(f"{CATS}/captions/redo").json()["error"]["code"] == "nothing_to_redo"


def test_bulk_edit(client):
    plan = client.post(
        f"{CATS}/bulk-edit",
        json={"action": "prepend", "text": "best", "preview": True, "filenames": ["a.png"]},
    ).json()
    assert (
        plan["count"] == 1
        and plan["changes"][0]["after"] == "best, zib, cat"
        and captions(client)["a.png"] == "zib, cat"
    )
    done = client.post(
        f"{CATS}/bulk-edit",
        json={
            "action": "prepend",
            "text": "best",
            "versions": {"a.png": plan["changes"][0]["version"]},
        },
    ).json()
    assert done["count"] == 3 and set(captions(client).values()) == {"best", "best, zib, cat"}
    client.post(f"{CATS}/captions/undo")
    assert captions(client) == {"a.png": "zib, cat", "b.png": "", "猫 #1%.png": ""}


def test_tables(client):
    files = {
        "file": ("metadata.csv", 'filename,prompt\n猫 #1%.png,"x, ""y"""\nno.png,z\n'.encode())
    }
    plan = client.post(f"{CATS}/captions/import", files=files).json()
    assert plan["changes"][0]["after"] == 'x, "y"' and plan["problems"] == [
        {"line": 3, "message": "there is no picture no.png here."}
    ]
    assert captions(client)["猫 #1%.png"] == ""
    versions = json.dumps({change["filename"]: change["version"] for change in plan["changes"]})
    done = client.post(
        f"{CATS}/captions/import", files=files, data={"apply": "true", "versions": versions}
    ).json()
    assert (
        done["history"]["undo"] == "Captions from metadata.csv"
        and captions(client)["猫 #1%.png"] == 'x, "y"'
    )
    assert (
        client.post(
            f"{CATS}/captions/import",
            files=files,
            data={"apply": "true", "versions": '{"猫 #1%.png": "stale"}'},
        ).json()["changes"]
        == []
    )
    answer = client.get(f"{CATS}/captions/export?format=csv")
    assert (
        answer.headers["content-disposition"] == 'attachment; filename="metadata.csv"'
        and 'a.png,"zib, cat"' in answer.text
    )
    assert [
        json.loads(line)
        for line in client.get(f"{CATS}/captions/export?format=jsonl").text.splitlines()
    ][0] == {"file_name": "a.png", "text": "zib, cat"}


def test_files(client):
    assert (
        client.post(f"{CATS}/rename", json={"filename": "a.png", "to": "new"}).json()["filename"]
        == "new.png"
    )
    assert client.post(f"{CATS}/rename", json={"filename": "new.png", "to": "b"}).status_code == 409
    client.post(f"{CATS}/rotate", json={"filenames": ["new.png"], "degrees": 270})
    assert client.get(CATS).json()["pictures"][1]["height"] == 96
    client.post(f"{CATS}/trash", json={"filenames": ["new.png", "b.png"]})
    assert list(captions(client)) == ["猫 #1%.png"]
    for _ in range(3):
        assert client.post(f"{CATS}/captions/undo").status_code == 200
    assert captions(client) == {"a.png": "zib, cat", "b.png": "", "猫 #1%.png": ""}


def test_views_are_pictures_and_nothing_else(client):
    for kind in ("thumbnails", "previews", "crops"):
        answer = client.get(f"{CATS}/{kind}/猫 %231%25.png?resolution=64")
        assert (
            answer.status_code == 200
            and answer.headers["content-type"] == "image/jpeg"
            and answer.headers["x-content-type-options"] == "nosniff"
        )
        with Image.open(io.BytesIO(answer.content)) as image:
            assert image.size == ((64, 64) if kind == "crops" else (96, 64))
        for name in (
            "a.txt",
            "no.png",
            "..%2f..%2fjobs.sqlite3",
            "%2fetc%2fpasswd",
            ".train_lora%2fx.png",
        ):
            assert client.get(f"{CATS}/{kind}/{name}").status_code == 404


def test_checks_become_ready(client):
    deadline = time.monotonic() + 60
    body = {"resolution": 512, "trigger_word": "zib"}
    while not (found := client.post(f"{CATS}/checks", json=body).json())["ready"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (
        found["pictures"]["a.png"]["tokens"] == 4
    )  # zib is z and ib to CLIP, then a comma, then cat
    assert {row["code"]: row["count"] for row in found["summary"]}["no_caption"] == 2 and found[
        "pictures"
    ]["a.png"]["crop"]["bucket"] == [640, 384]


def test_checks_count_lines_as_they_are_used(client):
    client.patch(f"{CATS}/captions", json={"changes": {"a.png": "zib, cat\nzib"}})

    def tokens(**body):
        while not (found := client.post(f"{CATS}/checks", json=body).json())["ready"]:
            time.sleep(0.1)
        return found["pictures"]["a.png"]["tokens"]

    assert (
        tokens()
        == tokens(caption_lines="join")
        > tokens(caption_lines="alternatives")
        == tokens(caption_lines="first")
    )
    for wrong in ("all", 3, None, ["join"]):
        assert client.post(f"{CATS}/checks", json={"caption_lines": wrong}).status_code == 422


def test_kohyas_captions_are_uploaded_and_imported(client):
    client.post(
        f"{CATS}/images",
        files=[("files", ("k.png", png("green"))), ("files", ("k.caption", b"from kohya"))],
    )
    assert captions(client)["k.png"] == "from kohya"
    table = json.dumps({"k": {"caption": "a cat", "tags": "red"}}).encode()
    found = client.post(
        f"{CATS}/captions/import", files={"file": ("meta_lat.json", table)}, data={"apply": "true"}
    ).json()
    assert [change["after"] for change in found["changes"]] == ["a cat, red"] and captions(client)[
        "k.png"
    ] == "a cat, red"


def test_a_picture_from_the_gallery_brings_its_prompt(client):
    texts = PngInfo()
    texts.add_text("parameters", "a (happy:1.3) zib, <lora:zib:0.8>\nSteps: 20")
    picture = png("pink", pnginfo=texts)
    client.post(
        f"{CATS}/images",
        files=[("files", ("00001.png", picture))],
        data={"caption_from_prompt": "true"},
    )
    client.post(f"{CATS}/images", files=[("files", ("00002.png", picture))])
    assert captions(client)["00001.png"] == "a happy zib" and captions(client)["00002.png"] == ""


def with_prompt(prompt, colour):
    texts = PngInfo()
    texts.add_text("parameters", prompt + "\nSteps: 20")
    return png(colour, pnginfo=texts)


@pytest.mark.parametrize("prompt, reason", [("a " * 60_000, "100 kB"), ("a\x00b", "100 kB")])
def test_one_bad_prompt_among_several_costs_no_other(client, prompt, reason):
    files = [
        ("files", (name, data))
        for name, data in {
            "1.png": with_prompt("one, cat", "white"),
            "2.png": with_prompt(prompt, "pink"),
            "3.png": with_prompt("three", "black"),
            "4.png": b"no picture",
        }.items()
    ]
    answer = client.post(f"{CATS}/images", files=files, data={"caption_from_prompt": "true"})
    assert answer.status_code == 200 and answer.json()["added"] == ["1.png", "2.png", "3.png"]
    assert [row["filename"] for row in answer.json()["refused"]] == ["4.png"]
    assert [row["filename"] for row in answer.json()["uncaptioned"]] == ["2.png"]
    assert reason in answer.json()["uncaptioned"][0]["reason"]
    found = captions(client)
    assert (found["1.png"], found["2.png"], found["3.png"]) == ("one, cat", "", "three")


def test_two_pictures_of_one_caption_file_keep_the_first_prompt(client):
    files = [
        ("files", (name, with_prompt(prompt, colour)))
        for name, prompt, colour in (
            ("1.png", "one", "white"),
            ("1.webp", "two", "pink"),
            ("3.png", "three", "black"),
        )
    ]
    answer = client.post(f"{CATS}/images", files=files, data={"caption_from_prompt": "true"})
    assert answer.json()["added"] == ["1.png", "1.webp", "3.png"]
    assert [row["filename"] for row in answer.json()["uncaptioned"]] == ["1.webp"]
    assert captions(client)["1.png"] == "one" and captions(client)["3.png"] == "three"


def test_one_file_that_cannot_be_saved_among_several_costs_no_other(client, service):
    folder = service.library.path("my cats")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    files = [("files", (name, png("white"))) for name in ("folder.png", "pipe.png", "new.png")]
    answer = client.post(f"{CATS}/images", files=files)
    assert answer.json()["added"] == ["new.png"]
    assert [row["filename"] for row in answer.json()["refused"]] == ["folder.png", "pipe.png"]


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_zip_among_other_files(client):
    data = zipped(
        {
            "set/10_猫/1.png": with_prompt("one, cat", "white"),
            "set/10_猫/2.png": png("pink"),
            "set/10_猫/2.txt": "two",
            "../evil.png": png(),
        }
    )
    files = [
        ("files", (name, content))
        for name, content in (("cats.ZIP", data), ("plain.png", png("gray")), ("no.zip", b"hello"))
    ]
    answer = client.post(f"{CATS}/images", files=files, data={"caption_from_prompt": "true"}).json()
    assert (
        answer["added"] == ["10_猫/1.png", "10_猫/2.png", "10_猫/2.txt", "plain.png"]
        and answer["uncaptioned"] == []
    )
    assert [row["filename"] for row in answer["refused"]] == ["cats.ZIP/../evil.png", "no.zip"]
    found = captions(client)
    assert (found["10_猫/1.png"], found["10_猫/2.png"], found["plain.png"]) == (
        "one, cat",
        "two",
        "",
    )


def test_a_folder_on_the_server_is_copied_with_its_prompts(client, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "0.png").write_bytes(with_prompt("a cat", "white"))
    answer = client.post(
        f"{CATS}/folder", json={"folder": str(tmp_path / "outputs"), "caption_from_prompt": True}
    )
    assert answer.status_code == 200 and answer.json() == {
        "added": ["0.png"],
        "refused": [],
        "uncaptioned": [],
    }
    assert captions(client)["0.png"] == "a cat"
    assert (
        client.post(f"{CATS}/folder", json={"folder": str(tmp_path / "no")}).json()["error"]["code"]
        == "no_folder"
    )
    assert client.post(f"{CATS}/folder", json={}).status_code == 422
    for folder, status in (
        (tmp_path / "no", 422),
        (tmp_path / "outputs", 200),
    ):  # no data set is made for nothing
        assert (
            client.post(
                f"{SETS}/new/folder", json={"folder": str(folder), "create": True}
            ).status_code
            == status
        )
        assert ("new" in {row["name"] for row in client.get(SETS).json()}) == (status == 200)
    assert (
        client.post(f"{SETS}/newer/folder", json={"folder": str(tmp_path / "outputs")}).status_code
        == 404
    )


def test_a_folder_outside_the_allowed_ones_is_not_copied(host, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "0.png").write_bytes(png())
    service = TrainingService(host, allowed_roots=[host.data_dir])
    app = FastAPI()
    api.mount(app, service)
    client = TestClient(app)
    client.post(SETS, json={"name": "my cats"})
    answer = client.post(f"{CATS}/folder", json={"folder": str(tmp_path / "secret")})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "forbidden_path"
    service.library.close()


@pytest.mark.parametrize(
    "method, path, body, status, field",
    [
        ("patch", "captions", {"changes": {"a.png": 3}}, 422, "changes"),
        ("patch", "captions", {"changes": {"../a.png": "x"}}, 404, "filename"),
        ("patch", "captions", {"changes": {"a.png": "x\u0000"}}, 422, "changes"),
        ("patch", "captions", {"changes": {"a.png": "x"}, "versions": []}, 422, "versions"),
        ("post", "captions/undo", {"if_changed": "maybe"}, 422, "if_changed"),
        ("post", "bulk-edit", {}, 422, "action"),
        ("post", "bulk-edit", {"action": "sort", "filenames": "a.png"}, 422, "filenames"),
        ("post", "bulk-edit", {"action": "replace", "find": "(", "regex": True}, 422, "find"),
        ("post", "checks", {"resolution": 10**9}, 422, "resolution"),
        ("post", "checks", {"resolution": 512.5}, 422, "resolution"),
        ("post", "rotate", {"filenames": ["a.png"], "degrees": 45}, 422, "degrees"),
        ("post", "rename", {"filename": "a.png", "to": "con"}, 422, "to"),
        ("post", "trash", {"filenames": ["a.txt"]}, 404, "filename"),
        ("post", "trash", {}, 422, "filenames"),
    ],
)
def test_bad_requests_change_nothing(client, method, path, body, status, field):
    before = captions(client)
    answer = getattr(client, method)(f"{CATS}/{path}", json=body)
    assert answer.status_code == status and answer.json()["error"]["field"] == field, answer.text
    assert (
        captions(client) == before
        and client.get(f"{CATS}/revision").json()["history"]["undo"] is None
    )


def test_an_unknown_data_set(client):
    for path in ("", "/revision", "/captions/export", "/thumbnails/a.png"):
        assert client.get(f"{SETS}/nothing{path}").status_code == 404
