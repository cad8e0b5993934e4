"""Thirty things that people get wrong, each with its sentence; none of them touches the model, a
caption or an existing LoRA.
"""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.base.contracts import ModelStatus
from lora_trainer.base.errors import Refused
from lora_trainer.jobs.service import TrainingService


def only(folder, name, make):
    """Leave one file in a folder."""
    for path in folder.iterdir():
        path.unlink()
    make(folder / name)


def noise(path, **options):
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (96, 96, 3), np.uint8)).save(
        path, **options
    )


def truncated(path):
    noise(path)
    path.write_bytes(path.read_bytes()[:2000])


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (128, 64)).save(path, exif=exif)


def captioned(words):
    def make(path):
        noise(path)
        path.with_suffix(".txt").write_text(words, encoding="utf-8")

    return make


def animated(path):
    Image.new("RGB", (64, 64)).save(
        path, save_all=True, append_images=[Image.new("RGB", (64, 64), "red")]
    )


REFUSED = {  # what: (settings, file or None, field, part of the sentence)
    "no name": ({"output_name": ""}, None, "output_name", "Give the LoRA a name"),
    "no folder given": ({"train_data_dir": ""}, None, "train_data_dir", "No pictures yet"),
    "no such folder": (
        {"train_data_dir": "/no/such/folder 猫"},
        None,
        "train_data_dir",
        "does not exist",
    ),
    "no pictures": (
        {},
        ("a.md", lambda path: path.write_text("x")),
        "train_data_dir",
        "There are no pictures in",
    ),
    "text named .png": (
        {},
        ("a.png", lambda path: path.write_text("hello")),
        "train_data_dir",
        "a.png is not a picture",
    ),
    "truncated JPEG": ({}, ("a.jpg", truncated), "train_data_dir", "a.jpg is damaged or cut off"),
    "1x1": (
        {},
        ("a.png", lambda path: Image.new("RGB", (1, 1)).save(path)),
        "train_data_dir",
        "is 1x1; a side needs at least 16",
    ),
    "20000x30": (
        {},
        ("a.png", lambda path: Image.new("RGB", (20000, 30)).save(path)),
        "train_data_dir",
        "is 20000x30; one side may be",
    ),
    "rank 0": ({"lora_rank": 0}, None, "lora_rank", "Rank: 0 is out of range. Use 1 to 1024."),
    "rank 10000": ({"lora_rank": 10000}, None, "lora_rank", "Rank: 10000 is out of range"),
    "learning rate abc": (
        {"learning_rate": "abc"},
        None,
        "learning_rate",
        "Learning rate: 'abc' is not a number",
    ),
    "learning rate NaN": (
        {"learning_rate": float("nan")},
        None,
        "learning_rate",
        "Learning rate: nan is not a number",
    ),
    "no epochs": ({"epochs": 0}, None, "epochs", "Epochs: 0 is out of range"),
    "unknown setting": ({"lora_rnak": 4}, None, "lora_rnak", "Did you mean 'lora_rank'?"),
    "name with ../": ({"output_name": "../x"}, None, "output_name", "contains '..'"),
    "name with a slash": ({"output_name": "a/b"}, None, "output_name", "contains '/'"),
    "name of 300 characters": (
        {"output_name": "n" * 300},
        None,
        "output_name",
        "is 300 characters long",
    ),
    "name that the tag cannot hold": ({"output_name": "a:b"}, None, "output_name", "contains ':'"),
    "name already used": (
        {"output_name": "taken"},
        None,
        "output_name",
        "exists already. Replace it, or call the new one taken-2",
    ),
    "output folder is a file": ({"output_dir": __file__}, None, "output_dir", "is not a folder"),
    "caption table without its columns": (
        {"metadata_path": "TABLE"},
        None,
        "metadata_path",
        "expected filename and prompt",
    ),
    "steps without end": (
        {"epochs": 10_000, "repeats": 1000, "max_train_steps": 0},
        None,
        "epochs",
        "would never end",
    ),
}
USED = {  # what: (settings, file, part of a warning or None)
    "one picture": ({}, ("a.png", captioned("x")), "Only 1 picture"),
    "CMYK": ({}, ("a.jpg", lambda path: Image.new("CMYK", (64, 64)).save(path)), None),
    "16 bit": (
        {},
        ("a.png", lambda path: Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(path)),
        None,
    ),
    "animated GIF": ({}, ("a.gif", animated), "a.gif: animated: only the first frame is used"),
    "EXIF-rotated": ({}, ("a.jpg", rotated), None),
    "an empty caption": ({}, ("a.png", captioned("")), "1 of 1 pictures have no caption"),
    "a caption of 500 words": (
        {},
        ("a.png", captioned("word " * 500)),
        "has 500 words; only the first 225 tokens",
    ),
    "emoji in the name": ({"output_name": "🎨 мой стиль"}, ("猫 🎨.png", captioned("x")), None),
}


