"""One look at a data set's folders; what is read again and what is not; and that the work of an
edit goes by what it changes.
"""

import os
import time

import pytest
from PIL import Image

from lora_trainer.bench_dataset import make_pictures
from lora_trainer.editor import dataset_reader as reader_module
from lora_trainer.editor import file_cache
from lora_trainer.editor.checks import CheckSettings
from lora_trainer.editor.editor import DataSetEditor
from lora_trainer.editor.folder_listing import list_folder


@pytest.fixture
def folder(tmp_path):
    make_pictures(tmp_path / "set", 40)
    for path in (tmp_path / "set").iterdir():
        os.utime(path, (1e9, 1e9))
    return tmp_path / "set"


@pytest.fixture
def editor(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(file_cache, "SETTLED_NS", -1)  # the stamps' clock counts as fine enough
    opened = DataSetEditor("set", folder, tmp_path / "home")
    yield opened
    opened.close()


def counted(monkeypatch, module, name):
    """Count the calls of a function."""
    calls, real = [], getattr(module, name)

    def call(*arguments, **settings):
        calls.append(arguments)
        return real(*arguments, **settings)

    monkeypatch.setattr(module, name, call)
    return calls


def names(editor):
    return [row["filename"] for row in editor.describe()["pictures"]]


def test_what_has_not_changed_is_not_read_again(editor, folder, monkeypatch):
    editor.describe()
    examined, contents = (
        counted(monkeypatch, reader_module, "examine"),
        counted(monkeypatch, reader_module, "read_small_file"),
    )
    before = editor.describe()
    assert not examined and not contents
    (folder / "picture 00003.txt").write_text("by another program", encoding="utf-8")
    after = editor.describe()
    assert len(examined) == len(contents) == 1 and after["revision"] != before["revision"]
    assert [
        row["caption"] for row in after["pictures"] if row["filename"] == "picture 00003.png"
    ] == ["by another program"]


@pytest.mark.parametrize("change", ["content", "gone", "table", "second file", "class words"])
def test_whatever_decides_a_caption_is_noticed(editor, folder, change):
    first = folder / "picture 00000.txt"
    before = editor.captions()["picture 00000.png"]
    editor.describe()
    if change == "content":  # of the same length and time: the inode's own time tells
        stat = first.stat()
        first.write_text(before.upper() + "\n", encoding="utf-8")
        os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert editor.captions()["picture 00000.png"] == before.upper()
    elif change == "gone":
        first.unlink()
        assert editor.captions()["picture 00000.png"] == ""
        first.write_text("back", encoding="utf-8")
        assert editor.captions()["picture 00000.png"] == "back"
        first.unlink()
        assert (
            editor.captions()["picture 00000.png"] == ""
            and editor.describe()["pictures"][0]["version"] == ""
        )
    elif change == "table":
        first.unlink()
        for text in ("one", "two"):
            (folder / "metadata.csv").write_text(
                f"filename,prompt\npicture 00000.png,{text}\n", encoding="utf-8"
            )
            assert editor.captions()["picture 00000.png"] == text
    elif change == "second file":
        first.unlink()
        first.with_suffix(".caption").write_text("kohya's", encoding="utf-8")
        assert editor.captions()["picture 00000.png"] == "kohya's"
    else:
        (folder / "5_red cat").mkdir()
        Image.new("RGB", (64, 64)).save(folder / "5_red cat" / "z.png")
        assert editor.captions()["5_red cat/z.png"] == "red cat"


def test_a_file_that_changed_just_now_is_read_again(folder, tmp_path):
    """It may be written once more within the same tick of the clock, and look the same."""
    editor = DataSetEditor("set", folder, tmp_path / "home")
    path = folder / "picture 00000.txt"
    for text in ("one", "two"):
        path.write_text(text, encoding="utf-8")
        stamp = file_cache.stamp_of(path.stat())
        files = ((path.name, stamp),)
        remembered = editor._dataset.reader._versions
        assert remembered.get(path.name, files, lambda: path.read_text(encoding="utf-8")) == text
        path.write_text(text.upper(), encoding="utf-8")
        assert (
            remembered.get(path.name, files, lambda: path.read_text(encoding="utf-8"))
            == text.upper()
        )
    editor.close()


@pytest.mark.parametrize(
    "act",
    [
        lambda editor, names: editor.set_captions({names[0]: "one"}),
        lambda editor, names: editor.files.rename(names[0], "new"),
        lambda editor, names: editor.files.move_to_trash(names[:10]),
        lambda editor, names: editor.files.rotate(names[:2], 90),
        lambda editor, names: editor.undo(),
    ],
)
def test_an_edit_looks_at_the_folders_once_and_reads_its_own_files_only(editor, monkeypatch, act):
    found = names(editor)
    editor.set_captions({found[20]: "to be undone"})
    looks, contents = (
        counted(monkeypatch, reader_module, "list_folder"),
        counted(monkeypatch, reader_module, "read_small_file"),
    )
    act(editor, found)
    assert len(looks) == 1 and len(contents) <= 2 * 10


def test_deleting_many_does_not_look_once_for_each(editor, folder, monkeypatch):
    found = names(editor)
    scans = counted(monkeypatch, os, "scandir")
    editor.files.move_to_trash(found)
    assert len(scans) < 10 and not names(editor)
    editor.undo()
    assert names(editor) == found


def test_the_revision_after_an_edit_is_that_of_a_new_look(editor, folder):
    found = names(editor)
    for act in (
        lambda: editor.set_captions({found[0]: "one"}),
        lambda: editor.files.move_to_trash(found[:3]),
        lambda: editor.files.rename(found[5], "new"),
        editor.undo,
        editor.undo,
    ):
        assert act()["revision"] == editor.revision()
    assert list_folder(folder).pictures.keys() == set(found)


def test_damage_that_a_look_finds_later_is_taken_over(editor, folder):
    path = folder / "picture 00001.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert path.name in names(editor)
    deadline = time.monotonic() + 60
    while not editor.pictures.check(CheckSettings())["ready"] or path.name in names(editor):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [problem["filename"] for problem in editor.describe()["problems"]] == [path.name]


def test_links_to_themselves_and_pipes_cost_only_themselves(editor, folder):
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    (folder / "3_loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.txt")
    assert len(names(editor)) == 40 and {
        row["filename"] for row in editor.describe()["problems"]
    } == {"loop.png", "pipe.png"}
    assert editor.pictures.check(CheckSettings())["total"] == 40 and editor.state()


def test_checks_and_openings_ask_for_no_lock_of_the_editor(editor):
    """Whoever looks does not wait for a step that takes its time."""
    import threading

    with editor._dataset.lock:
        looking = threading.Thread(
            target=lambda: (
                editor.describe(),
                editor.pictures.check(CheckSettings()),
                editor.state(),
            )
        )
        looking.start()
        looking.join(30)
        assert not looking.is_alive()
