"""What is read of a data set's files where something is no file, or is not to be read."""

import os
import time

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.dataset.caption_tables import find_table
from lora_trainer.dataset.scan import scan
from lora_trainer.editor.checks import CheckSettings
from tests.support.edited_sets import captions


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 48), "red").save(folder / f"{name}.png")
    return folder


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes by name")
@pytest.mark.parametrize(
    "make",
    [
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to(path.name),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("gone.png"),
    ],
    ids=["pipe", "link to itself", "folder", "device", "dead link"],
)
def test_a_picture_that_is_no_file_costs_nobody_else(editor, folder, make):
    started = time.monotonic()
    make(folder / "x.png")
    found, problems = scan(folder)
    assert [picture.path.name for picture in found] == ["a.png", "b.png"] and [
        problem.path.name for problem in problems
    ] == ["x.png"]
    assert set(captions(editor)) == {"a.png", "b.png"} and [
        row["filename"] for row in editor.describe()["problems"]
    ] == ["x.png"]
    editor.bulk_edit("prepend", {"text": "zib"})
    editor.pictures.check(CheckSettings())
    assert captions(editor) == {"a.png": "zib", "b.png": "zib"}
    with pytest.raises(Refused, match="There is no picture"):
        editor.pictures.preview("x.png")
    assert time.monotonic() - started < 10


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes by name")
@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda path: path.symlink_to(path.name), lambda path: path.mkdir()],
    ids=["pipe", "link to itself", "folder"],
)
@pytest.mark.parametrize("ending", [".txt", ".caption"])
def test_a_caption_that_is_no_file_is_none(editor, folder, make, ending):
    make(folder / f"a{ending}")
    assert captions(editor) == {"a.png": "", "b.png": ""}
    editor.set_captions({"b.png": "x"})
    assert captions(editor) == {"a.png": "", "b.png": "x"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes by name")
@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda path: path.symlink_to(path.name), lambda path: path.mkdir()],
    ids=["pipe", "link to itself", "folder"],
)
def test_a_table_that_is_no_file_is_none(folder, make):
    make(folder / "metadata.csv")
    assert find_table(folder) == {} and len(scan(folder)[0]) == 2
    with pytest.raises(Refused, match="caption table"):
        find_table(folder, str(folder / "metadata.csv"))


def test_a_caption_file_that_is_too_large_is_a_problem_of_its_picture(editor, folder):
    with open(folder / "a.txt", "wb") as file:
        file.truncate(1_500_000_000)
    assert [problem.reason for problem in scan(folder)[1]] == [
        "The caption file of a.png cannot be read: larger than 200 kB."
    ]
    assert (
        set(captions(editor)) == {"b.png"}
        and editor.describe()["problems"][0]["filename"] == "a.png"
    )
    editor.bulk_edit("prepend", {"text": "zib"})
    with pytest.raises(Refused, match="a.txt cannot be read: larger than 200 kB"):
        editor.set_captions({"a.png": "mine"})
    editor.files.move_to_trash(["a.png"])
    assert (
        captions(editor) == {"b.png": "zib"} and (folder / "a.txt").stat().st_size == 1_500_000_000
    )
    editor.undo()
    assert (folder / "a.png").is_file()


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_folder_that_leads_back_to_the_data_set_shows_nothing_twice(editor, folder):
    (folder / "2_loop").symlink_to("2_loop")
    (folder / "3_self").symlink_to(".")
    (folder / "4_up").symlink_to("..")
    assert set(captions(editor)) == {"a.png", "b.png"} and len(scan(folder)[0]) == 2