@pytest.fixture
def service(host, settings):
    (host.lora_dir / "taken.safetensors").write_bytes(b"old")
    return TrainingService(host)


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_its_sentence(service, host, settings, pictures, what):
    changes, file, field, sentence = REFUSED[what]
    if file:
        only(pictures, *file)
    if changes.get("metadata_path"):
        (pictures.parent / "table.csv").write_text("a,b\n1,2\n")
        changes = {"metadata_path": str(pictures.parent / "table.csv")}
    borrowed = []
    host.borrow_model = lambda: borrowed.append(1)
    kept = {path: path.read_bytes() for path in pictures.iterdir()}
    with pytest.raises(Exception) as caught:
        service.start({**settings, **changes})
    assert caught.value.field == field and sentence in caught.value.message
    assert (
        service.planner.plan({**settings, **changes})["errors"][0]["message"]
        == caught.value.message
    )
    assert (
        not borrowed
        and service.jobs() == []
        and (host.lora_dir / "taken.safetensors").read_bytes() == b"old"
    )
    assert {path: path.read_bytes() for path in pictures.iterdir()} == kept


@pytest.mark.parametrize("what", USED)
def test_used_with_a_word_about_it(service, host, settings, pictures, what):
    changes, file, warning = USED[what]
    only(pictures, *file)
    plan = service.planner.plan({**settings, **changes})
    assert plan["errors"] == [] and (
        warning is None or any(warning in said for said in plan["warnings"])
    ), plan
    job = service.wait(service.start({**settings, **changes, "max_train_steps": 1}), timeout=60)
    assert job["state"] == "finished", job["error"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_folder_without_permission(service, settings, pictures):
    pictures.chmod(0)
    try:
        assert "permission denied" in service.planner.plan(settings)["errors"][0]["message"]
    finally:
        pictures.chmod(0o755)


def test_folder_without_permission_as_the_system_says_it(service, settings, pictures, monkeypatch):
    """As above where the tests run as root."""
    monkeypatch.setattr(
        "pathlib.Path.iterdir",
        lambda self: (_ for _ in ()).throw(PermissionError(13, "Permission denied")),
    )
    assert (
        "may not be read: permission denied"
        in service.planner.plan(settings)["errors"][0]["message"]
    )


def test_a_disk_without_room(service, settings, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    )
    job = service.wait(service.start(settings), timeout=60)
    assert (
        job["state"] == "failed"
        and "MB left; the LoRA needs" in job["error"]
        and "Free some space" in job["error"]
    )


def test_a_disk_that_fills_up_while_saving(service, host, settings, monkeypatch):
    monkeypatch.setattr(
        "lora_trainer.base.files.os.fsync",
        lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    job = service.wait(
        service.start({**settings, "output_name": "taken", "overwrite": True}), timeout=60
    )
    assert job["state"] == "failed" and "No space left on device" in job["error"]
    assert (host.lora_dir / "taken.safetensors").read_bytes() == b"old" and len(
        list(host.lora_dir.iterdir())
    ) == 1


def test_no_model(service, host, settings):
    host.status = ModelStatus(False, "No checkpoint is loaded: choose one at the top left.")
    assert service.planner.plan(settings)["errors"][0]["message"].startswith(
        "No checkpoint is loaded"
    )


def test_a_second_job_of_the_same_name(service, settings):
    first = service.start({**settings, "max_train_steps": 100_000})
    try:
        with pytest.raises(Refused, match="mine") as refusal:
            service.start(settings)
        assert refusal.value.code == "name_taken"
    finally:
        service.stop(first)
        assert service.wait(first, timeout=60)["state"] == "stopped"


def test_precision_that_cannot_be(service, host, settings):
    job = service.wait(service.start({**settings, "mixed_precision": "fp16"}), timeout=60)
    assert job["state"] == "failed" and "fp16 needs a GPU" in job["error"]
    host.model.unet.to(torch.float32)
