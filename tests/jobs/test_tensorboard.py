"""TensorBoard's event files, read back record by record as TensorBoard reads them."""

import struct

import pytest

from lora_trainer.jobs.tensorboard import EventFile

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def events(folder):
    """Every event of a folder's files, oldest file first; TFRecord framing: length, its checksum,
    data, its checksum.
    """
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.suffix):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            body = data[12 : 12 + length]
            assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8]) and struct.unpack(
                "<I", data[12 + length : 16 + length]
            )[0] == masked_crc32c(body)
            found.append(event_pb2.Event.FromString(body))
            data = data[16 + length :]
    return found


def scalars(folder):
    return [
        (event.step, value.tag, round(value.simple_value, 6))
        for event in events(folder)
        for value in event.summary.value
    ]


def test_figures_are_read_back(tmp_path):
    file = EventFile(tmp_path / "tb")
    file.add(1, loss=0.5, loss_average=None)
    file.add(2, loss=0.25, loss_average=0.375)
    file.close()
    assert events(tmp_path / "tb")[0].file_version == "brain.Event:2"
    assert scalars(tmp_path / "tb") == [
        (1, "loss", 0.5),
        (2, "loss", 0.25),
        (2, "loss_average", 0.375),
    ]


def test_a_run_that_goes_on_voids_the_steps_after_its_state(tmp_path):
    first = EventFile(tmp_path)
    first.add(3, loss=0.5)
    first.close()
    second = EventFile(tmp_path, purge_step=3)
    second.add(3, loss=0.1)
    second.close()
    assert len(list(tmp_path.iterdir())) == 2  # also within the same second
    marks = [
        event
        for event in events(tmp_path)
        if event.session_log.status == event_pb2.SessionLog.START
    ]
    assert [mark.step for mark in marks] == [3] and scalars(tmp_path) == [
        (3, "loss", 0.5),
        (3, "loss", 0.1),
    ]


def test_a_folder_that_refuses_is_told_once(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    file = EventFile(tmp_path / "file")
    for step in range(5):
        file.add(step, loss=0.5)
    file.close()
    assert [record.levelname for record in caplog.records] == [
        "WARNING"
    ] and "cannot be written" in caplog.text


def test_a_package_that_does_not_work_costs_nothing_else(tmp_path, caplog, monkeypatch):
    def broken(*arguments, **options):
        raise TypeError("Descriptors cannot be created directly.")

    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter", broken)
    file = EventFile(tmp_path)
    file.add(1, loss=0.5)
    file.close()
    assert "Descriptors cannot be created" in caplog.text and len(caplog.records) == 1


def test_without_the_package_it_says_how_to_get_it(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX.event_file_writer", None)
    file = EventFile(tmp_path)
    file.add(1, loss=0.5)
    file.close()
    assert "pip install tensorboardX" in caplog.text and list(tmp_path.iterdir()) == []
