"""Data sets by name: uploads, captions, thumbnails, and what gets nothing."""

import os

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from tests.support.uploaded import png


def test_upload_describe_and_caption(library):
    assert library.add("cats", "猫 1.png", png()) == "猫 1.png"
    library.add("cats", "猫 1.txt", b"a cat, sitting")
    described = library.describe("cats")
    assert described["pictures"][0]["caption"] == "a cat, sitting" and described["pictures"][0][
        "tags"
    ] == ["a cat", "sitting"]
    library.open("cats").set_captions({"猫 1.png": "changed"})
    assert library.describe("cats")["pictures"][0]["caption"] == "changed" and library.all() == [
        {"name": "cats", "path": described["path"], "pictures": 1}
    ]


@pytest.mark.parametrize(
    "filename", ["../secret.png", "/etc/passwd", "sub/../../secret.png", "no.png", "link.png", ".."]
)
def test_what_is_not_a_picture_of_the_data_set_gets_nothing(library, tmp_path, filename):
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "datasets" / "secret.png").write_bytes(png())
    os.symlink(tmp_path / "secret.png", library.path("cats") / "link.png")
    for call in (
        lambda: library.open("cats").pictures.thumbnail(filename),
        lambda: library.open("cats").set_captions({filename: "x"}),
    ):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.code == "not_found"
    assert not (tmp_path / "secret.txt").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "../cats", ".hidden", "no", "C:"])
def test_names_that_are_no_data_set(library, name):
    with pytest.raises(Refused):
        library.path(name)


def test_adopted_folder_keeps_its_files_and_takes_ours_elsewhere(library, tmp_path):
    folder = tmp_path / "my pictures 猫"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    assert library.create(None, str(folder))["name"] == "my pictures 猫"
    assert library.create(None, f'"{folder}"')["name"] == "my pictures 猫"
    library.open("my pictures 猫").pictures.thumbnail("a.png")
    assert sorted(path.name for path in folder.iterdir()) == ["a.png"]
    with pytest.raises(Refused, match="does not exist"):
        library.create(None, str(tmp_path / "nothing"))


def test_a_second_folder_of_the_same_name_gets_a_number(library, tmp_path):
    for place in ("x", "y"):
        (tmp_path / place / "cats").mkdir(parents=True)
    assert [
        library.create(None, str(tmp_path / place / "cats"))["name"] for place in ("x", "y")
    ] == ["cats-2", "cats-3"]


def test_thumbnails_are_small_and_made_once(library):
    library.add("cats", "a.png", png(size=(900, 300)))
    path = library.open("cats").pictures.thumbnail("a.png")
    stamp = path.stat().st_mtime_ns
    with Image.open(path) as image:
        assert image.size == (256, 85) and image.format == "JPEG"
    assert library.open("cats").pictures.thumbnail("a.png").stat().st_mtime_ns == stamp


def test_captions_are_all_checked_before_one_is_written(library):
    library.add("cats", "a.png", png())
    with pytest.raises(Refused):
        library.open("cats").set_captions({"a.png": "new", "b.png": "x"})
    assert library.describe("cats")["pictures"][0]["caption"] == ""
