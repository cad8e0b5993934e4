"""Training states on disk: one safetensors file each, `step-000123.safetensors`, with the facts as
JSON in its header.

One file, written beside and then moved into place, is either there whole or not at all; a digest in
the header finds what a disk damaged later. Nothing here is ever unpickled.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from ..base.files import remove_leftovers, write_atomically

log = logging.getLogger(__name__)
FORMAT = 2
_NAME = re.compile(r"step-(\d+)\.safetensors")


@dataclasses.dataclass(frozen=True)
class State:
    """A moment of a run: the tensors to go on with, and `facts`, which are plain JSON: a train
    state's own (`TrainStateFacts`), and those of its run.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    facts: Mapping[str, object]

    def free_tensors(self) -> None:
        """Forget the tensors, once a train state has copies of them; step and facts stay."""
        self.tensors.clear()


def save(folder: Path, state: State, *, keep: int) -> Path:
    """Write a state and remove all but the newest `keep`; raises OSError when the disk refuses, and
    then removes nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu").contiguous() for name, tensor in state.tensors.items()
    }
    header = {
        "format": str(FORMAT),
        "facts": json.dumps({**state.facts, "step": state.step}),
        "digest": _digest(tensors),
    }
    path = folder / f"step-{state.step:06}.safetensors"
    write_atomically(path, safetensors.torch.save(tensors, header))
    prune(folder, keep=keep, newest=path)
    return path


def steps(folder: Path) -> list[int]:
    """Return the steps of the states in a folder, newest first, from the file names alone."""
    names = [path.name for path in folder.glob("step-*.safetensors")]
    matches = [match for match in map(_NAME.fullmatch, names) if match]
    return sorted((int(match[1]) for match in matches), reverse=True)


def latest(folder: Path) -> State | None:
    """Read the newest state that is whole; None when there is none. Leftovers of a killed save are
    removed, damaged states get another ending; those of a newer version stay as they are.
    """
    remove_leftovers([folder])
    for step in steps(folder):
        path = _path(folder, step)
        if state := _read(path):
            return state
        if _is_newer(path):
            log.warning("%s was saved by a newer version of Train LoRA, and is kept", path.name)
            continue
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(".damaged"))
    return None


def has_newer(folder: Path) -> bool:
    """Tell whether a newer version of Train LoRA has saved a state in a folder."""
    return any(_is_newer(_path(folder, step)) for step in steps(folder))


def latest_facts(folder: Path) -> Mapping[str, object] | None:
    """Read the facts of the newest readable state without its tensors; None when there is none."""
    for step in steps(folder):
        if facts := _facts(_path(folder, step)):
            return facts
    return None


def _path(folder: Path, step: int) -> Path:
    """Return the file of a step, however many zeros its name has."""
    for path in folder.glob("step-*.safetensors"):
        match = _NAME.fullmatch(path.name)
        if match and int(match[1]) == step:
            return path
    raise FileNotFoundError(f"no state of step {step} in {folder}")


def _facts(path: Path) -> Mapping[str, Any] | None:
    try:
        header = _header(path)
        facts = json.loads(header["facts"])
        return facts if header["format"] == str(FORMAT) and isinstance(facts, dict) else None
    except (OSError, safetensors.SafetensorError, KeyError, ValueError):
        return None


def _is_newer(path: Path) -> bool:
    try:
        return int(_header(path)["format"]) > FORMAT
    except (OSError, safetensors.SafetensorError, KeyError, ValueError):
        return False


def _header(path: Path) -> Mapping[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata() or {}


def _read(path: Path) -> State | None:
    facts = _facts(path)
    if facts is None:
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            digest = file.metadata().get("digest")
        # Not mapped: Windows could not replace a mapped file.
        tensors = safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError):
        return None
    return State(int(facts["step"]), tensors, facts) if digest == _digest(tensors) else None


def prune(folder: Path, *, keep: int, newest: Path | None = None) -> None:
    """Remove all states but those of the `keep` highest steps, and `newest`, the last one
    written.
    """
    for step in steps(folder)[keep:]:
        old = _path(folder, step)
        if old != newest:
            with contextlib.suppress(OSError):  # held open on Windows; the next time, then
                old.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        numbers = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(numbers.data)
    return digest.hexdigest()
