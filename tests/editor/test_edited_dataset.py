"""What an edit reports: the revision, what others changed meanwhile, what undo left alone."""

import pytest

from lora_trainer.base.errors import Refused
from tests.support.edited_sets import picture


def test_the_revision_tells_what_others_changed(editor, folder):
    seen = [editor.revision()]
    for act in (
        lambda: (folder / "a.txt").write_text("x", encoding="utf-8"),
        lambda: picture(folder / "d.png"),
        lambda: (folder / "d.png").unlink(),
        lambda: editor.set_captions({"b.png": "y"}),
    ):
        act()
        seen.append(editor.revision())
    assert len(set(seen)) == len(seen) - 1 or len(set(seen)) == len(
        seen
    )  # adding and removing may lead back to the same
    assert editor.state()["revision"] == seen[-1] and seen[0] != seen[1] != seen[2]


def test_an_edit_tells_whether_somebody_else_edited_before(editor, folder):
    held = editor.revision()
    first = editor.set_captions({"a.png": "one"})
    assert first["revision_before"] == held and first["revision"] == editor.revision() != held
    (folder / "b.txt").write_text("outside", encoding="utf-8")
    assert editor.set_captions({"a.png": "two"})["revision_before"] != first["revision"]
    assert editor.undo()["revision_before"] not in (held, first["revision"])


@pytest.mark.parametrize(
    "act", [lambda editor: editor.set_captions({"a.png": "one"}), lambda editor: editor.undo()]
)
def test_what_another_program_does_right_after_an_edit_shows_as_a_difference(
    editor, folder, monkeypatch, act
):
    from lora_trainer.editor.file_changes import FileChanger

    editor.set_captions({"a.png": "before"})
    real = FileChanger.apply

    def write(self, *arguments, **settings):
        skipped = real(self, *arguments, **settings)
        (folder / "b.txt").unlink()
        return skipped

    monkeypatch.setattr(FileChanger, "apply", write)
    assert act(editor)["revision"] != editor.revision()


def test_a_folder_that_is_gone_is_said_so(editor, folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    for act in (editor.describe, editor.state, lambda: editor.bulk_edit("sort", {})):
        with pytest.raises(Refused, match="cannot be read|does not exist"):
            act()


def test_what_undo_left_alone_is_named(editor, folder):
    editor.bulk_edit("append", {"text": "x"})
    (folder / "b.txt").write_text("outside", encoding="utf-8")
    done = editor.undo(if_changed="skip")
    assert done["skipped"] == ["b.png"] and set(done["captions"]) == {"a.png", "猫 c.png"}
