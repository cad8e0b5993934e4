"""Caption files of other programs in a data set that is edited: several lines, .caption beside
.txt.
"""

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.editor.checks import CheckSettings
from tests.support.edited_sets import captions


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 48), "red").save(folder / f"{name}.png")
    return folder


def files(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.suffix != ".png"
    }


def remarks(editor, filename, **wanted):
    return {
        remark["code"]: remark["message"]
        for remark in editor.pictures.check(CheckSettings(**wanted))["pictures"][filename][
            "remarks"
        ]
    }


# --- Several lines --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action, settings, expected",
    [
        ("prepend", {"text": "zib"}, "zib, a cat, red\nzib, sitting, cat"),
        ("append", {"text": "hd"}, "a cat, red, hd\nsitting, cat, hd"),
        ("remove_tag", {"tag": "red"}, "a cat\nsitting, cat"),
        ("rename_tag", {"tag": "cat", "to": "dog"}, "a cat, red\nsitting, dog"),
        ("replace", {"find": "a ", "replace": ""}, "cat, red\nsitting, cat"),
        ("sort", {}, "a cat, red\ncat, sitting"),
        ("trigger_first", {"text": "cat"}, "cat, a cat, red\ncat, sitting"),
    ],
)
def test_an_edit_of_many_works_line_by_line(editor, folder, action, settings, expected):
    (folder / "a.txt").write_text("a cat, red\nsitting, cat\n", encoding="utf-8")
    editor.bulk_edit(action, settings)
    assert captions(editor)["a.png"] == expected
    editor.undo()
    assert (folder / "a.txt").read_bytes() == b"a cat, red\nsitting, cat\n"


def test_a_line_that_an_edit_does_not_touch_stays_as_it_is(editor, folder):
    (folder / "a.txt").write_text("a cat,red\ndog\n", encoding="utf-8")
    editor.bulk_edit("remove_tag", {"tag": "dog"})
    assert (folder / "a.txt").read_bytes() == b"a cat,red\n"


def test_lines_go_into_a_table_and_come_back(editor, folder):
    (folder / "a.txt").write_text('a cat\nsitting, "here"\n', encoding="utf-8")
    for format in ("csv", "jsonl"):
        table = editor.tables.export_captions(format)
        (folder / "a.txt").write_text("other", encoding="utf-8")
        editor.tables.import_captions(f"metadata.{format}", table, apply=True)
        assert (folder / "a.txt").read_bytes() == b'a cat\nsitting, "here"\n'


def test_tokens_are_counted_as_lines_are_used(editor, folder):
    (folder / "a.txt").write_text("one two\nthree four five\n", encoding="utf-8")
    counts = {
        use: editor.pictures.check(CheckSettings(caption_lines=use))["pictures"]["a.png"]["tokens"]
        for use in ("join", "first", "alternatives")
    }
    assert counts == {"join": 5, "first": 2, "alternatives": 3}


# --- .caption beside .txt -------------------------------------------------------------------------


def test_a_caption_file_is_edited_itself_and_comes_back(editor, folder):
    (folder / "a.caption").write_bytes(b"from kohya\r\n")
    row = next(row for row in editor.describe()["pictures"] if row["filename"] == "a.png")
    assert row["caption"] == "from kohya" and row["version"]
    done = editor.set_captions({"a.png": "mine"}, versions={"a.png": row["version"]})
    assert (
        files(folder) == {"a.caption": b"mine\n"} and done["captions"]["a.png"]["caption"] == "mine"
    )
    assert editor.undo()["captions"]["a.png"]["caption"] == "from kohya" and files(folder) == {
        "a.caption": b"from kohya\r\n"
    }


def test_both_caption_files_go_and_come_with_their_picture(editor, folder):
    (folder / "a.txt").write_text("ours", encoding="utf-8")
    (folder / "a.caption").write_text("theirs", encoding="utf-8")
    before = files(folder)
    editor.files.rename("a.png", "c")
    assert (
        files(folder) == {"c.txt": b"ours", "c.caption": b"theirs"}
        and captions(editor)["c.png"] == "ours"
    )
    editor.undo()
    assert files(folder) == before
    editor.files.move_to_trash(["a.png"])
    assert files(folder) == {}
    editor.undo()
    assert files(folder) == before and captions(editor)["a.png"] == "ours"


def test_a_name_is_taken_by_a_caption_file_that_waits_there(editor, folder):
    (folder / "c.caption").write_text("another's", encoding="utf-8")
    with pytest.raises(Refused, match="There is already c.caption"):
        editor.files.rename("a.png", "c")


def test_two_captions_that_differ_are_pointed_out(editor, folder):
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("ours", encoding="utf-8")
    (folder / "a.caption").write_text("theirs", encoding="utf-8")
    (folder / "b.caption").write_text("ours\r\n", encoding="utf-8")
    assert "a.caption says something else; the .txt counts" in remarks(editor, "a.png")[
        "two_captions"
    ] and "two_captions" not in remarks(editor, "b.png")
    assert {"code": "two_captions", "title": "two captions", "count": 1} in editor.pictures.check(
        CheckSettings()
    )["summary"]
    said = editor.pictures.check(CheckSettings(caption_extension=".caption"))["pictures"]["a.png"][
        "remarks"
    ]
    assert [
        "a.caption says something else and counts, as Caption file says" in each["message"]
        for each in said
        if each["code"] == "two_captions"
    ] == [True]


def test_a_lora_in_a_caption_is_pointed_out(editor, folder):
    (folder / "a.txt").write_text("a cat, lora:mycat:0.9", encoding="utf-8")
    assert "lora:mycat:0.9 belongs in a prompt" in remarks(editor, "a.png")[
        "lora_in_caption"
    ] and "lora_in_caption" not in remarks(editor, "b.png")


@pytest.mark.parametrize("stem", ["n" * 251, "猫" * 83])
def test_a_name_as_long_as_can_be_is_edited_as_any(editor, folder, stem):
    name = f"{stem}.png"  # with .caption, and in the trash, it would be too long
    Image.new("RGB", (64, 48), "blue").save(folder / name)
    assert set(captions(editor)) == {"a.png", "b.png", name}
    editor.set_captions({name: "mine"})
    editor.files.rotate([name], 90)
    editor.files.move_to_trash([name])
    assert set(captions(editor)) == {"a.png", "b.png"}
    for _ in range(3):
        editor.undo()
    with Image.open(folder / name) as image:
        assert image.size == (64, 48) and captions(editor)[name] == ""
