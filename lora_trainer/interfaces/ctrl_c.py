"""Ctrl-C on the command line: the first asks to stop, the second ends the program at once."""
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def asked_by_ctrl_c(sentence: str) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish to stop, answered by `sentence`; yields whether it was pressed."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(*_: Any) -> None:
        print(f"\n{sentence}", file=sys.stderr)
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
