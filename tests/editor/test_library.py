"""Data sets by name: uploads, captions, thumbnails, and what gets nothing."""

import io
import os

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused


def png(colour="red", size=(64, 64)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


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


def test_a_caption_file_is_found_whatever_the_case_of_its_ending(library):
    for name in ("a", "b"):
        library.add("cats", f"{name}.PNG", png())
    assert (library.add("cats", "a.TXT", b"a cat"), library.add("cats", "b.Caption", b"b cat")) == (
        "a.txt",
        "b.caption",
    )
    assert library.open("cats").captions() == {"a.PNG": "a cat", "b.PNG": "b cat"}


def test_the_same_file_again_is_fine_but_another_of_its_name_is_not(library):
    library.add("cats", "a.png", png())
    library.add("cats", "a.png", png())
    with pytest.raises(Refused, match="is there already"):
        library.add("cats", "a.png", png("blue"))


@pytest.mark.parametrize(
    "name, data, sentence",
    [
        ("a.png", b"hello", "a.png is not a picture"),
        ("a.exe", b"MZ", "neither a picture"),
        (".png", png(), "cannot be used as a file name"),
        ("a.png", png(size=(1, 1)), "needs at least 16"),
        ("x" * 250 + ".png", png(), "cannot be used"),
        ("a.txt", b"x" * 200_000, "at most 0.1 MB"),
        ("", png(), "cannot"),
    ],
)
def test_bad_uploads_leave_nothing(library, name, data, sentence):
    with pytest.raises(Refused, match=sentence):
        library.add("cats", name, data)
    assert [path for path in library.path("cats").iterdir() if path.name != ".train_lora"] == []


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "C:\\windows\\evil.png", "..\\evil.png"]
)
def test_uploads_never_leave_the_folder(library, name):
    assert library.add("cats", name, png()) == "evil.png"
    assert (library.path("cats") / "evil.png").is_file()


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


def test_of_two_uploads_of_one_name_at_once_one_is_refused(library):
    from concurrent.futures import ThreadPoolExecutor

    def add(colour):
        try:
            return library.add("cats", "a.png", png(colour, (400, 400)))
        except Refused as error:
            return error.code

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(add, ("red", "blue"))) == ["a.png", "exists"]
        (library.path("cats") / "a.png").unlink()
