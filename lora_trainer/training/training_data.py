"""What a run trains on: the encoded pictures, the order of their batches, the objective, and which
pictures are kept out for validation.

Every batch and every draw depends on (seed, step) alone, so a resumed run is the same run.
"""

import dataclasses
import functools
from collections.abc import Iterator

from ..dataset.buckets import Bucket
from .batches import bucket_counts, epoch_batches
from .conditioning import Conditioner
from .encoded_dataset import Batch, EncodedSample, assemble
from .objective import NoiseDraw, Objective


@dataclasses.dataclass(frozen=True)
class StepSchedule:
    """How many steps a run has, and how many pictures are in each."""

    total_steps: int
    steps_per_epoch: int
    batch_size: int
    accumulation: int
    seed: int

    def batches_of(self, step: int, encoded: list[EncodedSample]) -> list[list[int]]:
        """Return the batches of a step, counted from 0, as lists of picture indices."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        buckets = tuple(item.sample.bucket for item in encoded)
        repeats = tuple(item.sample.repeats for item in encoded)
        batches = _epoch(buckets, repeats, self.batch_size, self.seed, epoch)
        first = step_in_epoch * self.accumulation
        return batches[first : first + self.accumulation]


@functools.lru_cache(maxsize=2)
def _epoch(
    buckets: tuple[Bucket, ...], repeats: tuple[int, ...], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    return epoch_batches(buckets, repeats, batch_size=batch_size, seed=seed, epoch=epoch)


@dataclasses.dataclass(frozen=True)
class DrawnBatch:
    """A batch with everything that was drawn for it: crops, captions, noise and timesteps.

    `number` counts all batches of the run; with `seed` it determines every draw. The last step of
    an epoch may have fewer batches than the others, hence `batches_in_step`.
    """

    batch: Batch
    captions: list[str]
    noise_draw: NoiseDraw
    seed: int
    number: int
    batches_in_step: int

    def __len__(self) -> int:
        return len(self.batch)

    def micro_batches(self, size: int) -> Iterator[slice]:
        """Divide the batch into slices of at most `size` pictures, 0 for the whole batch."""
        size = size or len(self)
        for start in range(0, len(self), size):
            yield slice(start, start + size)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The encoded pictures, how they are ordered, and how a prediction is judged.

    `validation_indices` are the pictures kept out of training. Their loss is computed every
    `validate_every` steps (0: every epoch) and after the last step.
    """

    encoded: list[EncodedSample]
    schedule: StepSchedule
    objective: Objective
    conditioner: Conditioner
    validation_indices: tuple[int, ...] = ()
    validate_every: int = 0

    def draw_batches(self, step: int) -> Iterator[DrawnBatch]:
        """Yield the batches whose gradients make up a step, counted from 0."""
        schedule, seed = self.schedule, self.schedule.seed
        batches = schedule.batches_of(step, self.encoded)
        for part, indices in enumerate(batches):
            number = step * schedule.accumulation + part
            batch = assemble(self.encoded, indices, seed=seed, number=number)
            captions = self.conditioner.draw_captions(batch, seed=seed, number=number)
            noise_draw = self.objective.draw(batch.latents.shape, seed=seed, number=number)
            yield DrawnBatch(batch, captions, noise_draw, seed, number, len(batches))

    def pictures_of(self, step: int) -> list[int]:
        """Return the indices of the pictures in a step's batches, each once, sorted."""
        batches = self.schedule.batches_of(step, self.encoded)
        return sorted({index for indices in batches for index in indices})

    def largest_batch(self) -> int:
        """Return how many pictures go through the UNet together at most; a bucket may hold fewer
        than the batch size.
        """
        buckets = [item.sample.bucket for item in self.encoded]
        counts = bucket_counts(buckets, [item.sample.repeats for item in self.encoded])
        return min(self.schedule.batch_size, max(counts.values()))

    def is_validated_after(self, step: int) -> bool:
        """Tell whether the validation loss is due after a step, counted from 1."""
        if not self.validation_indices:
            return False
        every = self.validate_every or self.schedule.steps_per_epoch
        return step % every == 0 or step == self.schedule.total_steps
