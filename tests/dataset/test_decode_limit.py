"""How many pixels are decoded at the same time, over all threads, and the memory that it takes."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.dataset import images
from lora_trainer.dataset.decode_limit import DecodeLimit

REPOSITORY = Path(__file__).parents[2]
RUN = """
import sys, threading, psutil
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lora_trainer.editor import picture_files
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.images import read_facts
path, process, most = Path(sys.argv[2]), psutil.Process(), [0]
read_facts(path, thorough=False)
before = process.memory_info().rss
act = {
    "preview": lambda: picture_files.preview(path),
    "crop": lambda: picture_files.training_crop(path, Bucket(64, 64)),
}[sys.argv[3]]
made = []
threads = [threading.Thread(target=lambda: made.append(act())) for _ in range(5)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    most[0] = max(most[0], process.memory_info().rss - before)
    threads[0].join(0.002)
assert len(made) == 5 and all(data[:2] == b"\\xff\\xd8" for data in made)  # JPEG
print(most[0] // 2**20)
"""


@pytest.mark.parametrize("act, most_mib", [("preview", 450), ("crop", 800)])
def test_five_pictures_at_once_take_the_memory_of_one(tmp_path, act, most_mib):
    """Each of 154 kB and just below 40 million pixels; before it took 600 MB for each."""
    pytest.importorskip("psutil")
    Image.new("RGBA", (6300, 6300), (255, 0, 0, 128)).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(REPOSITORY), str(tmp_path / "a.png"), act],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert int(done.stdout) < most_mib, f"{done.stdout} MiB"


def test_pixels_are_counted_over_all_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_decode_limit", DecodeLimit(3 * 64 * 64))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    lock, inside, most = threading.Lock(), [0], [0]

    def decode():
        with (
            images.opened(tmp_path / "a.png"),
            images.opened(tmp_path / "a.png"),
        ):  # the second belongs to the first
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=decode) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most[0] == 3 and inside[0] == 0


def test_a_picture_larger_than_the_room_gets_all_of_it_and_gives_it_back(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_decode_limit", DecodeLimit(100))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for _ in range(2):
        with pytest.raises(Refused), images.opened(tmp_path / "a.png"):
            raise ValueError("in the middle")
    done = threading.Thread(target=lambda: images.decode_thumbnail(tmp_path / "a.png", 32))
    done.start()
    done.join(10)
    assert not done.is_alive()
