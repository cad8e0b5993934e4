"""One data set on the page: captions one by one and many at once, and what other programs do
meanwhile.
"""

import os

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.dataset.captions import read_caption
from lora_trainer.editor.checks import CheckSettings
from tests.support.edited_sets import captions, picture, rows

# --- One caption ----------------------------------------------------------------------------------


def test_a_caption_is_saved_undone_and_done_again(editor, folder):
    before = rows(editor)["a.png"]["version"]
    done = editor.set_captions({"a.png": "  new \r\n\n caption "}, versions={"a.png": before})
    assert (folder / "a.txt").read_text(encoding="utf-8") == "new\ncaption\n" and done["captions"][
        "a.png"
    ]["caption"] == "new\ncaption"
    assert (
        done["captions"]["a.png"]["version"] == rows(editor)["a.png"]["version"] != before
        and done["history"]["undo"] == "Caption of a.png"
    )
    undone = editor.undo()
    assert (folder / "a.txt").read_bytes() == b"zib, cat" and undone["captions"]["a.png"] == {
        "caption": "zib, cat",
        "version": before,
        "automatic": False,
    }
    assert editor.redo()["captions"]["a.png"]["caption"] == "new\ncaption"


def test_a_stale_version_writes_nothing_and_says_what_is_there(editor, folder):
    seen = {name: row["version"] for name, row in rows(editor).items()}
    (folder / "a.txt").write_text("by another program", encoding="utf-8")
    with pytest.raises(Refused) as caught:
        editor.set_captions({"b.png": "x", "a.png": "y"}, versions=seen)
    assert caught.value.code == "changed_meanwhile" and caught.value.details["conflicts"] == [
        {
            "filename": "a.png",
            "caption": "by another program",
            "version": rows(editor)["a.png"]["version"],
        }
    ]
    assert (
        captions(editor) == {"a.png": "by another program", "b.png": "dog", "猫 c.png": ""}
        and editor.describe()["history"]["undo"] is None
    )
    editor.set_captions({"a.png": "mine"})  # the user said: keep mine
    assert (
        captions(editor)["a.png"] == "mine"
        and editor.undo()["captions"]["a.png"]["caption"] == "by another program"
    )


def test_a_caption_file_that_came_meanwhile_counts_as_changed(editor, folder):
    (folder / "猫 c.txt").write_text("now there", encoding="utf-8")
    with pytest.raises(Refused, match="Changed meanwhile"):
        editor.set_captions({"猫 c.png": "x"}, versions={"猫 c.png": ""})


def test_an_emptied_caption_stays_empty_though_a_table_has_one(editor, folder):
    (folder / "metadata.csv").write_text(
        "filename,prompt\n猫 c.png,from the table\n", encoding="utf-8"
    )
    assert (
        captions(editor)["猫 c.png"] == "from the table"
        and rows(editor)["猫 c.png"]["version"] == ""
    )
    editor.set_captions({"猫 c.png": ""})
    assert captions(editor)["猫 c.png"] == ""
    assert editor.undo()["captions"]["猫 c.png"]["caption"] == "from the table"


@pytest.mark.parametrize(
    "filename",
    ["../x.png", "/etc/passwd", "no.png", "a.txt", "sub/../a.png", ".hidden.png", "out.png"],
)
def test_what_is_no_picture_of_the_set_is_not_written(editor, folder, tmp_path, filename):
    picture(tmp_path / "x.png")
    picture(folder / ".hidden.png")
    os.symlink(tmp_path / "x.png", folder / "out.png")
    for act in (
        lambda: editor.set_captions({"a.png": "new", filename: "x"}),
        lambda: editor.files.move_to_trash(["a.png", filename]),
        lambda: editor.files.rotate([filename], 90),
        lambda: editor.files.rename(filename, "y"),
        lambda: editor.pictures.preview(filename),
        lambda: editor.pictures.training_crop(filename, CheckSettings()),
        lambda: editor.pictures.thumbnail(filename),
    ):
        with pytest.raises(Refused) as caught:
            act()
        assert caught.value.code == "not_found"
    assert (
        captions(editor)["a.png"] == "zib, cat"
        and not (tmp_path / "x.txt").exists()
        and "out.png" not in rows(editor)
    )
    assert "leads out" in editor.describe()["problems"][0]["reason"]


def test_a_caption_that_is_a_link_out_of_the_folder_is_not_followed(editor, folder, tmp_path):
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    os.symlink(tmp_path / "secret.txt", folder / "猫 c.txt")
    editor.set_captions({"猫 c.png": "mine"})
    assert (tmp_path / "secret.txt").read_text(encoding="utf-8") == "secret" and captions(editor)[
        "猫 c.png"
    ] == "mine"


def test_html_is_text(editor):
    nasty = '<img src=x onerror=alert(1)>, "quoted", &amp;'
    editor.set_captions({"a.png": nasty})
    assert captions(editor)["a.png"] == nasty


# --- Many captions --------------------------------------------------------------------------------


def test_bulk_edit_is_previewed_done_and_undone_as_one_step(editor, folder):
    plan = editor.bulk_edit("prepend", {"text": "best"}, preview=True)
    assert plan["count"] == 3 and plan["changes"][0] == {
        "filename": "a.png",
        "before": "zib, cat",
        "after": "best, zib, cat",
        "version": rows(editor)["a.png"]["version"],
    }
    assert captions(editor)["a.png"] == "zib, cat" and editor.describe()["history"]["undo"] is None
    done = editor.bulk_edit(
        "prepend",
        {"text": "best"},
        versions={change["filename"]: change["version"] for change in plan["changes"]},
    )
    assert done["count"] == 3 and done["label"] == "Put best in front (3 captions)"
    assert captions(editor) == {"a.png": "best, zib, cat", "b.png": "best, dog", "猫 c.png": "best"}
    editor.undo()
    assert (
        captions(editor) == {"a.png": "zib, cat", "b.png": "dog", "猫 c.png": ""}
        and not (folder / "猫 c.txt").exists()
    )


