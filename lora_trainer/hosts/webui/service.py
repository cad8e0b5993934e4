"""The one `TrainingService` of a WebUI, made with its host, and closed when the WebUI ends."""

import dataclasses
import functools

from modules import restart, shared

from ...base.shutdown import close_at_end
from ...jobs.service import TrainingService
from ...jobs.storage import Limits
from .guard import allowed_roots, is_local
from .host import WebUIHost


@functools.cache
def training_service() -> TrainingService:
    """Return this process's one TrainingService. It survives "Reload UI", which runs scripts anew
    but keeps imported packages.
    """
    host = WebUIHost()
    roots = allowed_roots(host)
    service = TrainingService(
        host, allowed_roots=None if is_local() else roots, foreign_roots=roots, limits=_limits()
    )
    _close_at_end(service)
    return service


def _limits() -> Limits:
    """Return what is kept of finished jobs, as the WebUI's command line says."""
    names = {field.name: f"train_lora_{field.name}" for field in dataclasses.fields(Limits)}
    given = {name: getattr(shared.cmd_opts, option, None) for name, option in names.items()}
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _close_at_end(service: TrainingService) -> None:
    """Keep the running job's progress however the WebUI ends, also by its buttons, which call
    `os._exit` (restart.py:16-25).
    """
    close_at_end(service.close)
    stop_program = restart.stop_program

    def stop() -> None:
        service.close()
        stop_program()

    restart.stop_program = stop
