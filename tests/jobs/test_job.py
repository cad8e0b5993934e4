"""The records of a job: read from the table's rows."""

import dataclasses
import json
import sqlite3

import pytest

from lora_trainer.jobs.job import ALIVE, STARTED, JobKind, JobRow, JobState

COLUMNS = {
    "id": 7,
    "name": "zib",
    "kind": "training",
    "state": "finished",
    "created_at": 1.0,
    "finished_at": 2.0,
    "config": '{"lora_rank": 4}',
    "progress": '{"step": 6, "loss": 0.5}',
    "message": "Done.",
    "error": None,
    "output_file": "/loras/zib.safetensors",
    "lora_tag": "<lora:zib:1>",
    "position": None,
    "resume": "",
    "for_checkpoint": "tiny",
    "for_sha256": None,
    "for_kind": "sd1  512",
}


def row_of(**changes):
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    values = {**COLUMNS, **changes}
    selected = ", ".join(f"? as {name}" for name in values)
    row = database.execute(f"select {selected}", list(values.values())).fetchone()
    database.close()
    return row


def test_a_row_is_read_with_its_types():
    job = JobRow.read(row_of())
    assert job.id == "7" and job.kind is JobKind.TRAINING and job.state is JobState.FINISHED
    assert job.config == {"lora_rank": 4} and job.progress == {"step": 6, "loss": 0.5}
    assert {field.name for field in dataclasses.fields(JobRow)} == COLUMNS.keys()


def test_as_a_mapping_the_figures_are_among_the_columns():
    values = JobRow.read(row_of()).as_dict()
    assert values["step"] == 6 and values["loss"] == 0.5 and "progress" not in values
    assert values.keys() == COLUMNS.keys() - {"progress"} | {"step", "loss"}


def test_a_column_wins_over_a_figure_of_its_name():
    assert JobRow.read(row_of(progress='{"name": "other"}')).as_dict()["name"] == "zib"


@pytest.mark.parametrize("changes", [{"kind": "cooking"}, {"state": "gone"}, {"config": "{"}])
def test_what_no_version_wrote_is_an_error(changes):
    with pytest.raises(ValueError):
        JobRow.read(row_of(**changes))


def test_kinds_and_states_are_their_values_in_texts_and_json():
    assert f"{JobKind.TRAINING} {JobState.PAUSED}" == "training paused"
    assert json.dumps([JobKind.CAPTIONING, JobState.QUEUED]) == '["captioning", "queued"]'


def test_who_has_started_is_alive_and_who_has_ended_is_not():
    ended = {JobState.FINISHED, JobState.STOPPED, JobState.FAILED, JobState.INTERRUPTED}
    assert set(ALIVE) == set(JobState) - ended and set(ALIVE) - set(STARTED) == {JobState.QUEUED}
