"""Captioning jobs as a page sees them: which pictures, what is written, what is refused, what a
stop leaves.
"""

import os
import threading
import time

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.captioning.contracts import Captioner, LoadedCaptioner
from lora_trainer.jobs import lock_file
from lora_trainer.jobs.service import TrainingService


class Slow(LoadedCaptioner):
    def __init__(self, begun: threading.Event, go: threading.Event) -> None:
        self._begun, self._go = begun, go

    def caption(self, images, paths):
        self._begun.set()
        self._go.wait(20)
        return [[f"automatic {path.stem}"] for path in paths]


class SlowCaptioner(Captioner):
    """Waits for each picture until the test says go."""

    name, title, help = "slow", "Slow", ""
    underscores_to_spaces = True

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def load(self, options, *, on_progress, should_stop):
        if options["trigger_word"] == "boom":
            raise RuntimeError("CUDA out of memory")
        return Slow(self.begun, self.go)


@pytest.fixture
def slow(host):
    host.captioners = lambda: [slow]
    slow = SlowCaptioner()
    return slow


@pytest.fixture
def service(host, slow, tmp_path):
    service = TrainingService(host)
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "1.txt").write_text("my own words", encoding="utf-8")
    service.library.create("set", str(folder))
    return service


def captions(service):
    return {
        row["filename"]: (row["caption"], row["automatic"])
        for row in service.library.describe("set")["pictures"]
    }


def finish(service, job_id):
    return service.wait(job_id, timeout=60)


FIXED = {"template": "shape {filename}"}


def test_what_a_person_wrote_stays_and_what_a_captioner_wrote_is_renewed(service):
    job = finish(service, service.captioning.start("set", "fixed", options=FIXED))
    assert captions(service) == {
        "0.png": ("shape 0", True),
        "1.png": ("my own words", False),
        "2.png": ("shape 2", True),
        "3.png": ("shape 3", True),
    }
    assert (
        job["kind"],
        job["state"],
        job["done"],
        job["total"],
        job["written"],
        job["skipped"],
        job["failed"],
    ) == ("captioning", "finished", 4, 4, 3, 1, [])
    assert (job["dataset"], job["captioner"], job["stage"], job["fraction"], job["error"]) == (
        "set",
        "fixed",
        "captioning",
        1.0,
        None,
    )
    service.library.open("set").set_captions({"2.png": "changed by hand"})
    job = finish(
        service, service.captioning.start("set", "fixed", options={"template": "again {filename}"})
    )
    assert [caption for caption, _ in captions(service).values()] == [
        "again 0",
        "my own words",
        "changed by hand",
        "again 3",
    ]
    assert job["message"] == "2 captions written, 2 left as they were"
    finish(
        service,
        service.captioning.start(
            "set", "fixed", options={"template": "all {filename}"}, overwrite=True
        ),
    )
    assert [caption for caption, _ in captions(service).values()] == [
        "all 0",
        "all 1",
        "all 2",
        "all 3",
    ]


def test_one_undo_takes_all_of_it_back(service):
    before = captions(service)
    finish(service, service.captioning.start("set", "fixed", options=FIXED))
    assert service.library.describe("set")["history"]["undo"] == "Automatic captions: fixed"
    service.library.open("set").undo()
    assert captions(service) == before


def test_a_caption_typed_while_it_runs_is_left_alone(service, slow):
    job_id = service.captioning.start("set", "slow")
    assert slow.begun.wait(20)
    service.library.open("set").set_captions({"0.png": "typed meanwhile"})
    slow.go.set()
    job = finish(service, job_id)
    assert captions(service)["0.png"] == ("typed meanwhile", False) and captions(service)[
        "2.png"
    ] == ("automatic 2", True)
    assert (job["written"], job["skipped"]) == (2, 2)


def test_some_pictures_only(service):
    finish(
        service,
        service.captioning.start("set", "fixed", options=FIXED, filenames=["3.png", "1.png"]),
    )
    assert [caption for caption, _ in captions(service).values()] == [
        "",
        "my own words",
        "",
        "shape 3",
    ]
    with pytest.raises(Refused, match="no picture '9.png'"):
        service.captioning.start("set", "fixed", filenames=["9.png"])
    with pytest.raises(Refused, match="no picture to caption"):
        service.captioning.start("set", "fixed", filenames=[])


