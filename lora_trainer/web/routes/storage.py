"""The REST routes of the disk: what jobs, training states, trash and models take, and clearing
them; and where a TensorBoard runs.
"""

from fastapi import APIRouter, Body

from ...jobs.service import TrainingService
from ...jobs.storage import CLEARABLE, Cleared, StorageReport
from ...jobs.tensorboard import find_tensorboard
from ..bodies import JsonBody, Text, WholeNumber
from ..responses import an_object, gives
from .jobs import MOST_JOBS

_REPORT = an_object("jobs", "states", "trash", "models", "free_bytes", "limits")
_CLEAR = JsonBody(
    what=Text({"type": "string", "enum": list(CLEARABLE)}, required=True),
    keep=WholeNumber(0, MOST_JOBS, default=0),
)


def add_routes(router: APIRouter, service: TrainingService) -> None:
    @router.get("/storage", **gives(_REPORT))
    def storage() -> StorageReport:
        return service.storage.report()

    @router.post(
        "/storage/clear",
        **_CLEAR.describe(),
        **gives(an_object("count", "bytes", "problems")),
    )
    def clear(body: dict = Body(...)) -> Cleared:
        return service.storage.clear(**_CLEAR.read(body))

    @router.get("/tensorboard", **gives(an_object("url")))
    def tensorboard() -> dict[str, str | None]:
        # on another machine its localhost is a different one
        is_local = service.path_rules.is_local_request()
        return {"url": find_tensorboard() if is_local else None}
