"""Steps that can be undone: texts, files that come, go and change places, another program in
between, and death at any instant.
"""

import os
import random
import signal
import time

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.editor.file_changes import Change
from lora_trainer.editor.undo_history import ChangedMeanwhile, History
from tests.support.histories import fork, text


def test_undo_and_redo_give_back_the_very_bytes(history, place):
    gbk = "一只猫\r\n".encode("gb18030")
    text(place, "a.txt", gbk)
    history.run("first", [Change("a.txt", gbk, b"new\n"), Change("b.txt", None, b"made\n")])
    assert (place / "a.txt").read_bytes() == b"new\n" and (
        place / "b.txt"
    ).read_bytes() == b"made\n"
    assert history.labels() == {"undo": "first", "redo": None}
    assert history.undo().paths == ["b.txt", "a.txt"]
    assert (
        (place / "a.txt").read_bytes() == gbk
        and not (place / "b.txt").exists()
        and history.labels() == {"undo": None, "redo": "first"}
    )
    history.redo()
    assert (place / "a.txt").read_bytes() == b"new\n" and (
        place / "b.txt"
    ).read_bytes() == b"made\n"


def test_steps_are_undone_newest_first_and_redone_oldest_first(history, place):
    text(place, "a.txt", b"0")
    for number in range(3):
        history.run(f"step {number}", [Change("a.txt", b"%d" % number, b"%d" % (number + 1))])
    assert [history.undo().label for _ in range(2)] == ["step 2", "step 1"] and (
        place / "a.txt"
    ).read_bytes() == b"1"
    assert [history.redo().label for _ in range(2)] == ["step 1", "step 2"] and (
        place / "a.txt"
    ).read_bytes() == b"3"


def test_a_new_step_ends_what_could_be_done_again(history, place):
    text(place, "a.txt")
    history.run("one", [Change("a.txt", b"old\n", b"one")])
    history.undo()
    history.run("two", [Change("a.txt", b"old\n", b"two")])
    assert history.labels() == {"undo": "two", "redo": None}
    with pytest.raises(Refused, match="nothing to do again"):
        history.redo()


def test_nothing_to_undo_and_an_empty_step_leaves_no_trace(history):
    history.run("nothing", [])
    with pytest.raises(Refused, match="nothing to undo"):
        history.undo()


def test_nothing_is_written_over_what_another_program_wrote(history, place):
    text(place, "a.txt")
    text(place, "b.txt")
    with pytest.raises(ChangedMeanwhile):
        history.run(
            "edit", [Change("b.txt", b"old\n", b"new"), Change("a.txt", b"something else", b"new")]
        )
    assert (place / "b.txt").read_bytes() == b"old\n" and history.labels()["undo"] is None
    history.run("edit", [Change("a.txt", b"old\n", b"new"), Change("b.txt", b"old\n", b"new")])
    (place / "a.txt").write_bytes(b"by another")
    with pytest.raises(ChangedMeanwhile) as caught:
        history.undo()
    assert caught.value.paths == ["a.txt"] and (place / "b.txt").read_bytes() == b"new"
    assert history.undo(if_changed="skip").skipped == ["a.txt"]
    assert (place / "a.txt").read_bytes() == b"by another" and (
        place / "b.txt"
    ).read_bytes() == b"old\n"


def test_undo_overwrites_when_told_to(history, place):
    text(place, "a.txt")
    history.run("edit", [Change("a.txt", b"old\n", b"new")])
    (place / "a.txt").write_bytes(b"by another")
    history.undo(if_changed="overwrite")
    assert (place / "a.txt").read_bytes() == b"old\n"
    with pytest.raises(Refused, match="expected refuse, skip or overwrite"):
        history.redo(if_changed="maybe")


def test_a_file_goes_to_the_trash_and_comes_back(history, place):
    (place / "a.png").write_bytes(b"picture")
    key = history.files.trash_name_of("a.png")
    history.run("delete", [Change("a.png", key, None)])
    assert (
        not (place / "a.png").exists()
        and (history.trash / key).read_bytes() == b"picture"
        and key.startswith("a.")
        and key.endswith(".png")
    )
    history.undo()
    assert (place / "a.png").read_bytes() == b"picture" and list(history.trash.iterdir()) == []