def test_bulk_edit_of_some_and_with_stale_versions(editor, folder):
    editor.bulk_edit("append", {"text": "x"}, filenames=["b.png"])
    assert captions(editor) == {"a.png": "zib, cat", "b.png": "dog, x", "猫 c.png": ""}
    with pytest.raises(Refused, match="Changed meanwhile"):
        editor.bulk_edit("append", {"text": "y"}, versions={"b.png": "stale"})
    with pytest.raises(Refused, match="no picture 'z.png'"):
        editor.bulk_edit("sort", {}, filenames=["z.png"])
    assert (
        editor.bulk_edit("remove_tag", {"tag": "nothing"})["count"] == 0
        and editor.describe()["history"]["undo"] == "Add x at the end (1 caption)"
    )


def test_two_pictures_of_one_caption_file(editor, folder):
    picture(folder / "a.jpg")
    editor.bulk_edit("append", {"text": "x"})
    assert (folder / "a.txt").read_text(encoding="utf-8") == "zib, cat, x\n"
    editor.files.move_to_trash(["a.jpg"])
    assert captions(editor)["a.png"] == "zib, cat, x"
    editor.undo()
    editor.undo()
    assert (folder / "a.txt").read_text(encoding="utf-8") == "zib, cat"


def test_a_captioner_keeps_what_a_person_wrote(editor):
    with editor.captioning("Automatic") as write:
        assert write({"a.png": "auto", "猫 c.png": "auto"}) == ["猫 c.png"]
    assert rows(editor)["猫 c.png"]["automatic"] and captions(editor)["a.png"] == "zib, cat"
    editor.set_captions({"猫 c.png": "changed by a person"})
    with editor.captioning("Automatic") as write:
        assert write({"猫 c.png": "again"}) == []
        assert write({"猫 c.png": "again", "b.png": "again"}, keep_manual=False) == [
            "猫 c.png",
            "b.png",
        ]
    with editor.captioning("Automatic") as write:
        assert write({"b.png": "better"}) == ["b.png"]
    assert captions(editor) == {"a.png": "zib, cat", "b.png": "better", "猫 c.png": "again"}
    for expected in ("again", "dog"):
        editor.undo()
        assert captions(editor)["b.png"] == expected
    assert captions(editor)["猫 c.png"] == "changed by a person"


def test_kohya_folders(editor, folder):
    picture(folder / "10_red cat" / "a.png")
    assert (
        rows(editor)["10_red cat/a.png"]["caption"] == "red cat"
        and rows(editor)["10_red cat/a.png"]["repeats"] == 10
    )
    editor.set_captions({"10_red cat/a.png": "mine"})
    assert (
        read_caption(folder / "10_red cat" / "a.png") == "mine"
        and captions(editor)["a.png"] == "zib, cat"
    )
    editor.files.rename("10_red cat/a.png", "z")
    editor.files.move_to_trash(["10_red cat/z.png"])
    editor.undo()
    assert captions(editor)["10_red cat/z.png"] == "mine"


def test_a_bulk_edit_does_not_take_a_change_of_the_moment_for_its_own(editor, folder, monkeypatch):
    from lora_trainer.editor import editor as module

    real = module.plan_edit

    def plan(*arguments, **settings):
        (folder / "b.txt").write_text("saved just now", encoding="utf-8")
        return real(*arguments, **settings)

    monkeypatch.setattr(module, "plan_edit", plan)
    with pytest.raises(Refused, match="Changed meanwhile"):
        editor.bulk_edit("append", {"text": "x"})
    assert captions(editor) == {"a.png": "zib, cat", "b.png": "saved just now", "猫 c.png": ""}


def test_an_ending_in_capitals_counts(editor, folder):
    picture(folder / "a.JPG")
    editor.files.move_to_trash(["a.png"])
    assert captions(editor)["a.JPG"] == "zib, cat"


def test_a_captioner_goes_on_when_a_picture_went_away(editor, folder):
    (folder / "b.png").unlink()
    with editor.captioning("Automatic") as write:
        assert write({"b.png": "auto", "猫 c.png": "auto"}) == ["猫 c.png"]


def test_a_linked_kohya_folder_gets_nothing(editor, folder, tmp_path):
    picture(tmp_path / "outside" / "s.png")
    (tmp_path / "outside" / "s.txt").write_text("secret", encoding="utf-8")
    os.symlink(tmp_path / "outside", folder / "10_cat")
    assert "10_cat/s.png" not in captions(
        editor
    ) and b"secret" not in editor.tables.export_captions("csv")
    editor.bulk_edit("append", {"text": "x"})
    assert (tmp_path / "outside" / "s.txt").read_text(encoding="utf-8") == "secret"


def test_two_pictures_of_one_caption_file_cannot_get_two_captions(editor, folder):
    picture(folder / "a.jpg")
    with pytest.raises(Refused, match="shares its caption file a.txt"):
        editor.set_captions({"a.png": "one", "a.jpg": "two"})
    report = editor.tables.import_captions(
        "m.csv", b"filename,prompt\na.png,one\na.jpg,two\n", apply=True
    )
    assert [problem["line"] for problem in report["problems"]] == [3] and captions(editor)[
        "a.jpg"
    ] == "one"
