"""Captions in the encodings and tables that people bring."""
import pytest

from lora_trainer.core import captions
from lora_trainer.core.tables import find_table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_chinese_in_any_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("一只猫, 画".encode(encoding))
    assert captions.read_caption(tmp_path / "a.png") == "一只猫, 画"


def test_lines_become_one(tmp_path):
    (tmp_path / "a.txt").write_bytes(b" a cat,\r\n  sitting \n")
    assert captions.read_caption(tmp_path / "a.png") == "a cat, sitting"


def test_sidecar_wins_over_the_table(tmp_path):
    (tmp_path / "metadata.csv").write_text('filename,prompt\na.png,"from, the table"\nb.png,B\n', encoding="utf-8-sig")
    (tmp_path / "a.txt").write_text("from the file", encoding="utf-8")
    table = find_table(tmp_path)
    assert captions.read_caption(tmp_path / "a.png", table) == "from the file"
    assert captions.read_caption(tmp_path / "b.png", table) == "B"
    assert captions.read_caption(tmp_path / "c.png", table) is None


@pytest.mark.parametrize("caption, expected", [
    ("a cat", "zib, a cat"), ("zib, a cat", "zib, a cat"), ("a zib on a wall", "a zib on a wall"), ("a zibra", "zib, a zibra"), ("", "zib")])
def test_trigger_word(caption, expected):
    assert captions.with_trigger(caption, "zib") == expected


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(captions.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        captions.write_atomically(path, b"new")
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]
