"""Between two pieces of work: pause if the user asks for it, and let others have the model if they
wait for it.
"""

import logging
import time
from collections.abc import Callable

from ..base.contracts import CheckpointId
from .context import RunContext

log = logging.getLogger(__name__)
LOOK_AGAIN_SECONDS = 0.25


class GiveWay:
    """The borrower's side of `Host.give_way`. `stage` is what the run is in while it does not
    wait: "preparing" or "training".
    """

    def __init__(self, context: RunContext, *, stage: str) -> None:
        self._host = context.host
        self._control = context.control
        self._reporter = context.reporter
        self._shares = context.config.sharing == "share"
        self._stage = stage

    def is_due(self) -> bool:
        """Tell whether the user asks for a pause, or others wait for the model."""
        if self._control.pause_requested:
            return True
        return self._shares and self._host.others_are_waiting()

    def wait_for_checkpoint(self, checkpoint: CheckpointId) -> bool:
        """Wait until the checkpoint that a run trains is loaded, where users load others; False
        when asked to stop meanwhile.
        """
        while self._host.changes_checkpoints and not self._is_loaded(checkpoint):
            if self._control.should_stop():
                return False
            loaded = self._host.model_status().checkpoint or "none"
            self._report_waiting(
                "checkpoint",
                f"Paused: waiting for the checkpoint {checkpoint.name}; {loaded} is loaded.",
            )
            time.sleep(LOOK_AGAIN_SECONDS)
        self._report_going_on()
        return True

    def give_way(
        self,
        step: int,
        *,
        detach: Callable[[], None] = lambda: None,
        reattach: Callable[[], None] = lambda: None,
        while_paused: Callable[[], None] = lambda: None,
    ) -> bool:
        """Give the model back and take it again; False when asked to stop meanwhile.

        `detach` takes what is ours off the model, `reattach` puts it on again. `while_paused` is
        called again and again as long as the user wants a pause, which may begin while a picture is
        drawn.
        """
        pause_reported = False

        def may_go_on() -> bool:
            nonlocal pause_reported
            if not self._control.pause_requested or self._control.should_stop():
                pause_reported = False
                return True
            while_paused()
            if not pause_reported:
                self._report_waiting("user", "Paused.")
                pause_reported = True
            return False

        began = time.monotonic()
        detach()
        if may_go_on():
            self._report_waiting("", "Waiting for a picture that is being drawn.")
        has_model = self._host.give_way(
            until=may_go_on, on_wait=self._report_waiting, should_stop=self._control.should_stop
        )
        if has_model:
            reattach()
        log.info("gave way after step %d for %.3f s", step, time.monotonic() - began)
        self._report_going_on()
        return has_model

    def _is_loaded(self, checkpoint: CheckpointId) -> bool:
        status = self._host.model_status()
        if checkpoint.sha256 and status.sha256:
            return status.sha256 == checkpoint.sha256
        return status.checkpoint == checkpoint.name

    def _report_waiting(self, waiting_for: str, message: str) -> None:
        """Report what is waited for; "" for a picture, which is no pause."""
        stage = "paused" if waiting_for else self._reporter.status.stage
        self._reporter.update(stage=stage, waiting_for=waiting_for, message=message)

    def _report_going_on(self) -> None:
        self._reporter.update(stage=self._stage, waiting_for="", message=self._stage.capitalize())
