"""The REST routes of the host: its status, its LoRA folder, and drawing a picture."""

import io

from fastapi import APIRouter, Body, Response

from ...jobs.job import ServiceStatus
from ...jobs.lora_files import LoraEntry, list_loras
from ...jobs.service import TrainingService
from ..bodies import JsonBody, Number, Text, WholeNumber
from ..responses import a_list, an_object, file_of, gives

_GENERATE = JsonBody(
    prompt=Text(required=True),
    negative_prompt=Text(),
    seed=WholeNumber(0, 2**32 - 1, default=0, cuts_fraction=True),
    steps=WholeNumber(1, 150, default=20, cuts_fraction=True),
    guidance=Number(1, 30, default=7.0),
    width=WholeNumber(64, 2048, cuts_fraction=True),
    height=WholeNumber(64, 2048, cuts_fraction=True),
)
_STATUS = an_object("version", "host", "model", "lora_dir", "data_dir", "current_job", "problems")


def add_routes(router: APIRouter, service: TrainingService) -> None:
    @router.get("/status", **gives(_STATUS))
    def status() -> ServiceStatus:
        return service.status()

    @router.get("/loras", **gives(a_list("name", "path", "size_bytes", "modified_at")))
    def loras() -> list[LoraEntry]:
        return list_loras(service.host.lora_dir)

    @router.post(
        "/generate",
        response_class=Response,
        responses=file_of("image/png"),
        **_GENERATE.describe(),
    )
    def generate(body: dict = Body(...)) -> Response:
        values = _GENERATE.read(body)
        values["negative_prompt"] = values["negative_prompt"] or ""
        for side in ("width", "height"):
            side_px = values[side] or service.host.default_size_px
            values[side] = side_px // 8 * 8
        buffer = io.BytesIO()
        service.generate(**values).save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")
