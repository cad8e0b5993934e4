"""Ctrl-C and the end of the session on the command line: the first asks to stop, the second ends
the program at once.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def asked_by_ctrl_c(
    sentence: Callable[[], str],
) -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish to stop, answered by a sentence; yields whether it was
    pressed.
    """
    return _asked([signal.SIGINT], sentence, then=signal.default_int_handler)


def asked_by_termination(
    sentence: Callable[[], str],
) -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """Do the same for `kill` and for a terminal that is closed, where that is not ignored, as by
    nohup.
    """
    return _asked(
        [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN],
        sentence,
        then=signal.SIG_DFL,
    )


@contextlib.contextmanager
def _asked(
    numbers: list[int], sentence: Callable[[], str], *, then: Any
) -> Iterator[Callable[[], bool]]:
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def ask(*_: Any) -> None:
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
