"""Pictures are decoded once, in the background, and again when they change."""

import os

import pytest
from PIL import Image

from lora_trainer.editor.background_scan import BackgroundScan
from lora_trainer.editor.checks import CheckSettings
from lora_trainer.editor.editor import DataSetEditor
from tests.support.edited_sets import captions, checked, codes, noise, picture
from tests.support.waiting import until


def test_what_was_examined_is_known_after_a_restart(editor, folder, tmp_path, monkeypatch):
    checked(editor)
    again = DataSetEditor("cats", folder, tmp_path / "home")
    monkeypatch.setattr(
        "lora_trainer.editor.background_scan.decode_thumbnail",
        lambda *_: pytest.fail("looked again"),
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


@pytest.fixture
def red_picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (80, 60), "red").save(path)
    return path


def test_what_was_scanned_is_known_to_the_next(tmp_path, red_picture):
    scan = BackgroundScan(tmp_path / "home")
    assert scan.known(red_picture, red_picture.stat()) is None
    scan.start([red_picture])
    result = until(lambda: scan.known(red_picture, red_picture.stat()))
    scan.close()
    again = BackgroundScan(tmp_path / "home")
    assert (result.facts.width, result.facts.height) == (80, 60)
    assert again.known(red_picture, red_picture.stat()) == result
    again.close()


def test_a_full_disk_costs_the_cache_and_not_the_result(tmp_path, red_picture):
    scan = BackgroundScan(tmp_path / "home")
    pages = scan._database.execute("pragma page_count").fetchone()[0]
    scan._database.execute(f"pragma max_page_count = {pages}")
    broken = [tmp_path / f"{'long' * 40}-{number}.png" for number in range(40)]
    for path in broken:  # until the last page is full
        path.write_bytes(b"no picture")
    scan.start([*broken, red_picture])
    assert until(lambda: scan.known(red_picture, red_picture.stat())).facts.width == 80
    assert scan.thumbnail(red_picture).is_file()
    scan.close()
    kept = BackgroundScan(tmp_path / "home")
    assert kept.known(broken[-1], broken[-1].stat()) is None
    kept.close()


def test_a_thumbnail_is_made_when_its_data_set_was_just_closed(tmp_path, red_picture):
    scan = BackgroundScan(tmp_path / "home")
    scan.close()
    assert scan.thumbnail(red_picture).is_file()
