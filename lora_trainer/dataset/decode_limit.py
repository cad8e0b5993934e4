"""How many pixels are decoded at the same time, counted over all threads of the process.

Decoding takes some 12 bytes a pixel while colours are converted; without a limit a page that asks
for many thumbnails at once would fill the memory.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator

TRIMMED_PIXELS = 4_000_000  # the memory of larger images is given back to the system at once


class DecodeLimit:
    """Lets at most `most_pixels` be decoded at the same time.

    Threads that come later wait in turn. A thread that holds room already may decode more images
    without waiting, so that it cannot wait for itself.
    """

    def __init__(self, most_pixels: int) -> None:
        self._most = most_pixels
        self._used = 0
        self._thread = threading.local()
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def room_for(self, pixels: int) -> Iterator[None]:
        """Wait until there is room; an image larger than the limit gets all of it."""
        if getattr(self._thread, "holds_room", False):
            yield
            return
        taken = min(pixels, self._most)
        self._take(taken)
        self._thread.holds_room = True
        try:
            yield
        finally:
            self._thread.holds_room = False
            if taken >= TRIMMED_PIXELS:
                _trim_memory()
            self._give_back(taken)

    def _take(self, pixels: int) -> None:
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._used + pixels <= self._most)
            self._used += pixels

    def _give_back(self, pixels: int) -> None:
        with self._changed:
            self._used -= pixels
            self._changed.notify_all()


def _trim_memory() -> None:
    """Give free memory back to the system; glibc keeps it, for each thread that decoded much."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
