"""The end of the program, by itself or by a signal: what must be closed is closed first."""

import atexit
import functools
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
)


def close_at_end(close: Callable[[], None]) -> None:
    """Call `close` before the program ends, by itself or by a signal; then the signal does what it
    did before. A second signal is not held up.
    """
    atexit.register(close)
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        before = signal.getsignal(number)
        if before is not None and before != signal.SIG_IGN:  # not Python's; ignored, as by nohup
            signal.signal(number, functools.partial(_end, close, before))


def _end(close: Callable[[], None], before: Handler, number: int, frame: FrameType | None) -> None:
    signal.signal(number, before)
    close()
    if callable(before):
        before(number, frame)
    else:
        os.kill(os.getpid(), number)
