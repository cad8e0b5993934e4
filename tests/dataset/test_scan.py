"""Pictures as people have them: what can be used, what is said of the rest, and what the trainer
sees of each.
"""

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.dataset import scan as scan_module
from lora_trainer.dataset.scan import scan


def test_kohya_folders_give_repeats_and_class_words(tmp_path):
    (tmp_path / "10_blue_cat").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "10_blue_cat" / "a.png")
    pictures, problems = scan(tmp_path)
    assert [(picture.repeats, picture.caption) for picture in pictures] == [
        (10, "blue cat")
    ] and not problems


@pytest.mark.parametrize(
    "name, make, sentence",
    [
        ("text.png", lambda path: path.write_text("hello"), "is not a picture"),
        ("empty.png", lambda path: path.write_bytes(b""), "is not a picture"),
        (
            "dot.png",
            lambda path: Image.new("RGB", (1, 1)).save(path),
            "is 1x1; a side needs at least 16",
        ),
        (
            "thin.png",
            lambda path: Image.new("RGB", (20000, 30)).save(path),
            "20000x30; one side may be at most 8 times",
        ),
        ("script.png", lambda path: path.write_text("<svg onload=alert(1)>"), "is not a picture"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, name, make, sentence):
    make(tmp_path / name)
    pictures, problems = scan(tmp_path)
    assert not pictures and sentence in problems[0].reason and name in problems[0].reason


def test_truncated_jpeg(tmp_path):
    Image.effect_noise((200, 200), 80).convert("RGB").save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:3000])
    assert "damaged or cut off" in scan(tmp_path)[1][0].reason


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(Refused, match="does not exist"):
        scan(tmp_path / "no")
    (tmp_path / "file").write_text("x")
    with pytest.raises(Refused, match="is a file, not a folder"):
        scan(tmp_path / "file")


def test_a_named_table_is_read_once_however_many_folders_there_are(tmp_path, monkeypatch):
    for name in ("1_a", "2_b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / f"{name}.png")
    table = tmp_path.parent / f"{tmp_path.name}.csv"
    table.write_text("filename,prompt\n1_a.png,one\n2_b.png,two\n", encoding="utf-8")
    read, calls = scan_module.find_table, []
    monkeypatch.setattr(scan_module, "find_table", lambda *args: calls.append(args) or read(*args))
    pictures, _ = scan_module.scan(tmp_path, metadata_path=str(table))
    assert [picture.caption for picture in pictures] == ["one", "two"]
    assert len(calls) == 1