def test_a_file_that_took_the_place_of_a_deleted_one_is_not_lost(history, place):
    (place / "a.png").write_bytes(b"picture")
    history.run("delete", [Change("a.png", history.files.trash_name_of("a.png"), None)])
    (place / "a.png").write_bytes(b"another")
    with pytest.raises(ChangedMeanwhile):
        history.undo()
    history.undo(if_changed="overwrite")
    assert (place / "a.png").read_bytes() == b"picture" and [
        path.read_bytes() for path in history.trash.iterdir()
    ] == [b"another"]


def test_replaced_content_and_rename_change_places(history, place):
    (place / "a.png").write_bytes(b"upright")
    history.run(
        "rotate",
        [
            Change(
                "a.png",
                history.files.trash_name_of("a.png"),
                history.files.stage("a.png", b"turned"),
            )
        ],
    )
    key = history.files.trash_name_of("a.png")
    history.run("rename", [Change("a.png", key, None), Change("b.png", None, key)])
    assert (place / "b.png").read_bytes() == b"turned" and not (place / "a.png").exists()
    history.undo()
    history.undo()
    assert (place / "a.png").read_bytes() == b"upright" and not (place / "b.png").exists()
    history.redo()
    history.redo()
    assert (place / "b.png").read_bytes() == b"turned"


def test_what_an_undone_step_had_staged_goes_with_it(history, place):
    (place / "a.png").write_bytes(b"upright")
    history.run(
        "rotate",
        [
            Change(
                "a.png",
                history.files.trash_name_of("a.png"),
                history.files.stage("a.png", b"turned"),
            )
        ],
    )
    history.undo()
    assert [path.read_bytes() for path in history.trash.iterdir()] == [b"turned"]
    text(place, "a.txt")
    history.run("other", [Change("a.txt", b"old\n", b"new")])
    assert list(history.trash.iterdir()) == [] and (place / "a.png").read_bytes() == b"upright"


def test_a_step_done_bit_by_bit_is_one_step_and_marks_what_is_automatic(history, place):
    with history.step("captioner") as apply:
        apply([Change("a.txt", None, b"a cat\n")], automatic=True)
        apply([Change("b.txt", None, b"a dog\n")], automatic=True)
    assert {path for path, _ in history.automatic()} == {"a.txt", "b.txt"}
    assert sorted(history.undo().paths) == ["a.txt", "b.txt"] and list(place.iterdir()) == []


def test_a_failing_step_keeps_what_it_did_and_can_be_undone(history, place):
    with pytest.raises(RuntimeError), history.step("captioner") as apply:
        apply([Change("a.txt", None, b"a cat\n")])
        raise RuntimeError
    assert history.undo().paths == ["a.txt"]


# --- Others between a step and its undoing --------------------------------------------------------


def test_a_picture_that_another_program_saved_over_a_rotated_one_is_kept(history, place):
    (place / "a.png").write_bytes(b"upright")
    history.run(
        "rotate",
        [
            Change(
                "a.png",
                history.files.trash_name_of("a.png"),
                history.files.stage("a.png", b"turned"),
            )
        ],
    )
    (place / "a.png").write_bytes(b"by a person")
    with pytest.raises(ChangedMeanwhile):
        history.undo()
    assert (
        history.undo(if_changed="skip").skipped == ["a.png"]
        and (place / "a.png").read_bytes() == b"by a person"
    )
    history.redo(if_changed="overwrite")
    history.undo(if_changed="overwrite")
    text(place, "b.txt")
    history.run("ends what can be done again", [Change("b.txt", b"old\n", b"new")])
    assert (place / "a.png").read_bytes() == b"upright"
    assert b"by a person" in [path.read_bytes() for path in history.trash.iterdir()]


@pytest.mark.parametrize("with_caption", [True, False])
def test_a_picture_that_took_the_old_name_is_not_swallowed_by_undoing_a_rename(
    history, place, with_caption
):
    (place / "a.png").write_bytes(b"first")
    text(place, "a.txt", b"of the first")
    key = history.files.trash_name_of("a.png")
    changes = [
        Change("a.png", key, None, "a"),
        Change("b.png", None, key, "a"),
        Change("a.txt", b"of the first", None, "a"),
        Change("b.txt", None, b"of the first", "a"),
    ]
    history.run("rename", changes)
    (place / "a.png").write_bytes(b"second")
    if with_caption:
        text(place, "a.txt", b"of the second")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(ChangedMeanwhile):
        history.undo()
    assert history.undo(if_changed="skip").paths == []
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_what_undo_overwrites_lies_in_the_trash(history, place):
    text(place, "a.txt")
    history.run("edit", [Change("a.txt", b"old\n", b"new")])
    (place / "a.txt").write_bytes(b"by another")
    history.undo(if_changed="overwrite")
    assert (place / "a.txt").read_bytes() == b"old\n" and [
        path.read_bytes() for path in history.trash.iterdir()
    ] == [b"by another"]


