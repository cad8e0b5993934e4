"""Captions in the encodings and tables that people bring."""

import os
import time

import pytest

from lora_trainer.base import files
from lora_trainer.dataset import captions
from lora_trainer.dataset.caption_tables import find_table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_chinese_in_any_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("一只猫, 画".encode(encoding))
    assert captions.read_caption(tmp_path / "a.png") == "一只猫, 画"


def test_lines_stay_lines_and_lose_only_blanks(tmp_path):
    (tmp_path / "a.txt").write_bytes(b" a cat,\r\n\r\n  sitting   down\n")
    assert captions.read_caption(tmp_path / "a.png") == "a cat,\nsitting down"
    assert (
        captions.to_bytes(" a cat,\r\n\n sitting  down ") == b"a cat,\nsitting down\n"
        and captions.to_bytes(" \n ") == b""
    )


def test_lines_are_joined_or_the_first_or_alternatives():
    assert captions.lines_of("a cat\nmycat, red", "join") == ["a cat mycat, red"]
    assert captions.lines_of("a cat\nmycat, red", "first") == ["a cat"]
    assert captions.lines_of("a cat\nmycat, red", "alternatives") == ["a cat", "mycat, red"]
    assert [captions.lines_of("", use) for use in ("join", "first", "alternatives")] == [[""]] * 3


def test_the_trigger_word_comes_in_front_of_every_line_that_lacks_it():
    assert (
        captions.with_trigger("a cat\nmycat, red\na dog", "mycat")
        == "mycat, a cat\nmycat, red\nmycat, a dog"
    )
    assert captions.split_tags("a cat, red\nmycat") == ["a cat", "red", "mycat"]


def test_kohyas_caption_file_is_read_and_the_txt_wins(tmp_path):
    picture = tmp_path / "a.png"
    (tmp_path / "a.caption").write_text("from kohya", encoding="utf-8")
    assert captions.sidecar(picture).name == "a.caption" and captions.find_caption(
        picture
    ) == captions.Caption("from kohya")
    (tmp_path / "a.txt").write_text("ours", encoding="utf-8")
    assert captions.sidecar(picture).name == "a.txt" and captions.find_caption(
        picture
    ) == captions.Caption("ours", "a.caption")
    assert captions.find_caption(picture, preferred=".caption") == captions.Caption(
        "from kohya", "a.txt"
    )
    (tmp_path / "a.caption").write_text(" ours\r\n", encoding="utf-8")
    assert captions.find_caption(picture) == captions.Caption("ours")
    assert captions.sidecar(tmp_path / "none.png").name == "none.txt"


def test_a_name_that_is_too_long_with_the_ending_has_no_such_file(tmp_path):
    picture = tmp_path / f"{'n' * 251}.png"  # with .caption it is 259 bytes long
    picture.with_suffix(".txt").write_text("ours", encoding="utf-8")
    assert captions.find_caption(picture) == captions.Caption("ours")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes by name")
def test_what_is_no_file_is_no_caption_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "b.caption")
    (tmp_path / "b.txt").symlink_to("/dev/zero")
    (tmp_path / "c.txt").symlink_to("c.txt")
    (tmp_path / "d.txt").mkdir()
    assert [captions.read_caption(tmp_path / f"{name}.png") for name in "abcd"] == [None] * 4


def test_a_caption_file_is_read_no_further_than_a_caption_may_go(tmp_path):
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(1_500_000_000)  # sparse: it takes no room
    started = time.monotonic()
    with pytest.raises(OSError, match="larger than 200 kB"):
        captions.read_caption(tmp_path / "a.png")
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    "text, found",
    [
        ("lora:mycat:0.9, a cat", ["lora:mycat:0.9"]),
        ("a cat <lora:mycat:1>", ["<lora:mycat:1>"]),
        ("a cat, LORA:my cat_v2:-.5", ["LORA:my cat_v2:-.5"]),
        ("lyco:x:1 <lora:y:0.8:0.4>", ["lyco:x:1", "<lora:y:0.8:0.4>"]),
        ("explora:tion:1", []),
        ("lora: a name", []),
        ("made with a lora", []),
    ],
)
def test_what_calls_a_lora_is_seen(text, found):
    assert captions.loras_in(text) == found


def test_sidecar_wins_over_the_table(tmp_path):
    (tmp_path / "metadata.csv").write_text(
        'filename,prompt\na.png,"from, the table"\nb.png,B\n', encoding="utf-8-sig"
    )
    (tmp_path / "a.txt").write_text("from the file", encoding="utf-8")
    table = find_table(tmp_path)
    assert captions.read_caption(tmp_path / "a.png", table) == "from the file"
    assert captions.read_caption(tmp_path / "b.png", table) == "B"
    assert captions.read_caption(tmp_path / "c.png", table) is None


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("a cat", "zib, a cat"),
        ("zib, a cat", "zib, a cat"),
        ("a zib on a wall", "a zib on a wall"),
        ("a zibra", "zib, a zibra"),
        ("", "zib"),
    ],
)
def test_trigger_word(caption, expected):
    assert captions.with_trigger(caption, "zib") == expected


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(
        captions.os,
        "fsync",
        lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(OSError):
        files.write_atomically(path, b"new")
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_a_link_out_of_the_folder_does_not_hide_the_other_caption_file(tmp_path):
    (tmp_path / "outside.txt").write_text("secret", encoding="utf-8")
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "a.caption").write_text("kohya's", encoding="utf-8")
    assert captions.find_caption(folder / "a.png") == captions.Caption("kohya's")
    assert captions.find_caption(folder / "a.png", preferred=".caption").text == "kohya's"
