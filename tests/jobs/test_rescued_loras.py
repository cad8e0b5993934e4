"""LoRAs that lie only in the folder of a job outlive it."""

import pytest

from lora_trainer.base.errors import Refused


@pytest.fixture
def ended(service, settings):
    """A job that a crash has ended, with things in its folder."""
    job_id = service.store.add("mine", settings)
    service.store.update(job_id, state="interrupted")
    for name, content in {
        "replaced/mine.safetensors": b"the old one",
        "replaced/mine.json": b"its card",
        "mine.safetensors": b"could not be saved elsewhere",
        "state/step-000004.safetensors": b"a state",
        "log.txt": b"log",
    }.items():
        path = service.job_folder(job_id) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return job_id


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_loras_that_are_only_in_the_folder_outlive_it(service, host, ended):
    (host.lora_dir / "mine.safetensors").write_bytes(b"the new one")
    (host.lora_dir / "mine-2.json").write_bytes(b"somebody's card")
    moved = service.delete(ended)
    assert (
        not service.job_folder(ended).exists() and service.jobs() == [] and host.registered == moved
    )
    assert files_of(host.lora_dir) == {
        "mine.safetensors": b"the new one",
        "mine-2.json": b"somebody's card",
        "mine-3.safetensors": b"could not be saved elsewhere",
        "mine-4.safetensors": b"the old one",
        "mine-4.json": b"its card",
    }


def test_a_lora_that_is_there_already_is_not_doubled(service, host, ended):
    (host.lora_dir / "mine.safetensors").write_bytes(b"the old one")
    assert [path.name for path in service.delete(ended)] == ["mine-2.safetensors"]


def test_nothing_is_deleted_when_a_lora_cannot_be_moved(service, host, ended):
    host.lora_dir.rmdir()
    host.lora_dir.write_text("in the way")
    with pytest.raises(Refused, match="keeps a LoRA") as caught:
        service.delete(ended)
    folder = service.job_folder(ended)
    assert (
        caught.value.code == "cannot_save"
        and str(folder / "mine.safetensors") in caught.value.message
    )
    assert (
        len([path for path in folder.rglob("*") if path.is_file()]) == 5
        and service.job(ended)["state"] == "interrupted"
    )


def test_half_moved_is_not_moved(service, host, ended, monkeypatch):
    from lora_trainer.jobs import rescued_loras

    (service.job_folder(ended) / "mine.safetensors").unlink()
    write = rescued_loras.write_atomically

    def full(path, data, **options):
        if path.suffix == ".safetensors":
            raise OSError(28, "No space left on device")
        write(path, data, **options)

    monkeypatch.setattr(rescued_loras, "write_atomically", full)
    with pytest.raises(Refused, match="No space left"):
        service.delete(ended)
    assert (
        files_of(host.lora_dir) == {}
        and (service.job_folder(ended) / "replaced" / "mine.json").is_file()
    )


def test_a_host_that_stumbles_over_a_moved_lora_is_no_reason_to_keep_the_job(
    service, host, ended, monkeypatch
):
    monkeypatch.setattr(host, "register", lambda path: 1 / 0)
    assert len(service.delete(ended)) == 2 and service.jobs() == []
