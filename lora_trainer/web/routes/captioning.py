"""REST of the captioners: what there is, whether it is ready, the job that writes captions, and the
label lists.
"""

from typing import Any

from fastapi import APIRouter, Body

from ...base.errors import Refused
from ...jobs.service import TrainingService
from ..bodies import mapping, switch, text, texts
from ..schemas import FILENAMES, LABEL_GROUPS, OPTIONS, SWITCH, a_list, an_object, gives, takes

_LABELS = ("name", "title", "editable", "changed", "path", "groups")


def add_routes(router: APIRouter, service: TrainingService) -> None:
    """Add the routes of captioners and label lists to the API's router."""
    _add_captioners(router, service)
    _add_labels(router, service)


def _add_captioners(router: APIRouter, service: TrainingService) -> None:
    captioner = {"type": "string", "enum": service.captioners.names()}

    @router.get(
        "/captioners", **gives(a_list("name", "title", "help", "ready", "needs", "options"))
    )
    def captioners() -> Any:
        return service.captioners.all()

    @router.post(
        "/captioners/{name}/readiness",
        **takes(options=OPTIONS),
        **gives(an_object("ready", "needs", "download_bytes", "downloads")),
    )
    def readiness(name: str, body: dict = Body(...)) -> Any:
        return service.captioners.readiness(name, _options(body))

    @router.post(
        "/datasets/{name}/autocaption",
        status_code=201,
        **takes(
            required=["captioner"],
            captioner=captioner,
            options=OPTIONS,
            overwrite=SWITCH,
            filenames=FILENAMES,
        ),
        **gives(an_object("id"), 201),
    )
    def autocaption(name: str, body: dict = Body(...)) -> Any:
        return {
            "id": service.autocaption(
                name,
                text(body, "captioner"),
                options=_options(body),
                overwrite=switch(body, "overwrite"),
                filenames=texts(body, "filenames", required=False),
            )
        }


def _add_labels(router: APIRouter, service: TrainingService) -> None:
    @router.get("/labels", **gives(a_list(*_LABELS)))
    def labels() -> Any:
        return service.labels.all()

    @router.put(
        "/labels/{name}",
        **takes(required=["groups"], groups=LABEL_GROUPS),
        **gives(an_object(*_LABELS)),
    )
    def save_labels(name: str, body: dict = Body(...)) -> Any:
        return service.labels.save(name, mapping(body, "groups"))

    @router.delete("/labels/{name}", **gives(a_list(*_LABELS)))
    def restore_labels(name: str) -> Any:
        service.labels.restore(name)
        return service.labels.all()


def _options(body: dict) -> dict[str, Any]:
    options = body.get("options")
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise Refused("`options` must map names to values.", field="options", code="bad_request")
    return options
