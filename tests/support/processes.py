"""Processes for tests that stop, kill or ask them: real ones, forked from one that has imported the
libraries already. To import them takes five seconds of work for each process otherwise.

`start` takes what `python` takes behind its options. Where nothing can be forked, and for another
code tree than this one, the process is an ordinary one.
"""

import array
import atexit
import contextlib
import functools
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Union

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).with_name("fork_server.py")
THREADS = {"OMP_NUM_THREADS": "1"}  # the same order of additions in every process


class Forked:
    """A process like that of subprocess.Popen: its output, standard error included, is a pipe."""

    def __init__(self, server: str, request: Mapping[str, object], output: IO[bytes] | None):
        self.returncode: int | None = None
        readable, writable = (None, os.dup(output.fileno())) if output else os.pipe()
        self.stdout = os.fdopen(readable, "rb") if readable is not None else io.BytesIO()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server)
        message = json.dumps(request).encode()
        descriptors = array.array("i", [writable]).tobytes()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        self._connection.sendmsg([len(message).to_bytes(8, "little")], rights)
        self._connection.sendall(message)
        os.close(writable)
        self._news = self._connection.makefile("rb")
        self.pid = int(self._news.readline())

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()
        self.stdout.close()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int(self._connection.recv(16, socket.MSG_PEEK) and self._said())
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("forked", timeout or 0) from None
        return self.returncode

    def _said(self) -> int:
        """Read the exit status, which is there, and let go of the connection."""
        self._connection.settimeout(None)
        status = int(self._news.readline())
        self._news.close()
        self._connection.close()
        return status

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[bytes, None]:
        said = self.stdout.read()
        self.wait(timeout)
        self.stdout.close()
        return said, None


Process = Union[Forked, "subprocess.Popen[bytes]"]


def start(
    arguments: Sequence[str],
    *,
    folder: Path,
    env: Mapping[str, str] | None = None,
    code: Path = REPOSITORY,
    output: IO[bytes] | None = None,
) -> Process:
    """Start `python *arguments`, which begin with `-m` or `-c`, in a folder. What it says, on
    standard error too, goes into a pipe or the file `output`.
    """
    env = {**os.environ, **(env or {}), **THREADS}
    if sys.platform == "linux" and code == REPOSITORY:
        request = {"arguments": [*arguments], "folder": str(folder), "env": env}
        return Forked(_server(), request, output)
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=env,
        cwd=folder,
        stdout=output or subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@functools.cache
def _server() -> str:
    """Start the process that others are forked from; return the socket that it listens at."""
    folder = tempfile.TemporaryDirectory(prefix="train-lora-tests-")
    address = os.path.join(folder.name, "socket")
    process = subprocess.Popen(
        [sys.executable, str(SERVER), address],
        cwd=REPOSITORY,
        env={**os.environ, **THREADS, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin and process.stdout
    assert process.stdout.readline() == b"ready\n"

    def end() -> None:
        process.communicate()  # it ends when its input does
        folder.cleanup()

    atexit.register(end)
    return address
