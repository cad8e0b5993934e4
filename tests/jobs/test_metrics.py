"""metrics.csv: every step once, whatever was cut, reported twice or half written."""

import os

import pytest

from lora_trainer.jobs.metrics import Metrics, read_metrics, read_rows
from lora_trainer.runs.progress import StepMetrics


def row(step, loss=0.5, validation_loss=None):
    return StepMetrics(step, loss, 0.4, 1e-4, step * 0.1, validation_loss)


def write(folder, steps, *, load_until=None, loss=0.5):
    metrics = Metrics()
    if load_until is not None:
        metrics.load(folder, load_until)
    with metrics.kept_in(folder):
        for step in steps:
            metrics.add(row(step, loss))
    return metrics


def test_a_run_that_goes_on_writes_every_step_once(tmp_path):
    write(tmp_path, range(1, 8))
    metrics = write(tmp_path, range(5, 11), load_until=4, loss=0.25)
    assert [(each["step"], each["loss"]) for each in metrics.since(0)] == [
        (step, 0.5 if step < 5 else 0.25) for step in range(1, 11)
    ]
    assert read_metrics(tmp_path) == metrics.since(0)
    assert (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()[:2] == [
        "step,loss,loss_average,learning_rate,seconds,validation_loss",
        "1,0.5,0.4,0.0001,0.1,",
    ]


def test_steps_that_are_reported_again_keep_their_first_row(tmp_path):
    metrics = Metrics()
    with metrics.kept_in(tmp_path):
        assert [metrics.add(row(step)) for step in (1, 2, 3, 2, 3, 4)] == [
            True,
            True,
            True,
            False,
            False,
            True,
        ]
    assert [each["step"] for each in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_what_is_cut_while_it_is_written_is_gone_from_the_file(tmp_path):
    metrics = Metrics()
    with metrics.kept_in(tmp_path):
        for step in (1, 2, 3):
            metrics.add(row(step))
        metrics.cut(1)
        metrics.cut(1)
        metrics.add(row(2, 0.1))
        assert [(each["step"], each["loss"]) for each in read_metrics(tmp_path)] == [
            (1, 0.5),
            (2, 0.1),
        ]  # at once, not when it is closed


@pytest.mark.parametrize(
    "torn",
    [
        "4",
        "4,0.5",
        "4,0.5,0.4,0.0001",
        "4,0.5,0.4,0.0001,x,",
        "4,0.5,0.4,0.0001,1.0",
        "4,0.5,0.4,0.0001,1.0,0.12",
        "4,0.5,0.4,0.0001,1.0,x\r\n",
        "3,0.5,0.4,0.0001,1.0,\r\n",
        "4,0.5,0.4,0.0001,1.0,,\r\n",
        "\x00\x00\x00",
    ],
)
def test_a_torn_last_line_is_left_out_and_mended(tmp_path, torn):
    write(tmp_path, range(1, 4))
    with open(tmp_path / "metrics.csv", "a", encoding="utf-8") as file:
        file.write(torn)
    assert [values[0] for values in read_rows(tmp_path / "metrics.csv")] == [1, 2, 3]
    write(tmp_path, [4, 5], load_until=3)
    assert [each["step"] for each in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_rows_since_a_step_where_some_are_lacking(tmp_path):
    metrics = write(tmp_path, (1, 2, 5, 6, 9))
    for since, steps in (
        (-3, [1, 2, 5, 6, 9]),
        (0, [1, 2, 5, 6, 9]),
        (2, [5, 6, 9]),
        (3, [5, 6, 9]),
        (5, [6, 9]),
        (9, []),
        (1000, []),
    ):
        assert (
            [each["step"] for each in metrics.since(since)]
            == [each["step"] for each in read_metrics(tmp_path, since)]
            == steps
        )


def test_a_disk_that_refuses_costs_the_file_only(tmp_path, caplog):
    (tmp_path / "metrics.csv").mkdir()
    metrics = write(tmp_path, (1, 2))
    assert [each["step"] for each in metrics.since(0)] == [1, 2] and read_metrics(tmp_path) == []
    assert "cannot be written" in caplog.text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full disk")
def test_what_a_full_disk_refused_is_written_when_there_is_room_again(tmp_path, caplog):
    metrics = Metrics()
    with metrics.kept_in(tmp_path):
        metrics.add(row(1))
        metrics._file.close()
        metrics._file = open("/dev/full", "w", encoding="utf-8")
        assert metrics.add(row(2)) and metrics.add(row(3)) and len(caplog.records) == 1
        assert [each["step"] for each in read_metrics(tmp_path)] == [1]
    assert [each["step"] for each in read_metrics(tmp_path)] == [1, 2, 3]


def test_what_is_measured_stands_in_the_rows_where_it_was_measured(tmp_path):
    metrics = Metrics()
    with metrics.kept_in(tmp_path):
        for step in range(1, 7):
            metrics.add(row(step, validation_loss=step / 10 if step % 3 == 0 else None))
    assert [each["validation_loss"] for each in metrics.since(1)] == [
        None,
        0.3,
        None,
        None,
        0.6,
    ] and read_metrics(tmp_path) == metrics.since(0)
    again = Metrics()
    again.load(tmp_path, 5)
    assert [each["validation_loss"] for each in again.since(0)] == [None, None, 0.3, None, None]
    again.cut(2)
    assert [each["validation_loss"] for each in again.since(0)] == [None, None]


def test_a_file_of_an_older_version_is_read_and_written_anew(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,loss,loss_average,learning_rate,seconds\n1,0.5,0.4,0.0001,0.1\n2,0.5,0.4,0.0001,0.2\n3,0.5,0.4,0.0001,0.",
        encoding="utf-8",
    )
    assert [values[0] for values in read_rows(tmp_path / "metrics.csv")] == [1, 2]
    write(tmp_path, [3], load_until=2)
    assert [(each["step"], each["validation_loss"]) for each in read_metrics(tmp_path)] == [
        (1, None),
        (2, None),
        (3, None),
    ]
    assert (
        "validation_loss" in (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    )
