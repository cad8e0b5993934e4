"""The loop: what is written, what fails, what is shared with others, and that everything is given
back.
"""

import contextlib
import gc
import threading
import time
import weakref

import pytest
import torch
from PIL import Image

from lora_trainer.base.errors import Refused, Stopped
from lora_trainer.captioning.contracts import Captioner, LoadedCaptioner
from lora_trainer.captioning.run import CaptionProgress, PictureToCaption, caption_pictures


class Words(LoadedCaptioner):
    """A captioner with a real module, which says the picture's size and notes what is done with
    it.
    """

    batch_size, steps, prepared = 3, 0, 0

    def __init__(self) -> None:
        self.model, self.batches, self.devices, self.closed, self.bad = (
            torch.nn.Linear(4, 4),
            [],
            [],
            False,
            (),
        )

    def caption(self, images, paths):
        self.batches.append([path.name for path in paths])
        if any(path.name in self.bad for path in paths):
            raise RuntimeError("this picture is too much")
        return [[f"{image.width}_wide", image.mode] for image in images]

    def to(self, device):
        self.devices.append(str(device))
        self.model.to(device)

    def close(self):
        self.closed, self.model = True, None

    def preparation(self):
        for step in range(self.steps):
            yield f"step {step}", step / self.steps
            self.prepared += 1


class Fake(Captioner):
    name = title = help = "fake"

    def __init__(self) -> None:
        self.loaded = Words()

    def load(self, options, *, on_progress, should_stop):
        on_progress("Downloading", 0.5)
        return self.loaded


@pytest.fixture
def eight(tmp_path):
    for number in range(8):
        Image.new("L", (20 + number, 20)).save(tmp_path / f"{number}.png")
    return [PictureToCaption(f"{number}.png", tmp_path / f"{number}.png") for number in range(8)]


@pytest.fixture
def written():
    return {}


def run(pictures, captioner, host, written, **arguments):
    def write(captions):
        written.update(captions)
        return list(captions)

    return caption_pictures(
        pictures,
        captioner,
        arguments.pop("options", {}),
        host,
        arguments.pop("write", write),
        **arguments,
    )


def test_all_are_written_in_batches_and_progress_is_told(eight, host, written):
    told, fake = [], Fake()
    progress = run(
        eight,
        fake,
        host,
        written,
        options={"trigger_word": "zib", "underscores_to_spaces": True},
        on_progress=told.append,
    )
    assert written == {f"{number}.png": f"zib, {20 + number} wide, RGB" for number in range(8)}
    assert [len(batch) for batch in fake.loaded.batches] == [3, 3, 2]
    assert (progress.done, progress.total, progress.written, progress.failed) == (8, 8, 8, [])
    assert [(each.stage, each.done) for each in told] == [
        ("preparing", 0),
        ("captioning", 3),
        ("captioning", 6),
        ("captioning", 8),
    ]
    assert (
        told[0].message == "Downloading"
        and told[0].fraction == 0.5
        and told[1].eta_seconds > 0
        and told[-1].eta_seconds == 0
    )


def test_a_picture_that_fails_is_named_and_the_others_go_on(eight, host, written):
    fake = Fake()
    fake.loaded.bad = ("4.png",)
    eight[1].path.write_bytes(b"not a picture")
    eight[6].path.unlink()
    progress = run(eight, fake, host, written)
    assert sorted(written) == ["0.png", "2.png", "3.png", "5.png", "7.png"]
    assert {each["filename"]: each["reason"] for each in progress.failed}.keys() == {
        "1.png",
        "4.png",
        "6.png",
    }
    assert (
        next(each["reason"] for each in progress.failed if each["filename"] == "4.png")
        == "RuntimeError: this picture is too much"
    )
    assert (progress.done, progress.written, progress.skipped) == (8, 5, 0)


def test_stopped_half_way_what_is_done_is_kept(eight, host, written):
    fake = Fake()
    progress = run(eight, fake, host, written, should_stop=lambda: len(fake.loaded.batches) >= 2)
    assert len(written) == 6 and (progress.done, progress.total) == (6, 8) and fake.loaded.closed


def test_stopped_while_downloading_is_no_error(eight, host, written):
    fake = Fake()
    fake.load = lambda options, **arguments: (_ for _ in ()).throw(Stopped())
    assert run(eight, fake, host, written).done == 0 and not written


def test_what_was_counted_before_is_counted(eight, host, written):
    begin = CaptionProgress(
        total=10, done=2, skipped=1, failed=[{"filename": "x.png", "reason": "damaged"}]
    )
    progress = run(
        eight,
        Fake(),
        host,
        written,
        begin=begin,
        write=lambda captions: [name for name in captions if name != "3.png"],
    )
    assert (
        progress.done,
        progress.total,
        progress.written,
        progress.skipped,
        len(progress.failed),
    ) == (10, 10, 7, 2, 1)


@pytest.mark.parametrize("trouble", [None, "write", "load"])
def test_everything_is_given_back_whatever_happens(eight, host, written, trouble):
    fake = Fake()
    model = weakref.ref(fake.loaded.model)
    arguments = {}
    if trouble == "write":
        arguments["write"] = lambda captions: (_ for _ in ()).throw(OSError("disk full"))
    if trouble == "load":
        fake.load = lambda options, **_: (_ for _ in ()).throw(Refused("no weights"))
    with pytest.raises((OSError, Refused)) if trouble else contextlib.nullcontext():
        run(eight, fake, host, written, **arguments)
    if trouble != "load":
        assert fake.loaded.closed and fake.loaded.devices[-1] == "cpu"
        fake = None
        gc.collect()
        assert model() is None


