"""Many files at once: which are taken together, where each goes, and folders as they are."""

import os

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.editor.library import Library
from tests.support.uploaded import packed, png, reasons, there, upload


@pytest.fixture
def folder(library):
    return library.path("cats")


def test_pictures_and_captions_come_out_and_kohyas_folders_stay(library, folder):
    taken = upload(
        library,
        packed(
            {
                "set/img/10_red cat/1.png": png(),
                "set/img/10_red cat/1.txt": "one",
                "set/img/10_red cat/mask/1.png": png("white"),
                "set/2.png": png("blue"),
                "set/2.txt": "two, 猫",
                "set/more/3.png": png("green"),
                "set/metadata.csv": "filename,prompt\n3.png,three\n",
                "__MACOSX/set/._2.png": b"x",
                "set/.DS_Store": b"x",
                "set/Thumbs.db": b"x",
                "set/empty/": b"",
                "readme.md": "hello",
            }
        ),
    )
    assert there(folder) == [
        "10_red cat/1.png",
        "10_red cat/1.txt",
        "10_red cat/mask/1.png",
        "2.png",
        "2.txt",
        "3.png",
        "metadata.csv",
    ]
    assert sorted(taken.added) == there(folder) and list(reasons(taken)) == ["cats.zip/readme.md"]
    rows = {
        row["filename"]: (row["caption"], row["repeats"])
        for row in library.describe("cats")["pictures"]
    }
    assert rows == {"10_red cat/1.png": ("one", 10), "2.png": ("two, 猫", 1), "3.png": ("three", 1)}


def test_nothing_that_is_there_is_written_over(library, folder):
    library.add("cats", "1.png", png())
    library.add("cats", "1.txt", b"mine")
    library.add("cats", "2.png", png("blue"))
    taken = upload(
        library,
        packed({"1.png": png("green"), "1.txt": "theirs", "2.png": png("blue"), "2.txt": "new"}),
    )
    assert (
        (folder / "1.txt").read_bytes() == b"mine"
        and (folder / "1.png").read_bytes() == png()
        and (folder / "2.txt").read_bytes() == b"new"
    )
    assert (
        set(reasons(taken)) == {"cats.zip/1.png", "cats.zip/1.txt"}
        and "other content" in reasons(taken)["cats.zip/1.png"]
    )
    assert (
        not upload(library, packed({"2.txt": "another"})).added
        and (folder / "2.txt").read_bytes() == b"new"
    )


def test_a_mask_that_is_refused_keeps_no_caption_back(library, folder):
    library.add("cats", "1-masklabel.png", png("white"))
    taken = upload(
        library, packed({"1.png": png(), "1-masklabel.png": png("black"), "1.txt": "one"})
    )
    assert taken.added == ["1.png", "1.txt"] and list(reasons(taken)) == [
        "cats.zip/1-masklabel.png"
    ]


def test_a_picture_in_two_files_of_one_name_of_which_one_is_taken_keeps_its_caption(
    library, folder
):
    taken = upload(library, packed({"1.png": png(), "1.webp": b"no picture", "1.txt": "one"}))
    assert taken.added == ["1.png", "1.txt"] and list(reasons(taken)) == ["cats.zip/1.webp"]


def test_a_caption_never_goes_to_another_picture(library, folder):
    taken = upload(
        library,
        packed(
            {
                "a/1.png": png(),
                "b/1.jpg": png("blue"),
                "b/1.txt": "of b",
                "c/2.png": b"no picture",
                "c/2.txt": "of c",
                "d/3.txt": "of d",
                "e/3.png": png("green"),
            }
        ),
    )
    assert there(folder) == ["1.png", "3.png"] == taken.added
    said = reasons(taken)
    assert (
        "a has files called 1, too" in said["cats.zip/b/1.jpg"]
        and "a has files called 1, too" in said["cats.zip/b/1.txt"]
    )
    assert (
        said["cats.zip/c/2.txt"] == "Its picture was not taken."
        and "e has files called 3, too" in said["cats.zip/d/3.txt"]
    )


