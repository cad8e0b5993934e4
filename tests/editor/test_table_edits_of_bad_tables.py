"""A table in the data set of which something cannot be read: the set opens all the same, and the
table can be mended, replaced, thrown away.
"""

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.dataset import caption_tables
from lora_trainer.editor.checks import CheckSettings
from lora_trainer.editor.editor import DataSetEditor
from tests.support.edited_sets import captions

BAD = b"filename,prompt\na.png,cat, red\nb.png,dog\n"
GOOD = b'filename,prompt\na.png,"cat, red"\nb.png,dog\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set" / "10_zib").mkdir(parents=True)
    for name in ("a.png", "b.png", "10_zib/c.png"):
        Image.new("RGB", (64, 48), "red").save(tmp_path / "set" / name)
    (tmp_path / "set" / "metadata.csv").write_bytes(BAD)
    return tmp_path / "set"


@pytest.fixture
def editor(folder, tmp_path):
    opened = DataSetEditor("set", folder, tmp_path / "home")
    yield opened
    opened.close()


def problems(editor):
    return [row for row in editor.describe()["problems"] if row.get("table")]


def test_the_set_opens_with_the_good_lines_and_says_the_bad_ones(editor):
    assert captions(editor) == {"a.png": "", "b.png": "dog", "10_zib/c.png": "zib"}
    [problem] = problems(editor)
    assert problem["filename"] == "metadata.csv" and problem["reason"].startswith(
        "Line 2 of the caption table metadata.csv: has 3 fields"
    )
    assert [line["line"] for line in problem["lines"]] == [2]


def test_everything_that_is_done_to_a_set_goes_on(editor, folder):
    assert (
        editor.pictures.check(CheckSettings())["total"] == 3
        and editor.state()["revision"]
        and b"dog" in editor.tables.export_captions("csv")
    )
    editor.set_captions({"a.png": "by hand"})
    assert editor.bulk_edit("append", {"text": "x"})["count"] == 3
    editor.files.rename("b.png", "d")
    editor.files.rotate(["d.png"], 90)
    editor.files.move_to_trash(["a.png"])
    for _ in range(5):
        editor.undo()
    assert captions(editor)["b.png"] == "dog" and (folder / "metadata.csv").read_bytes() == BAD


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"\x00\x01\x02", "expected filename and prompt"),
        (b"", r"\(none\)"),
        (b"x,y\n1,2\n", "columns x, y"),
        (b"filename,prompt\n" + b"a.png,x\n" * 200_001, "lines"),
        (b'filename,prompt\na.png,"open\n', "quotation mark"),
        (b"filename,prompt\n" + b"x" * 20_000_001, "larger than 20 MB"),
        (b"\xff\xfe\x00", "columns|expected"),
    ],
    ids=["binary", "empty", "columns", "lines", "quote", "bytes", "half utf-16"],
)
def test_whatever_is_wrong_with_it_it_goes_into_the_trash_and_comes_back(
    editor, folder, data, sentence
):
    (folder / "metadata.csv").write_bytes(data)
    [problem] = problems(editor)
    assert len(captions(editor)) == 3
    import re

    assert re.search(sentence, problem["reason"]), problem
    done = editor.tables.move_to_trash("metadata.csv")
    assert (
        done["label"] == "Delete metadata.csv"
        and done["files_changed"]
        and not problems(editor)
        and not (folder / "metadata.csv").exists()
    )
    editor.undo()
    assert (folder / "metadata.csv").read_bytes() == data and problems(editor)
    editor.redo()
    assert not problems(editor)


def test_it_is_replaced_by_a_good_one_and_the_old_one_comes_back(editor, folder):
    done = editor.tables.replace("metadata.csv", GOOD)
    assert (
        done["files_changed"]
        and captions(editor) == {"a.png": "cat, red", "b.png": "dog", "10_zib/c.png": "zib"}
        and not problems(editor)
    )
    editor.undo()
    assert (folder / "metadata.csv").read_bytes() == BAD and problems(editor)


