"""What a training state says of its run, so that a later one can tell what has changed (resume.py).
The keys are those of the states on disk; those of older versions lack settings that came later.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict, cast

import torch

from .. import __version__
from ..base.contracts import BaseModel
from ..base.errors import Stopped
from ..base.fingerprint import fingerprint_of_file, fingerprint_of_text
from ..dataset.sample import Sample
from ..settings.config import TrainConfig
from ..settings.setting import SettingValue
from ..training.compute_mode import ModeOverrides
from ..training.state_files import State
from .plan import Plan


class SampleFacts(TypedDict):
    """A sample: fingerprints of its picture, caption and mask, and its place in the run."""

    content: str
    caption: str
    repeats: int
    bucket: list[int]  # width and height in pixels
    role: str
    mask: str | None


class RunFacts(TypedDict):
    """What is known of a run without its model; `pictures` by name."""

    version: str
    torch: str
    config: Mapping[str, SettingValue]
    total_steps: int
    pictures: dict[str, SampleFacts]


class ModelIdentity(TypedDict):
    """A base model and how it is used, as plain values."""

    name: str
    family: str
    variant: str
    prediction_type: str
    zero_terminal_snr: bool
    sha256: str | None
    fingerprint: str
    dtype: str
    encoding: str


class PreparedFacts(RunFacts):
    """What is known when the steps begin; `session` is the run's id."""

    base_model: ModelIdentity
    session: float


class SavedFacts(PreparedFacts):
    """All that a training state says of its run; `forced` is how the compute mode differs from the
    one that was chosen.
    """

    forced: ModeOverrides
    snapshots: list[str]
    elapsed_seconds: float


def saved_facts(state: State) -> SavedFacts:
    """Return what a training state says of its run."""
    return cast(SavedFacts, state.facts)


def run_facts(
    config: TrainConfig, plan: Plan, *, should_stop: Callable[[], bool] = lambda: False
) -> RunFacts:
    """Describe a run so that `check_resume` can tell later what has changed; reads every picture
    once. Raises OSError, and `Stopped` when asked to stop.
    """
    pictures: dict[str, SampleFacts] = {}
    contents: dict[Path, str] = {}
    for sample in plan.samples:
        if should_stop():
            raise Stopped
        name = _name(sample.picture.path, config) + _in_size(sample.resolution_px, config)
        pictures[name] = _sample_facts(sample, contents)
    return {
        "version": __version__,
        "torch": torch.__version__,
        "config": config.resolved(),
        "total_steps": plan.schedule.total_steps,
        "pictures": pictures,
    }


def model_facts(base_model: BaseModel) -> ModelIdentity:
    """Describe a base model for `compare_models`."""
    return {
        "name": base_model.name,
        "family": base_model.family,
        "variant": base_model.variant,
        "prediction_type": base_model.prediction_type,
        "zero_terminal_snr": base_model.zero_terminal_snr,
        "sha256": base_model.sha256,
        "fingerprint": base_model.fingerprint,
        "dtype": str(base_model.dtype),
        "encoding": base_model.encoding_key(),
    }


def _name(path: Path, config: TrainConfig) -> str:
    if path.is_relative_to(config.train_data_dir):
        path = path.relative_to(config.train_data_dir)
    return path.as_posix()


def _in_size(resolution: int, config: TrainConfig) -> str:
    """Return what tells a picture in another resolution from the same in the main one, whose name
    is as it always was.
    """
    return "" if resolution == config.resolution else f" in {resolution} px"


def _sample_facts(sample: Sample, contents: dict[Path, str]) -> SampleFacts:
    """Describe a sample; `contents` are the fingerprints of pictures that were read already."""
    path, bucket = sample.picture.path, sample.bucket
    if path not in contents:
        contents[path] = fingerprint_of_file(path)
    return {
        "content": contents[path],
        "caption": fingerprint_of_text(sample.caption),
        "repeats": sample.repeats,
        "bucket": [bucket.width, bucket.height],
        "role": sample.role,
        "mask": fingerprint_of_file(sample.mask) if sample.mask else None,
    }
