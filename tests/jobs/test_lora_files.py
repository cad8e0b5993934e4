"""The files that a job made, and only those."""

import io
import zipfile

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.jobs.lora_files import find_file, zipped
from tests.jobs.test_resume import slowed, stopped_at


@pytest.fixture
def short(settings):
    return {**settings, "max_train_steps": 7, "save_steps": 3, "preview": True}


def names(service, job_id):
    return [path.name for path in service.files(job_id)]


def test_the_lora_its_card_and_preview_and_the_snapshots(service, short):
    job = service.wait(service.start(short), 60)
    assert names(service, job["id"]) == [
        "mine.safetensors",
        "mine.json",
        "mine.png",
        "mine-000006.safetensors",
        "mine-000006.json",
        "mine-000003.safetensors",
        "mine-000003.json",
    ]
    with pytest.raises(Refused, match="made no file"):
        find_file(service.files(job["id"]), "../train_lora/jobs.sqlite3")


def test_what_another_run_replaced_is_not_its_any_more(service, host, short):
    first = service.wait(service.start({**short, "save_steps": 0}), 60)["id"]
    second = service.wait(service.start({**short, "save_steps": 0, "overwrite": True}), 60)["id"]
    assert names(service, first) == [] and "mine.safetensors" in names(service, second)
    (host.lora_dir / "mine.safetensors").write_bytes(b"anything")
    assert names(service, second) == []


def test_a_link_is_no_file_of_a_job(service, host, short, tmp_path):
    job = service.wait(service.start({**short, "save_steps": 0}), 60)
    (tmp_path / "secret").write_text("secret")
    (host.lora_dir / "mine.json").unlink()
    (host.lora_dir / "mine.json").symlink_to(tmp_path / "secret")
    assert names(service, job["id"]) == ["mine.safetensors", "mine.png"]


def test_a_stopped_and_resumed_job_has_its_files(service, host, short, monkeypatch):
    slowed(host, monkeypatch)
    job = stopped_at(service, {**short, "max_train_steps": 40}, 4)
    assert "mine.safetensors" in names(service, job["id"]) and "mine-000003.safetensors" in names(
        service, job["id"]
    )
    service.resume(job["id"])
    service.wait(job["id"], 60)
    assert "mine.safetensors" in names(service, job["id"])


def test_a_zip_written_bit_by_bit(tmp_path):
    paths = [tmp_path / "ümlaut.safetensors", tmp_path / "b.json"]
    for path, content in zip(paths, (b"x" * 3_000_000, b"{}")):
        path.write_bytes(content)
    parts = list(zipped(paths))
    assert max(map(len, parts)) < 1_100_000
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as archive:
        assert archive.testzip() is None and {
            name: len(archive.read(name)) for name in archive.namelist()
        } == {"ümlaut.safetensors": 3_000_000, "b.json": 2}
