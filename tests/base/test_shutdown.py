"""The end of the program by a signal: what is to be closed is closed, and then the signal does what
it always did.
"""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")
# As the WebUI: Ctrl-C ends it at once, without its `finally` and `atexit`.
PROGRAM = """
    import os, signal, sys, time
    from lora_trainer.base.shutdown import close_at_end
    signal.signal(signal.SIGINT, lambda number, frame: (print("the WebUI's own", flush=True), os._exit(7)))
    if "ignored" in sys.argv:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    close_at_end(lambda: print("closed", flush=True))
    print("ready", flush=True)
    if "ends" in sys.argv:
        sys.exit(3)
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    time.sleep(0.5)
    os._exit(9)
"""  # noqa: E501


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["SIGINT"], 7, "ready closed the WebUI's own"),
        (["SIGTERM"], -signal.SIGTERM, "ready closed"),
        (["SIGHUP"], -signal.SIGHUP, "ready closed"),
        (["SIGHUP", "ignored"], 9, "ready"),
        (["SIGINT", "ends"], 3, "ready closed"),
    ],
)
def test_it_is_closed_and_then_ends_as_ever(arguments, status, said):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, " ".join(done.stdout.splitlines())) == (status, said), done.stderr
