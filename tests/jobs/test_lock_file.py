"""A job's lock file: who holds it, who only asks."""

import subprocess
import sys

import pytest

from lora_trainer.jobs import lock_file

ASK = (
    "import sys, pathlib; from lora_trainer.jobs.lock_file import is_locked\n"
    "print(is_locked(pathlib.Path(sys.argv[1])))"
)


def ask_elsewhere(folder):
    """Ask in another process whether a folder is locked."""
    done = subprocess.run([sys.executable, "-c", ASK, str(folder)], capture_output=True, text=True)
    return done.stdout.strip() == "True"


def test_asking_in_the_same_process_does_not_give_the_lock_up(tmp_path):
    assert not lock_file.is_locked(tmp_path)  # there is no file yet
    with lock_file.locked(tmp_path):
        assert lock_file.is_locked(tmp_path) and ask_elsewhere(tmp_path)
    assert not lock_file.is_locked(tmp_path) and not ask_elsewhere(tmp_path)


def test_a_folder_that_another_works_in_cannot_be_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_file, "LOCK_SECONDS", 0.05)
    with lock_file.locked(tmp_path):
        with pytest.raises(OSError, match="another program works in it"):
            with lock_file.locked(tmp_path):
                pass
        assert lock_file.is_locked(tmp_path)