def test_one_that_is_bad_itself_is_refused_with_its_lines(editor, folder):
    with pytest.raises(Refused, match="Line 3: has 3 fields") as caught:
        editor.tables.replace("metadata.csv", b"filename,prompt\na.png,x\nb.png,x, y\n")
    assert [line["line"] for line in caught.value.details["lines"]] == [3] and (
        folder / "metadata.csv"
    ).read_bytes() == BAD
    with pytest.raises(Refused, match="expected filename and prompt"):
        editor.tables.replace("metadata.csv", b"\x00")


def test_mending_goes_by_what_was_read(editor, folder):
    found = editor.tables.read("metadata.csv")
    assert found["text"] == BAD.decode() and [line["line"] for line in found["lines"]] == [2]
    (folder / "metadata.csv").write_bytes(BAD + b"c.png,new\n")
    with pytest.raises(Refused, match="changed meanwhile"):
        editor.tables.replace("metadata.csv", GOOD, version=found["version"])
    editor.tables.replace(
        "metadata.csv", GOOD, version=editor.tables.read("metadata.csv")["version"]
    )
    assert not problems(editor)


@pytest.mark.parametrize(
    "filename",
    ["a.png", "../metadata.csv", "metadata.jsonl", "/etc/passwd", "no/metadata.csv", "", "a\x00"],
)
def test_what_is_no_table_of_the_set_is_not_touched(editor, filename):
    for act in (
        lambda: editor.tables.read(filename),
        lambda: editor.tables.replace(filename, GOOD),
        lambda: editor.tables.move_to_trash(filename),
    ):
        with pytest.raises(Refused) as caught:
            act()
        assert caught.value.code == "not_found"


def test_a_table_that_is_a_link_out_of_the_set_is_not_shown(editor, folder, tmp_path):
    (tmp_path / "secret.csv").write_bytes(b"secret")
    (folder / "metadata.csv").unlink()
    (folder / "metadata.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(Refused, match="no caption table"):
        editor.tables.read("metadata.csv")


def test_a_table_in_a_subfolder_of_kohyas(editor, folder):
    (folder / "metadata.csv").unlink()
    (folder / "10_zib" / "metadata.jsonl").write_bytes(b'{"file_name": "c.png", "text": "x"}\n{')
    assert [row["filename"] for row in problems(editor)] == ["10_zib/metadata.jsonl"] and captions(
        editor
    )["10_zib/c.png"] == "x"
    editor.tables.move_to_trash("10_zib/metadata.jsonl")
    assert captions(editor)["10_zib/c.png"] == "zib"


def test_a_table_that_may_not_be_read_can_be_thrown_away(editor, folder, monkeypatch):
    import builtins
    from pathlib import Path

    real, read = builtins.open, Path.read_bytes

    def refuse(real):
        def opened(path, *arguments, **settings):
            if str(path).endswith("metadata.csv") or "metadata." in str(path):
                raise PermissionError(13, "Permission denied")
            return real(path, *arguments, **settings)

        return opened

    monkeypatch.setattr(builtins, "open", refuse(real))
    monkeypatch.setattr(Path, "read_bytes", refuse(read))
    assert "Permission denied" in problems(editor)[0]["reason"]
    editor.tables.move_to_trash("metadata.csv")
    assert not (folder / "metadata.csv").exists()
    editor.undo()
    monkeypatch.undo()
    assert (folder / "metadata.csv").read_bytes() == BAD


def test_a_folder_of_that_name_is_no_table(editor, folder):
    (folder / "metadata.csv").unlink()
    (folder / "metadata.csv").mkdir()
    assert not problems(editor) and len(captions(editor)) == 3


def test_training_is_refused_with_the_line(folder):
    with pytest.raises(Refused, match="Line 2 of the caption table metadata.csv"):
        caption_tables.find_table(folder)