def test_damaged_pictures_and_kohya_folders(service, tmp_path):
    folder = tmp_path / "set" / "10_red_cat"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "5.png")
    (tmp_path / "set" / "bad.png").write_bytes(b"no picture")
    job = finish(
        service,
        service.captioning.start("set", "fixed", options={"template": "{folder} {filename}"}),
    )
    assert captions(service)["10_red_cat/5.png"] == (
        "red_cat 5",
        True,
    )  # class words are no caption
    assert (
        [each["filename"] for each in job["failed"]] == ["bad.png"]
        and job["total"] == 6
        and job["state"] == "finished"
    )


@pytest.mark.skipif(os.name == "nt", reason="names there are always Unicode")
@pytest.mark.parametrize("content", [b"no picture", "a picture"])
def test_a_name_that_is_not_utf8(service, tmp_path, content):
    path = tmp_path / "set" / os.fsdecode(b"caf\xe9.png")
    try:
        path.write_bytes(
            content if isinstance(content, bytes) else (tmp_path / "set" / "0.png").read_bytes()
        )
    except OSError:
        pytest.skip("this disk takes Unicode only")
    job = finish(service, service.captioning.start("set", "fixed", options=FIXED))
    (failure,) = job["failed"]
    assert (
        job["state"] == "finished"
        and job["written"] == 3
        and failure["filename"].startswith("caf")
        and failure["reason"]
    ), job["error"]
    for number in range(4):
        (tmp_path / "set" / f"{number}.png").unlink()
    job = finish(
        service,
        service.captioning.start("set", "fixed", options=FIXED, filenames=[failure["filename"]]),
    )
    assert (
        job["state"] == "failed"
        and "caf" in job["error"]
        and (service.job_folder(job["id"]) / "config.json").is_file()
    )


def test_a_reason_with_a_name_that_is_not_utf8(service, slow, monkeypatch):
    """Whatever a captioner says of a file, the job ends, and all of it can be sent."""

    def fail(self, images, paths):
        raise ValueError(os.fsdecode(b"caf\xe9.png") + " is damaged")

    monkeypatch.setattr(Slow, "caption", fail)
    job = finish(service, service.captioning.start("set", "slow"))
    assert (
        job["state"] == "failed"
        and "caf\\udce9.png is damaged" in job["error"]
        and len(job["failed"]) == 3
    )


def test_stop_keeps_what_is_done(service, slow):
    job_id = service.captioning.start("set", "slow", overwrite=True)
    assert slow.begun.wait(20) and service.current_job()["kind"] == "captioning"
    assert service.job(job_id)["done"] == 0 and service.stop(job_id)["stopping"]
    slow.go.set()
    job = finish(service, job_id)
    assert (
        job["state"] == "stopped"
        and job["written"] == 1
        and job["done"] == 1
        and captions(service)["0.png"] == ("automatic 0", True)
    )
    assert captions(service)["1.png"][0] == "my own words" and service.current_job() is None


def test_pictures_are_chosen_when_the_job_begins(service, slow, tmp_path):
    first = service.captioning.start("set", "slow")
    second = service.captioning.start("set", "fixed", options=FIXED)
    third = service.captioning.start(
        "set",
        "fixed",
        options={"template": "third {filename}"},
        overwrite=True,
        filenames=["0.png", "2.png"],
    )
    assert slow.begun.wait(20)
    assert service.current_job()["id"] == first and [
        service.job(job_id)["position"] for job_id in (second, third)
    ] == [0, 1]
    (tmp_path / "set" / "2.png").unlink()
    Image.new("RGB", (64, 64)).save(tmp_path / "set" / "4.png")
    slow.go.set()
    assert finish(service, first)["state"] == "finished"
    assert finish(service, second)["written"] == 3  # 2.png is gone and 4.png has come
    job = finish(service, third)
    assert (job["written"], job["failed"]) == (
        1,
        [{"filename": "2.png", "reason": "it was removed or renamed meanwhile"}],
    )
    assert captions(service)["0.png"] == ("third 0", True) and captions(service)["4.png"] == (
        "shape 4",
        True,
    )


