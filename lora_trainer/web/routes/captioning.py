"""REST of the captioners: what there is, whether it is ready, the job that writes captions, and the
label lists.
"""

from fastapi import APIRouter, Body

from ...captioning.labels import LARGEST_GROUP_BYTES, MOST_GROUPS, LabelSetView
from ...captioning.registry import CaptionerView, ReadinessView
from ...jobs.service import TrainingService
from ..bodies import JsonBody, JsonObjectValue, Switch, Text, Texts, TextsByName
from ..responses import a_list, an_object, gives

_LABELS = ("name", "title", "editable", "changed", "path", "groups")


_OPTIONS = JsonObjectValue(
    {
        "type": "object",
        "description": (
            "The captioner's options, as GET /captioners lists them; left out: its defaults."
        ),
    },
    of="names",
)
_READINESS = JsonBody(options=_OPTIONS)
_SAVE_LABELS = JsonBody(
    groups=TextsByName(
        required=True,
        additionalProperties={"type": "string", "maxLength": LARGEST_GROUP_BYTES},
        minProperties=1,
        maxProperties=MOST_GROUPS,
    )
)


def add_routes(router: APIRouter, service: TrainingService) -> None:
    """Add the routes of captioners and label lists to the API's router."""
    _add_captioners(router, service)
    _add_labels(router, service)


def _add_captioners(router: APIRouter, service: TrainingService) -> None:
    registry = service.captioning.captioners
    start_body = JsonBody(
        captioner=Text({"type": "string", "enum": registry.names()}, required=True),
        options=_OPTIONS,
        overwrite=Switch(),
        filenames=Texts(description="Pictures by file name; left out: all."),
    )

    @router.get(
        "/captioners", **gives(a_list("name", "title", "help", "ready", "needs", "options"))
    )
    def captioners() -> list[CaptionerView]:
        return registry.all()

    @router.post(
        "/captioners/{name}/readiness",
        **_READINESS.describe(),
        **gives(an_object("ready", "needs", "download_bytes", "downloads")),
    )
    def readiness(name: str, body: dict = Body(...)) -> ReadinessView:
        return registry.readiness(name, _READINESS.read(body)["options"])

    @router.post(
        "/datasets/{name}/autocaption",
        status_code=201,
        **start_body.describe(),
        **gives(an_object("id"), 201),
    )
    def autocaption(name: str, body: dict = Body(...)) -> dict[str, str]:
        values = start_body.read(body)
        return {"id": service.captioning.start(name, values.pop("captioner"), **values)}


def _add_labels(router: APIRouter, service: TrainingService) -> None:
    @router.get("/labels", **gives(a_list(*_LABELS)))
    def labels() -> list[LabelSetView]:
        return service.captioning.labels.all()

    @router.put(
        "/labels/{name}",
        **_SAVE_LABELS.describe(),
        **gives(an_object(*_LABELS)),
    )
    def save_labels(name: str, body: dict = Body(...)) -> LabelSetView:
        return service.captioning.labels.save(name, _SAVE_LABELS.read(body)["groups"])

    @router.delete("/labels/{name}", **gives(a_list(*_LABELS)))
    def restore_labels(name: str) -> list[LabelSetView]:
        service.captioning.labels.restore(name)
        return service.captioning.labels.all()
