"""Between two pieces of work: pause if the user says so, and let others have the model if they wait
for it.
"""

import logging
import time
from collections.abc import Callable

from ..base.contracts import Host
from ..base.control import Control

log = logging.getLogger(__name__)
LOOK_AGAIN_SECONDS = 0.25


class Sharing:
    """The borrower's side of `Host.give_way`. `tell(waiting_for, sentence)` hears why a run stands
    still, and ("", "") when it goes on.
    """

    def __init__(
        self, host: Host, control: Control, *, share: bool, tell: Callable[[str, str], None]
    ) -> None:
        self._host, self._control, self._share, self._tell = host, control, share, tell

    def is_wanted(self) -> bool:
        return self._control.pause_asked or (self._share and self._host.wanted())

    def wait_for_checkpoint(self, name: str, sha256: str | None) -> bool:
        """Wait until the checkpoint that a run trains is loaded, where users load others; False:
        told to stop meanwhile.
        """
        while self._host.changes_checkpoints and not self._is_loaded(name, sha256):
            if self._control.should_stop():
                return False
            self._tell(
                "checkpoint",
                f"Paused: waiting for the checkpoint {name};"
                f" {self._host.model_status().checkpoint or 'none'} is loaded.",
            )
            time.sleep(LOOK_AGAIN_SECONDS)
        self._tell("", "")
        return True

    def give_way(
        self,
        step: int,
        *,
        lift: Callable[[], None] = lambda: None,
        put_back: Callable[[], None] = lambda: None,
        while_paused: Callable[[], None] = lambda: None,
    ) -> bool:
        """Give the model back and come again: `lift` takes what is ours off it, `put_back` puts it
        on again. False: told to stop meanwhile.

        `while_paused` is called again and again as long as the user wants a pause, which may begin
        while a picture is drawn.
        """

        def may_go_on() -> bool:
            nonlocal is_told
            if not self._control.pause_asked or self._control.should_stop():
                is_told = False
                return True
            while_paused()
            if not is_told:
                self._tell("user", "Paused.")
                is_told = True
            return False

        began, is_told = time.monotonic(), False
        lift()
        if may_go_on():
            self._tell("", "Waiting for a picture that is being drawn.")
        here = self._host.give_way(
            until=may_go_on, say=self._tell, should_stop=self._control.should_stop
        )
        if here:
            put_back()
        log.info("gave way after step %d for %.3f s", step, time.monotonic() - began)
        self._tell("", "")
        return here

    def _is_loaded(self, name: str, sha256: str | None) -> bool:
        status = self._host.model_status()
        return status.sha256 == sha256 if sha256 and status.sha256 else status.checkpoint == name