def test_it_cannot_be_paused_resumed_or_saved_meanwhile(service, slow):
    job_id = service.captioning.start("set", "slow")
    for ask in (service.pause, service.snapshot):
        with pytest.raises(Refused, match="Stop it; what is done stays") as caught:
            ask(job_id)
        assert caught.value.code == "not_running"
    slow.go.set()
    assert not finish(service, job_id)["resumable"]
    with pytest.raises(Refused, match="goes on when it is started again") as caught:
        service.resume(job_id)
    assert caught.value.code == "cannot_resume"


def test_duplicate_asks_the_same_again(service):
    first = service.captioning.start("set", "fixed", options=FIXED, filenames=["0.png"])
    finish(service, first)
    second = finish(service, service.duplicate(first, {"overwrite": True}))
    assert (
        second["config"] == {**service.job(first)["config"], "overwrite": True}
        and second["written"] == 1
    )


def test_trouble_is_told(service, slow):
    slow.go.set()
    job = finish(service, service.captioning.start("set", "slow", options={"trigger_word": "boom"}))
    assert (
        job["state"] == "failed"
        and "Memory ran out (how much was needed is not known). Choose a smaller model"
        in job["error"]
        and "log.txt" in job["error"]
    )
    assert finish(service, service.captioning.start("set", "slow"))["state"] == "finished"
    log = (service.job_folder(job["id"]) / "log.txt").read_text(encoding="utf-8")
    assert "CUDA out of memory" in log and (service.job_folder(job["id"]) / "config.json").is_file()


def test_when_no_picture_works_the_job_failed(service, slow, monkeypatch):
    monkeypatch.setattr(Slow, "caption", lambda self, images, paths: 1 / 0)
    job = finish(service, service.captioning.start("set", "slow"))
    assert (
        job["state"] == "failed"
        and job["error"]
        == "None of 3 pictures could be captioned. 0.png: ZeroDivisionError: division by zero"
    )
    assert [each["filename"] for each in job["failed"]] == ["0.png", "2.png", "3.png"]


def test_what_is_refused_before_it_starts(service, monkeypatch):
    for arguments, code in ((("nowhere", "fixed"), "not_found"), (("set", "nothing"), "not_found")):
        with pytest.raises(Refused) as caught:
            service.captioning.start(*arguments)
        assert caught.value.code == code
    with pytest.raises(Refused, match="no option 'temperature'"):
        service.captioning.start("set", "fixed", options={"temperature": 1})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Refused, match="downloads are switched off") as caught:
        service.captioning.start("set", "wd-tagger", options={"model": "wd-eva02-large-tagger-v3"})
    assert caught.value.code == "not_ready" and service.jobs() == []


def test_paths_in_options_stay_inside_the_roots(host, slow, tmp_path):
    service = TrainingService(host, allowed_roots=[host.data_dir])
    (tmp_path / "model").mkdir()
    for name, options in (
        ("clip-labels", {"model": "custom", "model_name": str(tmp_path / "model")}),
        ("wd-tagger", {"model": "custom", "folder": str(tmp_path / "model")}),
        (
            "coca",
            {"model": "custom", "model_name": "ViT-B-32", "weights": str(tmp_path / "weights.pt")},
        ),
    ):
        with pytest.raises(Refused, match="only folders inside") as caught:
            service.captioning.captioners.readiness(name, options)
        assert caught.value.code == "forbidden_path"


def test_jobs_by_kind_and_a_restart(service, slow, settings, host, monkeypatch):
    training = service.start(settings)
    finish(service, training)
    captioning = service.captioning.start("set", "slow")
    deadline = time.monotonic() + 20
    while service.store.get(captioning).state == "queued" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [job["id"] for job in service.jobs()] == [captioning, training]
    assert [[job["id"] for job in service.jobs(kind)] for kind in ("training", "captioning")] == [
        [training],
        [captioning],
    ]
    with pytest.raises(Refused, match="no jobs of the kind 'x'"):
        service.jobs("x")
    with monkeypatch.context() as patch:  # as after a crash: nobody holds the lock
        patch.setattr(lock_file, "is_locked", lambda folder: False)
        again = TrainingService(host)
    assert (
        again.job(captioning)["state"] == "interrupted"
        and again.job(captioning)["kind"] == "captioning"
    )
    slow.go.set()
    finish(service, captioning)
