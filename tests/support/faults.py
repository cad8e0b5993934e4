"""Faults that are put into a run."""

import errno
import os

from lora_trainer.base import files

OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of"
    " which 512.00 MiB is free. Including non-PyTorch memory"
)


def failing(original, when, error=None, spoil=None):
    """Wrap a function so that its calls with the numbers in `when`, counted from 1, fail or are
    spoiled.
    """
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) in when and error:
            raise error
        result = original(*args, **kwargs)
        return spoil(result) if len(calls) in when and spoil else result

    wrapped.calls = calls
    return wrapped


def refuse_writes(monkeypatch, where, *, code=errno.ENOSPC, times=10**9):
    """Every write into the folder fails, the first `times` times."""
    original, count = files.write_atomically, []

    def write(path, data, **options):
        if where in path.parents and len(count) < times:
            count.append(path.name)
            raise OSError(code, os.strerror(code))
        return original(path, data, **options)

    for module in ("base.files", "training.state_files", "lora.save"):
        monkeypatch.setattr(f"lora_trainer.{module}.write_atomically", write)
    return count
