"""Writes the LoRA of a run as it is at a moment: tensors, metadata and card. Needs no model, so
that it can write after the model was given back.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from ..base.contracts import ModelFacts
from ..lora import save
from ..settings.config import TrainConfig
from ..training.train_state import TrainState
from . import lora_metadata
from .plan import Plan

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoraWriter:
    """`export_names` are the layers' names in kohya's layout, by path."""

    config: TrainConfig
    plan: Plan
    model: ModelFacts
    export_names: Mapping[str, str]
    train_state: TrainState
    session_id: float

    def write(self, path: Path) -> None:
        """Write the LoRA with its metadata and card; raises `Refused`."""
        adapters = self.train_state.adapters
        tensors = save.to_tensors(
            self.train_state.weights_to_save(),
            alphas=adapters.alphas,
            export_name=self.export_names.__getitem__,
            dtype=save.DTYPES[self.config.save_precision],
        )
        save.save(path, tensors, self._metadata(path.stem))
        try:
            self._write_card(path)
        except OSError as error:
            log.warning(
                "the LoRA is saved, but its card %s could not be written: %s",
                path.with_suffix(".json").name,
                error,
            )

    def _metadata(self, name: str) -> dict[str, str]:
        adapters = self.train_state.adapters
        return lora_metadata.metadata(
            dataclasses.replace(self.config, output_name=name),
            self.model,
            adapters.rank_alphas,
            adapters.spec,
            self.plan.samples,
            lora_metadata.RunFigures(
                steps=self.train_state.step,
                total_steps=self.plan.schedule.total_steps,
                steps_per_epoch=self.plan.schedule.steps_per_epoch,
                started_at=self.session_id,
                loss_average=self.train_state.loss_average,
            ),
        )

    def _write_card(self, path: Path) -> None:
        config, train_state = self.config, self.train_state
        first_layer = next(iter(train_state.adapters.rank_alphas.values()))
        notes = (
            f"{save.NOTES} on {self.model.name}: {self.plan.count('train')} pictures,"
            f" {train_state.step} steps, rank {first_layer.rank}."
        )
        save.save_card(
            path,
            family=self.model.family,
            trigger_word=config.trigger_word,
            preferred_weight=config.preferred_weight,
            notes=notes,
            negative_text=config.negative_text,
        )
