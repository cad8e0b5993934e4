"""What is tried when memory runs out or a number is not finite: go back to weights that are whole,
compute in another mode (`compute_mode.py` knows which), and do the same again.
"""

import logging
import traceback
from collections.abc import Callable
from typing import TypeVar

from ..base.errors import NotFinite, OutOfMemory
from . import precision
from .compute_mode import (
    ModeChange,
    describe_out_of_memory,
    is_out_of_memory,
    with_less_memory,
    with_safer_numbers,
)
from .model_patches import ModelPatches
from .train_state import TrainState
from .training_data import TrainingData

log = logging.getLogger(__name__)
Outcome = TypeVar("Outcome")


class Recovery:
    """Repeats what failed in a run, in a compute mode with less memory or safer numbers.

    `may_save_memory` False lets the first lack of memory end the run. `roll_back` sets the train
    state back to its last state on disk, for when its weights were spoiled; None where there is no
    such state. `warn` takes a sentence for the user.
    """

    def __init__(
        self,
        patches: ModelPatches,
        train_state: TrainState,
        training_data: TrainingData,
        *,
        may_save_memory: bool = True,
        roll_back: Callable[[], None] | None = None,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.warn = warn
        self._patches = patches
        self._train_state = train_state
        self._training_data = training_data
        self._may_save_memory = may_save_memory
        self._roll_back = roll_back

    def retry(self, action: Callable[[], Outcome], *, within_step: bool = True) -> Outcome:
        """Return what `action` returns, repeating it as long as there is something left to try.

        `within_step`: the action takes the next step; else it comes after the last one. Raises
        `NotFinite` or `OutOfMemory` when nothing is left; the weights are then still finite, unless
        they could not be rolled back.
        """
        while True:
            try:
                return action()
            except NotFinite as error:
                failure: NotFinite | OutOfMemory = error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                finished = self._train_state.step
                step = finished + 1 if within_step else finished
                failure = OutOfMemory(step, describe_out_of_memory(error))
                # As text: a record of the exception itself would keep the step's tensors.
                log.info("memory ran out at step %d:\n%s", step, traceback.format_exc())
            # Only out here, after the except block, are the failed step's tensors gone.
            self._recover(failure)

    def _recover(self, failure: NotFinite | OutOfMemory) -> None:
        """Free memory, go back to whole weights and change the compute mode; raise the failure
        when nothing is left to try.
        """
        self._train_state.optimizer.zero_grad(set_to_none=True)
        precision.free_memory(self._patches.base_model.device)
        rolled_back = self._roll_back_spoiled_weights(failure)
        change = self._next_mode(failure)
        if change is None:
            raise failure
        since = f"from step {self._train_state.step} " if rolled_back else ""
        self.warn(f"{failure} Going on {since}with {change.description}.")
        self._patches.change(change.compute_mode)
        if isinstance(failure, NotFinite):
            self._train_state.set_compute_dtype(change.compute_mode.dtype)

    def _roll_back_spoiled_weights(self, failure: NotFinite | OutOfMemory) -> bool:
        """Go back to the last state on disk if some weights were changed and others not, or are not
        finite; return whether that was so.
        """
        train_state = self._train_state
        if not train_state.in_optimizer_step and train_state.adapters.are_finite():
            return False
        if self._roll_back is None:
            raise failure
        self._roll_back()
        return True

    def _next_mode(self, failure: NotFinite | OutOfMemory) -> ModeChange | None:
        """Return what to change in the compute mode; None when nothing is left to try."""
        compute_mode, base_model = self._patches.compute_mode, self._patches.base_model
        if isinstance(failure, NotFinite):
            has_bf16 = precision.has_bf16(base_model.device)
            return with_safer_numbers(compute_mode, base_model.dtype, has_bf16=has_bf16)
        if not self._may_save_memory:
            return None
        return with_less_memory(
            compute_mode,
            self._training_data.largest_batch(),
            needs_encoders=self._training_data.conditioner.encodes_each_step,
        )
