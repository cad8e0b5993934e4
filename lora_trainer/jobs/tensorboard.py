"""The figures as TensorBoard reads them: scalars in an event file (tensorboardX), a new file each
time the run goes on.

tensorboardX's own SummaryWriter hands events to a thread through a bounded queue; when a disk is
full the thread dies and the next `add_scalar` waits for ever. So the events are written here, with
its file format and its protocol buffers, and a refusal is only logged.
"""

import http.client
import json
import logging
import time
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
FLUSH_SECONDS, ANSWER_SECONDS = 2.0, 0.5
PORT = 6006  # TensorBoard's own default


class EventFile:
    """Scalars by step. Without a package that works, or on a disk that refuses, it says so once and
    writes nothing.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        """`purge_step`: of what earlier files hold, the steps from this one on are void."""
        self._folder, self._writer, self._flushed_at = folder, None, time.monotonic()
        self._try(self._open, purge_step)

    def add(self, step: int, **scalars: float | None) -> None:
        """Write the figures of a step; None is left out."""
        if self._writer:
            self._try(
                self._add,
                step,
                {name: value for name, value in scalars.items() if value is not None},
            )

    def close(self) -> None:
        if self._writer:
            self._try(self._writer.close)
        self._writer = None

    def _open(self, purge_step: int | None) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(
            str(self._folder / "events"), filename_suffix=f".{time.time_ns()}"
        )  # two files in a second are two files
        if purge_step is not None:
            self._writer.write_event(
                Event(
                    wall_time=time.time(),
                    step=purge_step,
                    session_log=SessionLog(status=SessionLog.START),
                )
            )
        self._writer.flush()

    def _add(self, step: int, scalars: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in scalars.items():
            self._writer.write_event(
                Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            )
        if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:  # a flush waits for the disk
            self._flushed_at = time.monotonic()
            self._writer.flush()

    def _try(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except ImportError as error:
            log.warning("No TensorBoard figures: %s. To have them: pip install tensorboardX", error)
        except Exception as error:  # a package that may be there, in any version; it costs no run
            log.warning("The TensorBoard figures cannot be written to %s: %s", self._folder, error)
            self._writer = None


def find_tensorboard(port: int = PORT) -> str | None:
    """Return the address of a TensorBoard that runs on this machine; None where nothing, or
    something else, answers at its port.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/data/environment")
        answer = json.loads(connection.getresponse().read(100_000))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return (
        f"http://localhost:{port}/"
        if isinstance(answer, dict) and "data_location" in answer
        else None
    )
