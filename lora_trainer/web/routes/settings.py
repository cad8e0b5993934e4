"""The REST routes of settings: what there is to set, settings out of another trainer's file or a
LoRA, and settings as YAML.
"""

import functools

from fastapi import APIRouter, Body, File, Form, Response, UploadFile

from ...base.errors import ErrorCode, Refused
from ...jobs import settings_form
from ...jobs.service import TrainingService
from ...jobs.settings_form import SettingsForm
from ...jobs.settings_import import ImportedFile
from ..bodies import ConfigValue, JsonBody
from ..responses import an_object, gives

_YAML = {
    200: {
        "description": "The settings.",
        "content": {"application/yaml": {"schema": an_object("train_data_dir")}},
    }
}


_EXPORT = JsonBody(config=ConfigValue(required=True))


def add_routes(router: APIRouter, service: TrainingService) -> None:
    # the packages that it looks for come and go with a restart only
    cached_form = functools.cache(settings_form.form)

    @router.get("/settings", **gives(an_object("groups", "settings")))
    def form() -> SettingsForm:
        return cached_form()

    @router.post(
        "/settings/import",
        **gives(an_object("settings", "assumed", "left_out", "source", "filename")),
    )
    def import_settings(file: UploadFile = File(None), lora: str = Form("")) -> ImportedFile:
        if lora:
            return service.settings_import.from_lora(lora)
        if file is None:
            raise Refused(
                "Send a settings file or a LoRA as `file`, or the name of a LoRA in the LoRA folder"
                " as `lora`.",
                field="file",
                code=ErrorCode.BAD_REQUEST,
            )
        return service.settings_import.upload(file.filename or "", file.file)

    @router.post(
        "/settings/export",
        response_class=Response,
        responses=_YAML,
        **_EXPORT.describe(),
    )
    def export_settings(body: dict = Body(...)) -> Response:
        return Response(
            service.settings.parse(_EXPORT.read(body)["config"]).to_yaml(),
            media_type="application/yaml; charset=utf-8",
            headers={"Content-Disposition": 'attachment; filename="settings.yaml"'},
        )
