"""The table of jobs: databases of older versions are taken over."""

import sqlite3

import pytest

from lora_trainer.jobs.job import JobKind
from lora_trainer.jobs.store import JobStore


def test_a_full_disk_says_so_and_the_next_change_works(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite3")
    job_id = store.add("zib", {})
    pages = store._database.execute("pragma page_count").fetchone()[0]
    store._database.execute(f"pragma max_page_count = {pages}")  # as on a disk that is full
    with pytest.raises(sqlite3.OperationalError, match="disk is full"):
        store.add("zob", {"trigger_word": "z" * 100_000})
    store.update(job_id, state="finished")
    assert [(job.name, job.state) for job in store.newest()] == [("zib", "finished")]


OLD_TABLE = """create table jobs (
    id integer primary key autoincrement, name text not null, state text not null, created_at real not null, finished_at real,
    config text not null, progress text not null default '{}', message text not null default '', error text,
    output_file text, lora_tag text)"""  # noqa: E501


def test_a_database_of_before_there_were_kinds(tmp_path):
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as old:
        old.execute(OLD_TABLE)
        old.execute(
            "insert into jobs (name, state, created_at, config) values ('zib', 'finished', 1.0,"
            " '{}'), ('zob', 'training', 2.0, '{}')"
        )
    old.close()
    for _ in range(2):
        store = JobStore(tmp_path / "jobs.sqlite3")
        assert [(job.name, job.kind) for job in store.newest()] == [
            ("zob", "training"),
            ("zib", "training"),
        ]
        store.close()
    store = JobStore(tmp_path / "jobs.sqlite3")
    job_id = store.add("set", {"captioner": "fixed"}, kind="captioning")
    store.update(job_id, state="captioning", progress={"done": 3})
    assert store.get(job_id).kind == "captioning" and store.get(job_id).progress["done"] == 3
    assert (
        [job.name for job in store.newest(kind=JobKind.CAPTIONING)] == ["set"]
        and len(store.newest(kind=JobKind.TRAINING)) == 2
        and len(store.newest()) == 3
    )
    assert store.interrupt_all() == 2 and store.get(job_id).state == "interrupted"
    store.close()


def test_the_queue_keeps_its_order(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite3")
    a, b, c, d = (store.add(name, {}) for name in "abcd")
    store.move(d, 0)
    assert store.waiting() == [d, a, b, c]
    store.move(d, 2)
    store.move(a, 99)
    assert store.waiting() == [b, d, c, a]
    assert store.take(d) and not store.take(d) and store.get(d).state == "preparing"
    store.update(d, state="failed", error="x", finished_at=1.0)
    assert (
        not store.requeue(d, "stopped", resume="same") and store.get(d).state == "failed"
    )  # it is not what it was thought to be
    assert store.requeue(d, "failed", resume="same", config={"epochs": 3})
    assert store.waiting() == [d, b, c, a]
    row = store.get(d)
    assert (row.state, row.error, row.finished_at, row.resume, row.config) == (
        "queued",
        None,
        None,
        "same",
        {"epochs": 3},
    )
    store.close()
    store = JobStore(tmp_path / "jobs.sqlite3")
    assert store.waiting() == [d, b, c, a]
    store.delete(b)
    assert store.waiting() == [d, c, a] and store.get(b) is None
    store.close()


def test_queued_jobs_of_an_older_version_wait_behind_in_their_order(tmp_path):
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as old:
        old.execute(OLD_TABLE)
        old.execute(
            "insert into jobs (name, state, created_at, config) values ('a', 'queued', 1.0, '{}'),"
            " ('b', 'queued', 2.0, '{}')"
        )
    old.close()
    store = JobStore(tmp_path / "jobs.sqlite3")
    assert [store.get(job_id).name for job_id in store.waiting()] == [
        "a",
        "b",
    ] and store.interrupt_all() == 0
    store.add("c", {})
    assert [store.get(job_id).name for job_id in store.waiting()] == ["a", "b", "c"]
    store.close()


def test_version_tells_changes_but_not_figures(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite3")
    job_id, before = store.add("a", {}), store.version
    store.update(job_id, progress={"step": 1}, message="Training")
    assert store.version == before and store.get(job_id).progress["step"] == 1
    store.update(job_id, state="training", progress={"step": 2})
    assert store.version > before
    store.close()


def test_what_lives_elsewhere_is_not_interrupted(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite3")
    a, b = store.add("a", {}), store.add("b", {})
    for job_id in (a, b):
        store.update(job_id, state="training")
    assert store.interrupt_all(lambda job_id: job_id == a) == 1
    assert [store.get(job_id).state for job_id in (a, b)] == ["training", "interrupted"]
    store.close()


def test_a_job_is_taken_with_its_last_values_or_not_at_all(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite3")
    job_id = store.add("a", {})
    with pytest.raises(TypeError):
        store.take(job_id, progress={"step": object()})
    assert store.get(job_id).state == "queued" and store.waiting() == [job_id]
    assert (
        store.take(job_id, state="stopped", message="Cancelled")
        and store.get(job_id).state == "stopped"
    )
    store.close()


@pytest.mark.parametrize("damage", ["all of it", "in the middle"])
def test_a_damaged_database_is_put_aside(tmp_path, caplog, damage):
    path = tmp_path / "jobs.sqlite3"
    store = JobStore(path)
    for number in range(50):
        store.add(f"job {number}", {"text": "x" * 2000})
    assert store.problems == []
    store.close()
    data = bytearray(path.read_bytes())
    data[:] = (
        b"no database" * 100
        if damage == "all of it"
        else data[:8192] + b"\xff" * (len(data) - 8192)
    )
    path.write_bytes(data)
    for number in (1, 7):
        (tmp_path / "jobs" / str(number)).mkdir(parents=True)
    (tmp_path / "jobs" / "notes").mkdir()
    store = JobStore(path)
    (aside,) = tmp_path.glob("jobs-broken-*.sqlite3")
    assert (
        aside.read_bytes() == data
        and aside.name in caplog.text
        and str(aside) in store.problems[0]
        and store.newest() == []
    )
    assert [store.add(name, {}) for name in "ab"] == ["8", "9"]  # never an id whose folder is there
    store.delete("9")
    assert store.add("c", {}) == "10"
    store.close()
    assert JobStore(path).problems == []


def test_names_that_are_not_utf8_are_stored(tmp_path):
    store, name = (
        JobStore(tmp_path / "jobs.sqlite3"),
        b"caf\xe9.png".decode("utf-8", "surrogateescape"),
    )
    job_id = store.add(name, {"filenames": [name]})
    store.update(job_id, message=name, error=name, output_file=name, progress={"failed": [name]})
    row = store.get(job_id)
    assert row.config == {"filenames": [name]} and row.progress["failed"] == [
        name
    ]  # these must still name the file
    assert {getattr(row, column) for column in ("name", "message", "error", "output_file")} == {
        "caf\\udce9.png"
    }
    assert [each.id for each in store.named(name)] == [job_id]
    store.close()


def test_the_checkpoint_is_kept(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite3")
    row = store.get(store.add("a", {}, checkpoint="dreamy", sha256="ab"))
    assert (row.for_checkpoint, row.for_sha256) == ("dreamy", "ab")
    row = store.get(store.add("b", {}))
    assert (row.for_checkpoint, row.for_sha256) == ("", None)
    store.close()