def test_an_emptied_trash_is_said_and_does_not_block_what_was_before(history, place):
    text(place, "a.txt")
    (place / "a.png").write_bytes(b"picture")
    history.run("edit", [Change("a.txt", b"old\n", b"new")])
    history.run(
        "delete",
        [
            Change("a.png", history.files.trash_name_of("a.png"), None, "a"),
            Change("a.txt", b"new", None, "a"),
        ],
    )
    for path in history.trash.iterdir():
        path.unlink()
    with pytest.raises(ChangedMeanwhile, match="Not in the trash folder any more: a.png"):
        history.undo()
    assert history.undo(if_changed="skip").paths == [] and not (place / "a.txt").exists()
    assert (
        history.undo(if_changed="overwrite").paths == ["a.txt"]
        and (place / "a.txt").read_bytes() == b"old\n"
    )


def test_a_captioner_at_work_and_a_person_do_not_get_in_each_others_way(history, place):
    """The captioner's step began first: the person's later edit is undone first, and what a person
    can do again stays.
    """
    for name in "ab":
        text(place, f"{name}.txt")
    with history.step("captioner") as apply:
        apply([Change("a.txt", b"old\n", b"auto a")])
        history.run("person a", [Change("a.txt", b"auto a", b"by hand")])
        history.run("person b", [Change("b.txt", b"old\n", b"thrown away")])
        history.undo()
        apply([Change("b.txt", b"old\n", b"auto b")])
    assert history.labels() == {"undo": "person a", "redo": "person b"}
    assert [history.undo().label for _ in range(2)] == ["person a", "captioner"]
    assert {(place / f"{name}.txt").read_bytes() for name in "ab"} == {b"old\n"}


# --- Death at any instant -------------------------------------------------------------------------

FILES = 200


