"""Pictures are decoded once, in the background, and again when they change."""

import os

import pytest

from lora_trainer.editor.checks import CheckSettings
from lora_trainer.editor.editor import DataSetEditor
from tests.support.edited_sets import captions, checked, codes, noise, picture


def test_what_was_examined_is_known_after_a_restart(editor, folder, tmp_path, monkeypatch):
    checked(editor)
    again = DataSetEditor("cats", folder, tmp_path / "home")
    monkeypatch.setattr(
        "lora_trainer.editor.background_scan.look", lambda *_: pytest.fail("looked again")
    )
    assert again.pictures.check(CheckSettings())["ready"]
    assert again.pictures.thumbnail("a.png").is_file()
    again.close()


def test_a_changed_picture_is_looked_at_again(editor, folder):
    checked(editor)
    noise(3).save(folder / "a.png")
    assert not editor.pictures.check(CheckSettings())["ready"]
    assert codes(checked(editor), "a.png") == set() | (
        {"near_duplicate"} & codes(checked(editor), "a.png")
    )
    assert checked(editor)["pictures"]["a.png"]["crop"]["bucket"] == [512, 512]


def test_a_name_that_is_no_unicode_is_listed_and_nothing_else_suffers(editor, folder):
    source = os.fsencode(folder / "b.png")
    try:
        os.link(source, os.path.join(os.fsencode(folder), "\u732b.png".encode("cp932")))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert [problem["reason"] for problem in editor.describe()["problems"]] == [
        "Its name is not in UTF-8; rename it."
    ]
    assert (
        editor.bulk_edit("append", {"text": "x"})["count"] == 3
        and editor.pictures.check(CheckSettings())["total"] == 3
    )


def test_a_tiff_with_broken_tags_is_a_problem_and_nothing_more(editor, folder):
    picture(folder / "t.tif")
    data = bytearray((folder / "t.tif").read_bytes())
    for at in range(8, min(len(data), 400), 7):
        broken = bytearray(data)
        broken[at : at + 3] = b"\xff\x00\xff"
        (folder / "t.tif").write_bytes(broken)
        assert {"a.png", "b.png"} <= set(captions(editor))
