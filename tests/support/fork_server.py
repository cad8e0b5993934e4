"""The process from which tests fork others (see `processes.py`): imports what all of them import,
then forks whenever somebody connects, until its standard input ends.
"""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

LIBRARIES = (
    "lora_trainer.cli.main",
    "lora_trainer.hosts.standalone.host",
    "tests.conftest",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "transformers.models.clip.modeling_clip",
    "tensorboardX",
)


def serve(address: str) -> dict[str, Any]:
    """Fork for everyone who connects. Returns what was asked for, in the new process only."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # a WebUI's packages lack some
            importlib.import_module(name)
    gc.freeze()  # so that the collector does not copy what is shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in readable:
                os._exit(0)
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return keep(connection)
            connection.close()


def keep(connection: socket.socket) -> dict[str, Any]:
    """Fork the process, say its id, and when it has ended its status. Returns in that process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, output = received(connection)
    pid = os.fork()
    if pid:
        os.close(output)
        connection.sendall(b"%d\n" % pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError):  # the test has ended before
            connection.sendall(b"%d\n" % status)
        os._exit(0)
    connection.close()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    return request


def received(connection: socket.socket) -> tuple[dict[str, Any], int]:
    """Read a request and the descriptor of the pipe for what the process says."""
    descriptors = array.array("i")
    size, rights, _, _ = connection.recvmsg(8, socket.CMSG_LEN(descriptors.itemsize))
    descriptors.frombytes(rights[0][2][: descriptors.itemsize])
    with connection.makefile("rb") as file:
        return json.loads(file.read(int.from_bytes(size, "little"))), descriptors[0]


def end(status: int) -> NoReturn:
    """End as Python does, but without giving back each object, which copies all that is shared."""
    threading._shutdown()  # waits for threads, as multiprocessing does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def status_of(ended: SystemExit) -> int:
    """Return the exit status that `sys.exit` asks for; a text is said."""
    if isinstance(ended.code, str):
        print(ended.code, file=sys.stderr)
        return 1
    return ended.code or 0


def run(request: dict[str, Any]) -> None:
    """Do what `python` does with these arguments."""
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    option, program, *arguments = request["arguments"]
    sys.argv = [option, *arguments]
    sys.path[0] = ""  # the folder, as with -m and -c
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    request = serve(sys.argv[1])
    try:
        run(request)
    except SystemExit as ended:
        end(status_of(ended))
    except BaseException:
        traceback.print_exc()
        end(1)
    end(0)