@pytest.fixture
def outputs(tmp_path):
    """What the WebUI leaves: pictures by day with their making, beside them the same as text."""
    from PIL.PngImagePlugin import PngInfo

    place = tmp_path / "outputs" / "2024-01-01"
    place.mkdir(parents=True)
    for number, colour in enumerate(("red", "blue")):
        texts = PngInfo()
        texts.add_text(
            "parameters",
            f"a (zib:1.2), number {number}\nNegative prompt: bad\nSteps: 20, Sampler: Euler, CFG"
            " scale: 7",
        )
        Image.new("RGB", (64, 64), colour).save(place / f"0000{number}.png", pnginfo=texts)
        (place / f"0000{number}.txt").write_text(
            f"a (zib:1.2), number {number}\nNegative prompt: bad\nSteps: 20, Sampler: Euler, CFG"
            " scale: 7\n"
        )
    os.symlink(place / "00000.png", place / "link.png")
    return place.parent


def test_an_output_folder_becomes_a_data_set(library, folder, outputs):
    before = {path: path.read_bytes() for path in outputs.rglob("*") if path.is_file()}
    taken = library.add_folder("cats", str(outputs), with_prompts=True)
    assert taken.added == there(folder) == ["00000.png", "00001.png"] and not taken.refused
    assert library.add_captions_from_prompts("cats", taken.added) == []
    assert library.open("cats").captions() == {
        "00000.png": "a zib, number 0",
        "00001.png": "a zib, number 1",
    }
    assert {path: path.read_bytes() for path in outputs.rglob("*") if path.is_file()} == before
    again = library.add_folder("cats", str(outputs), with_prompts=True)
    assert again.added == taken.added and not again.refused


def test_texts_that_are_no_captions_stay_where_they_are(library, folder, outputs):
    day = next(path for path in outputs.rglob("*.png")).parent
    (day / "LICENSE.txt").write_text("not a caption")
    (day / "00000.caption").write_text("a zib")
    (outputs / "notes.caption").write_text("private")
    taken = library.add_folder("cats", str(outputs))
    assert (
        "00000.caption" in there(folder)
        and not {"LICENSE.txt", "notes.caption"} & set(there(folder))
        and not taken.refused
    )


def test_a_caption_file_that_cannot_be_read_costs_its_picture_alone(library, folder, outputs):
    taken = library.add_folder("cats", str(outputs), with_prompts=True)
    (folder / "00000.txt").write_bytes(b"x" * 300_000)
    refused = library.add_captions_from_prompts("cats", taken.added)
    assert [row["filename"] for row in refused] == [
        "00000.png"
    ] and "larger than 200 kB" in refused[0]["reason"]
    assert library.open("cats").captions() == {"00001.png": "a zib, number 1"}


def test_a_folder_within_the_data_set_and_one_that_is_not_there_are_refused(
    library, folder, tmp_path
):
    for path in (folder, tmp_path, tmp_path / "nothing"):
        with pytest.raises(Refused):
            library.add_folder("cats", str(path))


def test_a_folder_that_is_refused_leaves_no_new_data_set(library, outputs, tmp_path, monkeypatch):
    from lora_trainer.editor import uploads

    with pytest.raises(Refused, match="one within the other"):
        library.add_folder("fresh", str(tmp_path), create=True)
    monkeypatch.setattr(uploads, "MOST_FILES", 1)
    with pytest.raises(Refused, match="more than 1 files"):
        library.add_folder("fresh", str(outputs), create=True)
    with pytest.raises(Refused, match="bad\\\\x00"):
        library.add_folder("bad\x00", str(outputs), create=True)
    assert "fresh" not in [row["name"] for row in library.all()]


def test_folders_that_may_not_be_read_are_not_listed(tmp_path, outputs):
    def check(path):
        if "outputs" in str(path):
            raise Refused("Not from here.", code="forbidden_path")

    made = Library(tmp_path / "datasets", check)
    made.create("cats")
    with pytest.raises(Refused, match="Not from here"):
        made.add_folder("cats", str(outputs))
    made.close()


def test_a_folder_of_too_many_files_is_refused(library, outputs, monkeypatch):
    from lora_trainer.editor import uploads

    monkeypatch.setattr(uploads, "MOST_FILES", 1)
    with pytest.raises(Refused, match="more than 1 files"):
        library.add_folder("cats", str(outputs))
