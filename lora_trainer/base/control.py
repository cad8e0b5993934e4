"""What the outside asks of a run: stop, pause, go on, take a snapshot. The run looks at it between
steps.
"""

import threading


class Control:
    """Wishes of the user. Every method may be called from any thread, before the run has begun and
    after it has ended.
    """

    def __init__(self) -> None:
        self._stop, self._pause, self._snapshot, self._free_memory, self._interrupt = (
            threading.Event() for _ in range(5)
        )

    def stop(self) -> None:
        """End after the step; what is learned is saved."""
        self._stop.set()

    def interrupt(self) -> None:
        """End after the step because the program ends: the state is kept, and there is no time for
        more.
        """
        self._interrupt.set()
        self._stop.set()

    def pause(self, *, free_memory: bool = False) -> None:
        """Keep still after the step, and let others have the device; with `free_memory` also the
        LoRA's own memory on it.
        """
        (self._free_memory.set if free_memory else self._free_memory.clear)()
        self._pause.set()

    def resume(self) -> None:
        self._pause.clear()

    def take_snapshot(self) -> None:
        """Save the LoRA under its name and step after the step."""
        self._snapshot.set()

    def should_stop(self) -> bool:
        return self._stop.is_set()

    stop_requested = property(should_stop)

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
        """Tell whether a snapshot is wanted, and forget the wish."""
        wanted = self._snapshot.is_set()
        self._snapshot.clear()
        return wanted