def in_a_child(work, seconds):
    """Run `work` in a process of its own and kill it after some seconds; returns whether it was
    killed before its end.
    """
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def time_of(work, home, place):
    """Let a child do all of `work`, undo it, and return how long the work took, in seconds."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    elapsed = time.monotonic() - began
    history = History(place, home)
    history.undo()
    history.close()
    return elapsed


@fork
def test_killed_in_the_middle_of_a_bulk_edit(place, tmp_path):
    """Each file holds the old text or the new one, whole; the next start completes the step, and
    undo takes all of it back.
    """
    old = {f"{number:03}.txt": b"zib, number %d\n" % number for number in range(FILES)}
    new = {name: b"best quality, " + content for name, content in old.items()}
    for name, content in old.items():
        text(place, name, content)
    (place / ".notes.tmp").write_bytes(b"not ours")
    draws, halfway, kills = random.Random(20), 0, 0

    def work():
        History(place, tmp_path / "home").run(
            "bulk", [Change(name, old[name], new[name]) for name in old]
        )

    earliest, latest = 0.005, time_of(work, tmp_path / "home", place)
    while kills < 12 or (halfway < 2 and kills < 60):
        kills += 1
        seconds = draws.uniform(earliest, latest)
        in_a_child(work, seconds)
        found = {name: (place / name).read_bytes() for name in old}
        assert all(found[name] in (old[name], new[name]) for name in old)
        written = sum(found[name] == new[name] for name in old)
        if 0 < written < FILES:
            halfway += 1
        elif kills >= 12 and written:  # how long a disk takes is not for a test to know
            latest = (latest + seconds) / 2
        elif kills >= 12:
            earliest = min((earliest + seconds) / 2, 0.9 * latest)
        history = History(place, tmp_path / "home")
        found = {name: (place / name).read_bytes() for name in old}
        if history.labels()["undo"]:
            assert found == new
            history.undo()
        assert {name: (place / name).read_bytes() for name in old} == old
        assert {path.name for path in place.iterdir()} == {*old, ".notes.tmp"}
        history.close()
    assert halfway >= 2, f"only {halfway} of {kills} kills met the writing: the test shows nothing"


@fork
def test_killed_in_the_middle_of_undo(place, tmp_path):
    names = [f"{number:03}.txt" for number in range(200)]
    for name in names:
        text(place, name)
    history = History(place, tmp_path / "home")
    history.run("bulk", [Change(name, b"old\n", b"new\n") for name in names])
    history.close()
    draws = random.Random(5)
    for _ in range(5):
        in_a_child(lambda: History(place, tmp_path / "home").undo(), draws.uniform(0.005, 0.15))
        history = History(place, tmp_path / "home")
        contents = {(place / name).read_bytes() for name in names}
        assert contents == ({b"new\n"} if history.labels()["undo"] else {b"old\n"})
        if history.labels()["redo"]:
            history.redo()
        history.close()


def test_recovery_does_not_bring_back_what_a_person_took_back(place, tmp_path, monkeypatch):
    text(place, "a.txt")
    history = History(place, tmp_path / "home")
    monkeypatch.setattr(
        History, "_finish", lambda self, step: None
    )  # the captioner's process dies before its end
    with history.step("captioner") as apply:
        apply([Change("a.txt", b"old\n", b"auto")])
    monkeypatch.undo()
    history.run("person", [Change("a.txt", b"auto", b"old\n")])
    history.close()
    again = History(place, tmp_path / "home")
    assert (place / "a.txt").read_bytes() == b"old\n" and again.undo().label == "person"
    again.close()


@pytest.mark.parametrize("dies_after", range(6))
def test_killed_between_the_moves_of_files(place, tmp_path, monkeypatch, dies_after):
    """A rename, a rotation and a deletion in one step, cut after each single move: the next start
    completes it, undo takes it back.
    """
    from lora_trainer.editor import file_changes as module

    for name in "rgt":
        (place / f"{name}.png").write_bytes(name.encode())
    history = History(place, tmp_path / "home")
    key = history.files.trash_name_of("r.png")
    changes = [
        Change("r.png", key, None),
        Change("new.png", None, key),
        Change(
            "t.png", history.files.trash_name_of("t.png"), history.files.stage("t.png", b"turned")
        ),
        Change("g.png", history.files.trash_name_of("g.png"), None),
    ]
    left = [dies_after]

    class Died(BaseException):
        pass

    def guarded(real):
        def move(source, target):
            if not left[0]:
                raise Died
            left[0] -= 1
            real(source, target)

        return move

    for name in ("_move_file", "_copy_file"):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))
    monkeypatch.setattr(
        History, "_finish", lambda self, step: None
    )  # a dead process finishes nothing
    try:
        history.run("all", changes)
    except Died:
        pass
    monkeypatch.undo()
    history.close()
    again = History(place, tmp_path / "home")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        "new.png": b"r",
        "t.png": b"turned",
    }
    again.undo()
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        "r.png": b"r",
        "g.png": b"g",
        "t.png": b"t",
    }
    again.close()


# --- Many at once ---------------------------------------------------------------------------------


def test_undo_of_many_grows_with_them_and_no_faster(place, tmp_path):
    """Marking what is to be written once looked through the whole step for each file: 16 times the
    work for 4 times the files.
    """
    steps = []
    for count in (250, 1000):
        history = History(place, tmp_path / f"home {count}")
        names = [text(place, f"{count} {number}.txt") for number in range(count)]
        history.run("edit", [Change(name, b"old\n", b"new") for name in names])
        steps.append(0)

        def count_up(steps=steps):
            steps[-1] += 1

        history._database._connection.set_progress_handler(
            count_up, 100
        )  # called each 100 instructions of SQLite's machine
        history.undo()
        history.close()
    assert steps[1] < 8 * steps[0]


@fork
def test_killed_after_the_last_file_was_written_nothing_stays_behind(place, tmp_path):
    """All files are new then, and what they were prepared in is still there."""
    from lora_trainer.base import files

    names = [text(place, f"{number}.txt") for number in range(3)]

    def work():
        files.shutil.rmtree = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)
        History(place, tmp_path / "home").run(
            "edit", [Change(name, b"old\n", b"new") for name in names]
        )

    assert in_a_child(work, 5)
    assert list(place.glob(".*.tmp")) and {(place / name).read_bytes() for name in names} == {
        b"new"
    }
    history = History(place, tmp_path / "home")
    assert (
        sorted(path.name for path in place.iterdir()) == names
        and history.labels()["undo"] == "edit"
    )
    history.close()
