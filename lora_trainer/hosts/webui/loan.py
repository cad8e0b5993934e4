"""The WebUI's loaded checkpoint as it is lent for training: taken, given back in between so that
pictures can be drawn, and taken again if it is still the same.

What must be so meanwhile is in `model_state`.
"""

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from modules import call_queue, devices, sd_models

from ...base.errors import ErrorCode, Refused
from ...base.fingerprint import fingerprint_of_weights
from .checkpoint import status_of
from .model import FAMILIES, WebUIModel
from .model_movers import ModelMovers
from .model_state import TRAINING_CONTEXTS

if TYPE_CHECKING:
    from modules.sd_models_types import WebuiSdModel

PAUSE_SECONDS = 0.01
LET_IN_SECONDS = 1.0
RETRY_SECONDS = 0.25


class Loan:
    """Lends the loaded checkpoint to one thread.

    `hold_queue` is a context manager that holds the WebUI's queue, `is_wanted` tells whether
    somebody waits for it.
    """

    def __init__(
        self,
        hold_queue: Callable[[], contextlib.AbstractContextManager[None]],
        is_wanted: Callable[[], bool],
        movers: ModelMovers,
    ) -> None:
        self._hold_queue = hold_queue
        self._is_wanted = is_wanted
        self._movers = movers
        self._held = contextlib.ExitStack()  # what is undone when the model is given back
        self._filename = ""  # of the checkpoint
        self.base_model: WebUIModel | None = None

    def begin(self) -> WebUIModel:
        """Wait for the queue and take the model; raises `Refused` when it cannot train."""
        with contextlib.ExitStack() as stack:
            self._hold(stack)
            sd_model = sd_models.model_data.sd_model
            if reason := status_of(sd_model).reason:
                raise Refused(reason, code=ErrorCode.NOT_TRAINABLE)
            self._filename = sd_model.sd_checkpoint_info.filename
            self._enter_contexts(stack, sd_model)
            self.base_model = FAMILIES[status_of(sd_model).family](sd_model)
            self.base_model.fingerprint = fingerprint_of_weights(self.base_model.unet)
            self._held = stack.pop_all()
        return self.base_model

    def give_back(self) -> None:
        self._held.close()

    def give_way(
        self,
        *,
        until: Callable[[], bool],
        on_wait: Callable[[str, str], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Give the model back, wait until it may and can be had again, and take it; as
        `Host.give_way`.
        """
        is_wanted = self._is_wanted()
        self.give_back()
        _let_waiting_thread_in(is_wanted)
        while not should_stop():
            if until():
                problem = self._take_again()
                if problem is None:
                    return True
                on_wait("checkpoint", problem)
            _sleep(RETRY_SECONDS, should_stop)
        return False

    def _take_again(self) -> str | None:
        """Take the model if it is as it was at the start; else return what is wrong, as a sentence
        for the user.
        """
        with contextlib.ExitStack() as stack:
            self._hold(stack)
            sd_model = sd_models.model_data.sd_model
            if problem := self._why_not_ours(sd_model):
                return problem
            self._enter_contexts(stack, sd_model)
            fingerprint = fingerprint_of_weights(sd_model.model.diffusion_model)
            if fingerprint != self.base_model.fingerprint:
                return (
                    f"Paused: the weights of {self.base_model.name} are not those of the start; a"
                    " setting or another extension changed them. Load the checkpoint again."
                )
            self.base_model.adopt(sd_model)
            self._held = stack.pop_all()
        return None

    def _hold(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(self._hold_queue())
        stack.enter_context(self._movers.blocked())

    def _enter_contexts(self, stack: contextlib.ExitStack, sd_model: "WebuiSdModel") -> None:
        stack.callback(devices.torch_gc)
        for context in TRAINING_CONTEXTS:
            stack.enter_context(context(sd_model))

    def _why_not_ours(self, sd_model: "WebuiSdModel") -> str | None:
        name = self.base_model.name
        if sd_model is None:
            return f"Paused: waiting for the checkpoint {name}; none is loaded."
        info = sd_model.sd_checkpoint_info
        if info.filename != self._filename:
            return f"Paused: waiting for the checkpoint {name}; {info.name_for_extra} is loaded."
        reason = status_of(sd_model).reason
        return f"Paused: waiting for the checkpoint {name}. {reason}" if reason else None


def _let_waiting_thread_in(is_wanted: bool) -> None:
    """Wait until a thread that waited for the queue's lock has it.

    A released lock goes to the quickest thread, which would be ours; and a thread that was woken is
    in no list of waiting ones any more.
    """
    time.sleep(PAUSE_SECONDS)
    lock = getattr(call_queue.queue_lock, "_lock", None)
    if not is_wanted or lock is None:
        return
    deadline = time.monotonic() + LET_IN_SECONDS
    while not lock.locked() and time.monotonic() < deadline:
        time.sleep(0.001)


def _sleep(seconds: float, should_stop: Callable[[], bool]) -> None:
    """Sleep, but not longer than until `should_stop`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not should_stop():
        time.sleep(0.01)
