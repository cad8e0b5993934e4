"""The metrics of a training job for TensorBoard: scalars in an event file (by tensorboardX), a new
file each time the run goes on.

tensorboardX's own SummaryWriter hands events to a thread through a bounded queue; when a disk is
full the thread dies and the next `add_scalar` waits for ever. So the events are written here, with
its file format and its protocol buffers, and a refusal is only logged.
"""

import http.client
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
FLUSH_SECONDS = 2.0
TIMEOUT_SECONDS = 0.5
PORT = 6006  # TensorBoard's own default


class EventFile:
    """Scalars by step. Without a package that works, or on a disk that refuses, one warning is
    logged and nothing is written.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        """`purge_step`: of what earlier files hold, the steps from this one on are void."""
        self._folder = folder
        self._flushed_at = time.monotonic()
        self._writer: Any = None  # of tensorboardX, which may be missing
        self._try(lambda: self._open(purge_step))

    def add(self, step: int, **scalars: float | None) -> None:
        """Write the figures of a step; None is left out."""
        given = {name: value for name, value in scalars.items() if value is not None}
        if self._writer:
            self._try(lambda: self._add(step, given))

    def close(self) -> None:
        if self._writer:
            self._try(self._writer.close)
        self._writer = None

    def _open(self, purge_step: int | None) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        suffix = f".{time.time_ns()}"  # tensorboardX's own names are the same within a second
        self._writer = EventsWriter(str(self._folder / "events"), filename_suffix=suffix)
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(
                Event(wall_time=time.time(), step=purge_step, session_log=start)
            )
        self._writer.flush()

    def _add(self, step: int, scalars: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in scalars.items():
            event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._writer.write_event(event)
        if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:  # a flush waits for the disk
            self._flushed_at = time.monotonic()
            self._writer.flush()

    def _try(self, action: Callable[[], None]) -> None:
        """Write; whatever fails is logged, and nothing more is written."""
        try:
            action()
        except ImportError as error:
            log.warning("No TensorBoard figures: %s. To have them: pip install tensorboardX", error)
        except Exception as error:  # a package that may be there, in any version; it costs no run
            log.warning("The TensorBoard figures cannot be written to %s: %s", self._folder, error)
            self._writer = None


def find_tensorboard(port: int = PORT) -> str | None:
    """Return the URL of a TensorBoard that runs on this machine; None where nothing, or something
    else, responds at its port.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/data/environment")
        response = json.loads(connection.getresponse().read(100_000))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    is_tensorboard = isinstance(response, dict) and "data_location" in response
    return f"http://localhost:{port}/" if is_tensorboard else None
