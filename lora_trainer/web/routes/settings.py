"""The REST routes of settings: what there is to set, settings out of another trainer's file or a
LoRA, and settings as YAML. Mounted by api.py.
"""

from typing import Any

from fastapi import APIRouter, Body, File, Form, Response, UploadFile

from ...base.errors import Refused
from ...jobs.service import TrainingService
from ..bodies import mapping_of_settings
from ..schemas import an_object, gives, settings, takes

_YAML = {
    200: {
        "description": "The settings.",
        "content": {"application/yaml": {"schema": an_object("train_data_dir")}},
    }
}


def add_routes(router: APIRouter, service: TrainingService) -> None:
    @router.get("/settings", **gives(an_object("groups", "settings")))
    def form() -> Any:
        return service.form()

    @router.post(
        "/settings/import",
        **gives(an_object("settings", "assumed", "left_out", "source", "filename")),
    )
    def import_settings(file: UploadFile = File(None), lora: str = Form("")) -> Any:
        if lora:
            return service.settings_of_lora(lora)
        if file is None:
            raise Refused(
                "Send a settings file or a LoRA as `file`, or the name of a LoRA in the LoRA folder"
                " as `lora`.",
                field="file",
                code="bad_request",
            )
        return service.import_settings(file.filename or "", file.file)

    @router.post(
        "/settings/export",
        response_class=Response,
        responses=_YAML,
        **takes(required=["config"], config=settings()),
    )
    def export_settings(body: dict = Body(...)) -> Any:
        return Response(
            service.export_settings(mapping_of_settings(body, "config")),
            media_type="application/yaml; charset=utf-8",
            headers={"Content-Disposition": 'attachment; filename="settings.yaml"'},
        )
