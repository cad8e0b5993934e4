"""The REST routes of presets: the list, the user's own ones, and files to share."""

from urllib.parse import quote

from fastapi import APIRouter, Body, File, Response, UploadFile

from ...base.errors import ErrorCode, Refused
from ...interop.presets import Preset
from ...jobs.presets import ImportedPreset
from ...jobs.service import TrainingService
from ..bodies import ConfigValue, JsonBody, Switch, Text
from ..responses import a_list, an_object, gives

_PRESET = ("name", "title", "help", "settings", "own", "problem")
_YAML = {
    200: {
        "description": "The preset.",
        "content": {"application/yaml": {"schema": an_object("title", "help", "settings")}},
    }
}


_SAVE = JsonBody(settings=ConfigValue(required=True), help=Text(), overwrite=Switch())
_RENAME = JsonBody(to=Text(required=True))


def add_routes(router: APIRouter, service: TrainingService) -> None:
    shelf = service.presets

    @router.get("/presets", **gives(a_list(*_PRESET)))
    def presets() -> list[Preset]:
        return shelf.all()

    @router.post("/presets/import", **gives(an_object(*_PRESET, "left_out")))
    def import_preset(file: UploadFile = File(None)) -> ImportedPreset:
        if file is None:
            raise Refused(
                "Send a preset, a .yaml file, as `file`.", field="file", code=ErrorCode.BAD_REQUEST
            )
        return shelf.take_upload(file.filename or "", file.file)

    @router.put(
        "/presets/{name}",
        **_SAVE.describe(),
        **gives(an_object(*_PRESET)),
    )
    def save_preset(name: str, body: dict = Body(...)) -> Preset:
        values = _SAVE.read(body)
        return shelf.save(
            name,
            values["settings"],
            help=values["help"] or "",
            overwrite=values["overwrite"],
        )

    @router.delete("/presets/{name}", **gives(a_list(*_PRESET)))
    def delete_preset(name: str) -> list[Preset]:
        shelf.delete(name)
        return shelf.all()

    @router.post("/presets/{name}/rename", **_RENAME.describe(), **gives(an_object(*_PRESET)))
    def rename_preset(name: str, body: dict = Body(...)) -> Preset:
        return shelf.rename(name, _RENAME.read(body)["to"])

    @router.get("/presets/{name}/export", response_class=Response, responses=_YAML)
    def export_preset(name: str) -> Response:
        filename, content = shelf.export(name)
        return Response(
            content,
            media_type="application/yaml; charset=utf-8",
            headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(filename)}"},
        )
