"""Captions in the encodings and tables that people bring."""
import pytest

from lora_trainer.core import captions
from lora_trainer.core.errors import Refused


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
    table = captions.find_table(tmp_path)
    assert captions.read_caption(tmp_path / "a.png", table) == "from the file"
    assert captions.read_caption(tmp_path / "b.png", table) == "B"
    assert captions.read_caption(tmp_path / "c.png", table) is None


def test_csv_quotes_line_breaks_and_windows_paths(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes('filename,prompt\r\n"C:\\my pictures\\a.png","say ""hi"",\r\nthere"\r\n'.encode())
    assert captions.read_table(path) == {"a.png": 'say "hi", there'}


def test_json_lines(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "a.png", "text": "猫"}\n\n{"file_name": "b.png", "text": "b"}\n', encoding="utf-8")
    assert captions.read_table(path) == {"a.png": "猫", "b.png": "b"}


@pytest.mark.parametrize("name, content, sentence", [
    ("m.csv", "file,words\na,b\n", "has the columns file, words; expected filename and prompt"),
    ("m.jsonl", '{"file_name": "a", "text": "b"}\nnot json\n', "Line 2"),
    ("m.csv", "", "not a readable CSV"),
])
def test_bad_tables_say_what_is_wrong(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(Refused, match=sentence):
        captions.read_table(tmp_path / name)


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
