"""The database of an undo history: it outlives a restart and is put aside when it is broken."""

import os
import sqlite3
import sys

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.editor.file_changes import Change, FileChanger
from lora_trainer.editor.undo_history import MOST_STEPS, History
from tests.support.histories import fork, text


def test_old_steps_are_forgotten_and_the_trash_is_not(history, place, monkeypatch):
    monkeypatch.setattr("lora_trainer.editor.undo_history.MOST_STEPS", 2)
    (place / "a.png").write_bytes(b"picture")
    history.run("delete", [Change("a.png", history.files.trash_name_of("a.png"), None)])
    for number in range(3):
        history.run(f"{number}", [Change(f"{number}.txt", None, b"x")])
    assert [history.undo().label for _ in range(2)] == ["2", "1"]
    with pytest.raises(Refused):
        history.undo()
    assert len(list(history.trash.iterdir())) == 1 and MOST_STEPS >= 100


def test_the_history_survives_a_restart(history, place, tmp_path):
    text(place, "a.txt")
    history.run("edit", [Change("a.txt", b"old\n", b"new")])
    again = History(place, tmp_path / "home")
    again.undo()
    again.close()
    assert (place / "a.txt").read_bytes() == b"old\n"


@fork
def test_another_process_does_not_complete_what_is_going_on(place, tmp_path):
    history = History(place, tmp_path / "home")
    with history.step("captioner") as apply:
        apply([Change("a.txt", None, b"auto")])
        pid = os.fork()
        if pid == 0:
            other = History(place, tmp_path / "home")
            os._exit(0 if other.labels()["undo"] is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        apply([Change("b.txt", None, b"auto")])
    assert sorted(history.undo().paths) == ["a.txt", "b.txt"]
    history.close()


def test_the_step_is_on_disk_before_the_first_file(place, tmp_path, monkeypatch):
    """Otherwise nothing could be completed or undone after a crash."""
    history = History(place, tmp_path / "home")
    seen = []

    def write(self, changes, **_):
        with sqlite3.connect(tmp_path / "home" / "history.sqlite3") as other:
            seen.extend(other.execute("select path, after from changes").fetchall())
        other.close()
        return []

    monkeypatch.setattr(FileChanger, "apply", write)
    history.run("edit", [Change("a.txt", None, b"new")])
    history.close()
    assert seen == [("a.txt", b"new")] and sys.version_info >= (3, 10)


def test_a_broken_database_is_put_aside(place, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "history.sqlite3").write_bytes(b"no database " * 100)
    history = History(place, tmp_path / "home")
    history.run("edit", [Change("a.txt", None, b"new")])
    history.close()
    assert [path.read_bytes()[:11] for path in (tmp_path / "home").glob("history-broken-*")] == [
        b"no database"
    ]
