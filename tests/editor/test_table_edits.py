"""Caption tables imported into a data set and exported from it."""

import pytest

from lora_trainer.base.errors import Refused
from tests.support.edited_sets import captions, picture, rows


def test_tables_are_previewed_imported_and_exported(editor):
    table = (
        'filename,prompt\nC:\\x\\a.png,"from, the table"\nb.png,dog\nno.png,x\n../b.png,y\n猫'
        " c.png,黑猫\n".encode("gb18030")
    )
    plan = editor.tables.import_captions("metadata.csv", table)
    assert (
        plan["encoding"] == "gb18030"
        and plan["rows"] == 5
        and plan["unchanged"] == 1
        and [problem["line"] for problem in plan["problems"]] == [4, 5]
    )
    assert plan["changes"][0] == {
        "line": 2,
        "filename": "a.png",
        "before": "zib, cat",
        "after": "from, the table",
        "version": rows(editor)["a.png"]["version"],
    }
    assert captions(editor)["a.png"] == "zib, cat"
    done = editor.tables.import_captions(
        "metadata.csv",
        table,
        apply=True,
        versions={change["filename"]: change["version"] for change in plan["changes"]},
    )
    assert (
        captions(editor) == {"a.png": "from, the table", "b.png": "dog", "猫 c.png": "黑猫"}
        and done["history"]["undo"] == "Captions from metadata.csv"
    )
    for format in ("csv", "jsonl"):
        again = editor.tables.import_captions(
            f"metadata.{format}", editor.tables.export_captions(format)
        )
        assert again["changes"] == again["problems"] == [] and again["unchanged"] == 3
    editor.undo()
    assert captions(editor) == {"a.png": "zib, cat", "b.png": "dog", "猫 c.png": ""}
    with pytest.raises(Refused, match="expected csv or jsonl"):
        editor.tables.export_captions("xlsx")


def test_the_names_of_pictures_tell_the_encoding_of_a_table(editor, folder):
    picture(folder / "猫 和 狗.png")
    table = 'filename,prompt\n猫 和 狗.png,"狗, 猫"\n'.encode("gb18030")
    assert editor.tables.import_captions("m.csv", table)["changes"][0]["after"] == "狗, 猫"


def test_an_empty_cell_empties_no_caption(editor):
    report = editor.tables.import_captions(
        "m.csv", b"filename,prompt\na.png,\nb.png,cow\n", apply=True
    )
    assert (
        captions(editor)["a.png"] == "zib, cat"
        and captions(editor)["b.png"] == "cow"
        and report["problems"][0]["line"] == 2
    )
