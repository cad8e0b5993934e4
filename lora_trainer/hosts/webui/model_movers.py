"""The WebUI's functions that move the loaded model between devices, made to wait for training."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from modules import sd_models

if TYPE_CHECKING:
    from modules.sd_models_types import WebuiSdModel

Move = Callable[["WebuiSdModel"], None]


class ModelMovers:
    """Makes the WebUI's functions that move the model wait while a training step uses it; the
    buttons that unload and load the checkpoint take no lock.
    """

    FUNCTIONS = ("send_model_to_cpu", "send_model_to_device", "send_model_to_trash")

    def __init__(self) -> None:
        self._lock = threading.RLock()  # held by whoever uses or moves the model
        self._waiting = 0
        self._counter = threading.Lock()  # held to change `_waiting`

    def is_waited_for(self) -> bool:
        """Tell whether the WebUI waits to move the model."""
        return self._waiting > 0

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Keep the WebUI from moving the model inside the block."""
        with self._lock:
            yield

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Let the WebUI's functions wait for `blocked` to end, inside the block."""
        originals = {name: getattr(sd_models, name) for name in self.FUNCTIONS}
        try:
            for name, original in originals.items():
                setattr(sd_models, name, self._waiting_version(original))
            yield
        finally:
            for name, original in originals.items():
                setattr(sd_models, name, original)

    def _waiting_version(self, original: Move) -> Move:
        def move(model: "WebuiSdModel") -> None:
            with self._counter:
                self._waiting += 1
            try:
                with self._lock:
                    original(model)
            finally:
                with self._counter:
                    self._waiting -= 1

        return move
