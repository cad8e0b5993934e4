"""The table of jobs: databases of older versions are taken over."""
import sqlite3

from lora_trainer.jobs.store import JobStore

OLD_TABLE = """create table jobs (
    id integer primary key autoincrement, name text not null, state text not null, created_at real not null, finished_at real,
    config text not null, progress text not null default '{}', message text not null default '', error text,
    output_file text, lora_tag text)"""


def test_a_database_of_before_there_were_kinds(tmp_path):
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as old:
        old.execute(OLD_TABLE)
        old.execute("insert into jobs (name, state, created_at, config) values ('zib', 'finished', 1.0, '{}'), ('zob', 'training', 2.0, '{}')")
    old.close()
    for _ in range(2):
        store = JobStore(tmp_path / "jobs.sqlite3")
        assert [(job["name"], job["kind"]) for job in store.newest()] == [("zob", "training"), ("zib", "training")]
        store.close()
    store = JobStore(tmp_path / "jobs.sqlite3")
    job_id = store.add("set", {"captioner": "fixed"}, kind="captioning")
    store.update(job_id, state="captioning", progress={"done": 3})
    assert store.get(job_id)["kind"] == "captioning" and store.get(job_id)["done"] == 3
    assert [job["name"] for job in store.newest(kind="captioning")] == ["set"] and len(store.newest(kind="training")) == 2 and len(store.newest()) == 3
    assert store.interrupt_all() == 2 and store.get(job_id)["state"] == "interrupted"
    store.close()
