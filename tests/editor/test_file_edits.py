"""Pictures of a data set renamed, turned and thrown away, with their captions."""

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from tests.support.edited_sets import captions, picture, rows


def test_rename_takes_the_caption_along(editor, folder):
    done = editor.files.rename("a.png", "花 1.PNG")
    assert (
        done["filename"] == "花 1.png"
        and done["files_changed"]
        and captions(editor) == {"花 1.png": "zib, cat", "b.png": "dog", "猫 c.png": ""}
    )
    assert not (folder / "a.txt").exists()
    editor.undo()
    assert captions(editor)["a.png"] == "zib, cat" and not (folder / "花 1.txt").exists()


@pytest.mark.parametrize(
    "to, code",
    [
        ("b", "exists"),
        ("b.png", "exists"),
        ("con", "bad_name"),
        ("", "bad_name"),
        ("a:b", "bad_name"),
        (".x", "bad_name"),
        ("x. ", "bad_name"),
    ],
)
def test_names_that_cannot_be_taken(editor, to, code):
    with pytest.raises(Refused) as caught:
        editor.files.rename("a.png", to)
    assert caught.value.code == code and "a.png" in captions(editor)


def test_rotation_is_undone_to_the_very_bytes(editor, folder):
    before = (folder / "b.png").read_bytes()
    version = rows(editor)["b.png"]["thumbnail"]
    editor.files.rotate(["b.png", "a.png"], 90)
    assert (rows(editor)["b.png"]["width"], rows(editor)["b.png"]["height"]) == (48, 64) and rows(
        editor
    )["b.png"]["thumbnail"] != version
    editor.undo()
    assert (folder / "b.png").read_bytes() == before
    editor.redo()
    with Image.open(folder / "b.png") as image:
        assert image.size == (48, 64)
    with pytest.raises(Refused, match="90, 180 or 270"):
        editor.files.rotate(["b.png"], 45)


def test_deleted_pictures_lie_in_the_trash_and_come_back_with_captions(editor, folder, tmp_path):
    done = editor.files.move_to_trash(["a.png", "猫 c.png"])
    assert (
        done["label"] == "Delete 2 pictures"
        and done["files_changed"]
        and list(captions(editor)) == ["b.png"]
    )
    assert not (folder / "a.txt").exists() and editor.describe()["trash"] == str(
        tmp_path / "home" / "trash"
    )
    assert sorted(path.name[:2] for path in (tmp_path / "home" / "trash").iterdir()) == [
        "a.",
        "猫 ",
    ]
    editor.undo()
    assert captions(editor) == {"a.png": "zib, cat", "b.png": "dog", "猫 c.png": ""}


def test_rename_takes_a_caption_from_a_table_along(editor, folder):
    (folder / "metadata.csv").write_text("filename,prompt\n猫 c.png,precious\n", encoding="utf-8")
    editor.files.rename("猫 c.png", "d")
    assert captions(editor)["d.png"] == "precious"
    editor.undo()
    assert captions(editor)["猫 c.png"] == "precious" and not (folder / "d.txt").exists()


def test_a_name_whose_caption_file_another_picture_would_get_is_taken(editor, folder):
    picture(folder / "lonely.jpg")
    with pytest.raises(Refused, match="already lonely.jpg"):
        editor.files.rename("a.png", "lonely")
    assert captions(editor)["lonely.jpg"] == ""


def test_an_automatic_caption_stays_automatic_when_renamed_and_when_a_second_run_is_undone(editor):
    for words in ("first", "second"):
        with editor.captioning("Automatic") as write:
            write({"猫 c.png": words})
    editor.undo()
    assert rows(editor)["猫 c.png"]["automatic"] and captions(editor)["猫 c.png"] == "first"
    editor.files.rename("猫 c.png", "d")
    assert rows(editor)["d.png"]["automatic"]
