"""Ctrl-C and the end of the session on the command line: the first asks to stop, the second ends
the program at once.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | signal.Handlers
TERMINATION = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def asked_by_ctrl_c(
    sentence: Callable[[], str],
) -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """Make the first Ctrl-C a request to stop, and print a sentence then.

    Yields a function that tells whether it was pressed.
    """
    return _on_signals([signal.SIGINT], sentence, then=signal.default_int_handler)


def asked_by_termination(
    sentence: Callable[[], str],
) -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """Do the same for `kill` and a terminal that is closed, unless that is ignored (nohup)."""
    numbers = [number for number in TERMINATION if signal.getsignal(number) is not signal.SIG_IGN]
    return _on_signals(numbers, sentence, then=signal.SIG_DFL)


@contextlib.contextmanager
def _on_signals(
    numbers: list[int], sentence: Callable[[], str], *, then: Handler
) -> Iterator[Callable[[], bool]]:
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def ask(*_: object) -> None:
        asked.set()
        for number in numbers:
            signal.signal(number, then)
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"\n{sentence()}", file=sys.stderr)

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
