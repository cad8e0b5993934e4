"""Requests of the user to a run: stop, pause, go on, save a snapshot. The run looks at them between
its steps.
"""

import threading


class Control:
    """Every method may be called from any thread, before the run has begun and after it has
    ended.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._interrupt = threading.Event()
        self._pause = threading.Event()
        self._free_memory = threading.Event()
        self._snapshot = threading.Event()

    def stop(self) -> None:
        """End after the step; what is trained so far is saved."""
        self._stop.set()

    def interrupt(self) -> None:
        """End after the step because the program ends: the state is kept, and there is no time for
        more.
        """
        self._interrupt.set()
        self._stop.set()

    def pause(self, *, free_memory: bool = False) -> None:
        """Wait after the step and let others have the device; with `free_memory` also the memory
        that the LoRA itself takes there.
        """
        if free_memory:
            self._free_memory.set()
        else:
            self._free_memory.clear()
        self._pause.set()

    def resume(self) -> None:
        """End the pause."""
        self._pause.clear()

    def take_snapshot(self) -> None:
        """Save a snapshot of the LoRA after the step."""
        self._snapshot.set()

    def should_stop(self) -> bool:
        """Tell whether the run is to end, for whatever reason."""
        return self._stop.is_set()

    @property
    def interrupt_requested(self) -> bool:
        return self._interrupt.is_set()

    @property
    def pause_requested(self) -> bool:
        return self._pause.is_set()

    @property
    def free_memory_requested(self) -> bool:
        """Whether the pause is to free memory, too."""
        return self._free_memory.is_set()

    def pop_snapshot_request(self) -> bool:
        """Tell whether a snapshot is requested, and forget the request."""
        requested = self._snapshot.is_set()
        self._snapshot.clear()
        return requested
