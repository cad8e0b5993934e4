"""`jobs`: a table that disturbs nobody."""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.cli.jobs import table
from lora_trainer.jobs.store import JobStore


def test_the_table(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite3")
    done, lost, _, words = (
        store.add(name, {}, kind=kind)
        for name, kind in (
            ("a", "training"),
            ("longer name", "training"),
            ("c", "training"),
            ("set", "captioning"),
        )
    )
    store.update(done, state="finished", progress={"step": 9, "total_steps": 9})
    store.update(lost, state="training", progress={"step": 3, "total_steps": 9})
    store.update(words, state="stopped", progress={"done": 1, "total": 4})
    states = tmp_path / "jobs" / lost / "state"
    states.mkdir(parents=True)
    (states / "step-000002.safetensors").write_bytes(b"")
    assert (
        table(tmp_path)
        == """\
id  name         state        step    resumable
4   set          stopped      1 of 4  no
3   c            queued       0 of 0  no
2   longer name  interrupted  3 of 9  at step 2
1   a            finished     9 of 9  no"""
    )
    assert store.get(lost).state == "training"  # it was only read


def test_without_jobs(tmp_path):
    with pytest.raises(Refused, match="no jobs"):
        table(tmp_path)
    assert list(tmp_path.iterdir()) == []