class Queue:
    """A host with one device and a first-come-first-served lock, as the WebUI's;
    `others_are_waiting` sees who waits.
    """

    def __init__(self, host) -> None:
        self._lock, self._inner, self._waiting = threading.Lock(), threading.Lock(), []
        host.exclusive_use, host.others_are_waiting, host.device = (
            self.exclusive_use,
            lambda: bool(self._waiting),
            torch.device("meta"),
        )

    @contextlib.contextmanager
    def exclusive_use(self):
        with self._inner:
            taken = self._lock.acquire(False)
            if not taken:
                event = threading.Event()
                self._waiting.append(event)
        if not taken:
            event.wait()
            self._lock.acquire()
        try:
            yield
        finally:
            with self._inner:
                if self._waiting:
                    self._waiting.pop(0).set()
                self._lock.release()


def test_whoever_waits_gets_the_device_after_the_batch_under_way(eight, host, written):
    """Without a pause after the turn, the loop would take the lock again before the one who waits
    has woken up.
    """
    queue, fake, turns = Queue(host), Fake(), []
    fake.loaded.batch_size = 1
    slow = fake.loaded.caption

    def caption(images, paths):
        time.sleep(0.03)
        return slow(images, paths)

    fake.loaded.caption = caption
    fake.loaded.to = lambda device: fake.loaded.devices.append(str(device))

    def somebody_draws():
        for _ in range(3):
            before = len(fake.loaded.batches)
            with queue.exclusive_use():
                turns.append((len(fake.loaded.batches) - before, fake.loaded.devices[-1]))
            time.sleep(0.01)

    worker = threading.Thread(target=lambda: run(eight, fake, host, written))
    worker.start()
    while not fake.loaded.batches:
        time.sleep(0.001)
    somebody_draws()
    worker.join(20)
    assert len(written) == 8 and [device for _, device in turns] == ["cpu"] * 3, turns
    assert all(batches <= 2 for batches, _ in turns), turns
    assert fake.loaded.devices[:2] == ["meta", "cpu"] and len(fake.loaded.devices) >= 6


def test_preparation_goes_step_by_step_and_others_get_the_device_between(eight, host, written):
    fake, told, moved = Fake(), [], []
    fake.loaded.steps = 3
    host.others_are_waiting = lambda: fake.loaded.prepared < 2
    fake.loaded.to = lambda device: moved.append(fake.loaded.prepared)
    run(eight, fake, host, written, on_progress=told.append)
    assert [each.message for each in told if each.stage == "preparing"] == [
        "Downloading",
        "step 0",
        "step 1",
        "step 2",
    ]
    assert fake.loaded.prepared == 3 and len(written) == 8 and moved == [0, 0, 0, 1, 1, 3]


def test_stopped_while_preparing(eight, host, written):
    fake = Fake()
    fake.loaded.steps = 3
    progress = run(eight, fake, host, written, should_stop=lambda: fake.loaded.prepared >= 1)
    assert not written and progress.done == 0 and fake.loaded.prepared == 1 and fake.loaded.closed


def test_nobody_waiting_the_model_stays_where_it_is(eight, host, written):
    fake = Fake()
    run(eight, fake, host, written)
    assert fake.loaded.devices == ["cpu", "cpu"]  # to the device, which is the CPU here, and back


def test_a_damaged_png_is_one_failed_picture(eight, host, written):
    """Pillow raises SyntaxError for a broken chunk, which is no OSError."""
    data = bytearray(eight[2].path.read_bytes())
    data[data.index(b"IDAT") - 4 : data.index(b"IDAT")] = b"\x00\x00\x00\x01"
    eight[2].path.write_bytes(bytes(data))
    progress = run(eight, Fake(), host, written)
    assert (
        len(written) == 7
        and [each["filename"] for each in progress.failed] == ["2.png"]
        and progress.failed[0]["reason"].startswith("it cannot be read: ")
    )


@pytest.mark.parametrize(
    "error",
    [
        SyntaxError("broken PNG file"),
        MemoryError(),
        Image.DecompressionBombError("too large"),
        TypeError("x"),
    ],
)
def test_whatever_reading_raises_the_others_go_on(eight, host, written, monkeypatch, error):
    from lora_trainer.captioning import run as module

    read = module.read_rgb
    monkeypatch.setattr(
        module,
        "read_rgb",
        lambda path: (_ for _ in ()).throw(error) if path.name == "2.png" else read(path),
    )
    progress = run(eight, Fake(), host, written)
    assert len(written) == 7 and progress.failed == [
        {"filename": "2.png", "reason": f"it cannot be read: {str(error) or 'MemoryError'}"}
    ]


@pytest.mark.parametrize(
    "when", ["while it is looked at", "while it is written", "and the writer skips it"]
)
def test_a_picture_that_goes_away_is_one_failed_picture(eight, host, written, when):
    fake = Fake()
    caption = fake.loaded.caption

    def looked_at(images, paths):
        if when == "while it is looked at":
            eight[1].path.unlink(missing_ok=True)
        return caption(images, paths)

    def write(captions):
        if when != "while it is looked at":
            eight[1].path.unlink(missing_ok=True)
        if when == "while it is written" and "1.png" in captions:
            raise Refused("There is no picture 1.png.")
        assert when != "while it is looked at" or "1.png" not in captions
        kept = {
            name: caption for name, caption in captions.items() if name not in ("1.png", "5.png")
        }
        written.update(kept)
        return list(kept)

    fake.loaded.caption = looked_at
    progress = run(eight, fake, host, written, write=write)
    assert sorted(written) == ["0.png", "2.png", "3.png", "4.png", "6.png", "7.png"]
    assert [each["filename"] for each in progress.failed] == [
        "1.png"
    ] and "removed or renamed" in progress.failed[0]["reason"]
    assert (progress.done, progress.written, progress.skipped) == (8, 6, 1)
