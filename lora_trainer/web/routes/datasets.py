"""The REST routes of data sets: pictures, captions, edits of both, checks, caption tables."""

import json
from typing import TypedDict

from fastapi import APIRouter, Body, Depends, File, Form, Response, UploadFile
from fastapi.responses import FileResponse

from ...base.errors import ErrorCode, Refused
from ...base.json_types import JsonObject
from ...dataset.caption_tables import LARGEST_TABLE_BYTES
from ...editor.bulk_edits import ACTIONS, SwitchParameter, TextParameter
from ...editor.bulk_edits import LONGEST_TEXT as LONGEST_EDIT_TEXT
from ...editor.checks import CheckSettings
from ...editor.dataset_reader import UnusableFile
from ...editor.edited_dataset import EditResult
from ...editor.editor import DataSetState
from ...editor.file_edits import RenameResult
from ...editor.library import DataSetSummary, Library
from ...editor.picture_files import TURNS
from ...editor.table_edits import AppliedImport, ImportReport, TableView
from ...editor.upload_rules import LARGEST_UPLOAD_BYTES
from ...jobs.service import TrainingService
from ..bodies import (
    JsonBody,
    Switch,
    Text,
    Texts,
    TextsByName,
    UncheckedValue,
    Value,
    WholeNumber,
    setting_value,
)
from ..guard import refuse_embedding
from ..json import Json
from ..responses import EDITED, Schema, a_list, an_object, file_of, gives

_CACHED = {"Cache-Control": "private, max-age=86400"}
_PICTURE = {
    "response_class": Response,
    "responses": file_of("image/jpeg"),
    "dependencies": [Depends(refuse_embedding)],
}
_FILENAMES = Texts(description="Pictures by file name; left out: all.")
_VERSIONS = TextsByName(
    description=(
        "The versions seen, by picture; one that is not on disk any more is answered with 409."
    )
)
_IF_CHANGED = Text({"type": "string", "enum": ["refuse", "skip", "overwrite"]})


def _bulk_edit_settings() -> dict[str, Value]:
    """Return the settings of all actions of editor/bulk_edits.py, which reads them itself; which of
    them an action needs is in docs/api.md.
    """
    parameters = {
        name: parameter
        for action in ACTIONS.values()
        for name, parameter in action.parameters.items()
    }
    return {
        name: UncheckedValue(_bulk_edit_schema(parameter)) for name, parameter in parameters.items()
    }


def _bulk_edit_schema(parameter: TextParameter | SwitchParameter) -> Schema:
    if isinstance(parameter, SwitchParameter):
        return {"type": "boolean"}
    return {"type": "string", "maxLength": LONGEST_EDIT_TEXT}


_CREATE = JsonBody(name=Text(), path=Text())
_ADD_FOLDER = JsonBody(caption_from_prompt=Switch(), folder=Text(required=True), create=Switch())
_SET_CAPTIONS = JsonBody(changes=TextsByName(required=True), versions=_VERSIONS)
_UNDO = JsonBody(optional=True, if_changed=_IF_CHANGED)
_BULK_EDIT = JsonBody(
    action=Text({"type": "string", "enum": list(ACTIONS)}, required=True),
    filenames=_FILENAMES,
    preview=Switch(),
    versions=_VERSIONS,
)
_BULK_EDIT_DESCRIBED = JsonBody(**_BULK_EDIT.values, **_bulk_edit_settings())
_TRASH_TABLE = JsonBody(filename=Text(required=True))
_RENAME = JsonBody(filename=Text(required=True), to=Text(required=True))
_ROTATE = JsonBody(
    filenames=Texts(required=True),
    degrees=WholeNumber(0, 360, default=90, enum=list(TURNS)),
)
_TRASH = JsonBody(filenames=Texts(required=True))
_CHECK = JsonBody(
    optional=True,
    resolution=setting_value("resolution"),
    bucket_step=setting_value("bucket_step"),
    enable_bucket=setting_value("enable_bucket"),
    trigger_word=setting_value("trigger_word"),
    bucket_min=setting_value("bucket_min"),
    bucket_max=setting_value("bucket_max"),
    bucket_no_upscale=setting_value("bucket_no_upscale"),
    max_token_length=setting_value("max_token_length"),
    caption_lines=setting_value("caption_lines"),
    caption_extension=setting_value("caption_extension"),
)


class _AddedFiles(TypedDict):
    added: list[str]
    refused: list[UnusableFile]


class AddedFiles(_AddedFiles, total=False):
    uncaptioned: list[UnusableFile]  # where captions were to be taken from prompts


class CaptionsResult(EditResult):
    changed: list[str]


def add_routes(router: APIRouter, service: TrainingService) -> None:
    _add_collection(router, service.library)
    _add_uploads(router, service.library)
    _add_captions(router, service.library)
    _add_caption_tables(router, service.library)
    _add_tables(router, service.library)
    _add_files(router, service.library)
    _add_views(router, service.library)


def _add_collection(router: APIRouter, library: Library) -> None:
    @router.get("/datasets", **gives(a_list("name", "path", "pictures")))
    def datasets() -> list[DataSetSummary]:
        return library.all()

    @router.post(
        "/datasets",
        status_code=201,
        **_CREATE.describe(),
        **gives(an_object("name", "path", "pictures"), 201),
    )
    def create_dataset(body: dict = Body(...)) -> DataSetSummary:
        values = _CREATE.read(body)
        return library.create(values["name"], values["path"])

    @router.get(
        "/datasets/{name}",
        **gives(an_object("name", "path", "revision", "history", "pictures", "problems")),
    )
    def dataset(name: str) -> Json:
        return Json(library.describe(name))

    @router.get("/datasets/{name}/revision", **gives(an_object("revision", "history")))
    def revision(name: str) -> DataSetState:
        return library.open(name).state()


def _add_uploads(router: APIRouter, library: Library) -> None:
    @router.post("/datasets/{name}/images", **gives(an_object("added", "refused")))
    def add_images(
        name: str, files: list[UploadFile] = File(...), caption_from_prompt: bool = Form(False)
    ) -> AddedFiles:
        library.path(name)
        added: list[str] = []
        refused: list[UnusableFile] = []
        for file in files:
            try:
                _add_upload(library, name, file, added, refused)
            except Refused as error:
                refused.append({"filename": file.filename, "reason": error.message})
        return _added(library, name, added, refused, caption_from_prompt)

    @router.post(
        "/datasets/{name}/folder",
        **_ADD_FOLDER.describe(),
        **gives(an_object("added", "refused")),
    )
    def add_folder(name: str, body: dict = Body(...)) -> AddedFiles:
        values = _ADD_FOLDER.read(body)
        with_prompts = values["caption_from_prompt"]
        taken = library.add_folder(
            name, values["folder"], with_prompts=with_prompts, create=values["create"]
        )
        return _added(library, name, taken.added, taken.refused, with_prompts)


def _add_upload(
    library: Library,
    name: str,
    file: UploadFile,
    added: list[str],
    refused: list[UnusableFile],
) -> None:
    """Add a picture, or all that are in a ZIP, to a data set. Raises `Refused`."""
    if (file.filename or "").lower().endswith(".zip"):
        taken = library.add_archive(name, file.filename, file.file)
        added += taken.added
        refused += taken.refused
    else:
        data = file.file.read(LARGEST_UPLOAD_BYTES + 1)
        added.append(library.add(name, file.filename or "", data))


def _added(
    library: Library,
    name: str,
    added: list[str],
    refused: list[UnusableFile],
    caption_from_prompt: bool,
) -> AddedFiles:
    result: AddedFiles = {"added": added, "refused": refused}
    if caption_from_prompt:
        result["uncaptioned"] = library.add_captions_from_prompts(name, added)
    return result


def _add_captions(router: APIRouter, library: Library) -> None:
    @router.patch(
        "/datasets/{name}/captions",
        **_SET_CAPTIONS.describe(),
        **gives(EDITED),
    )
    def set_captions(name: str, body: dict = Body(...)) -> CaptionsResult:
        values = _SET_CAPTIONS.read(body)
        changes = values["changes"]
        edited = library.open(name).set_captions(changes, versions=values["versions"])
        return {"changed": list(changes), **edited}

    @router.post("/datasets/{name}/captions/undo", **_UNDO.describe(), **gives(EDITED))
    def undo(name: str, body: dict = Body({})) -> Json:
        if_changed = _UNDO.read(body)["if_changed"] or "refuse"
        return Json(library.open(name).undo(if_changed=if_changed))

    @router.post("/datasets/{name}/captions/redo", **_UNDO.describe(), **gives(EDITED))
    def redo(name: str, body: dict = Body({})) -> Json:
        if_changed = _UNDO.read(body)["if_changed"] or "refuse"
        return Json(library.open(name).redo(if_changed=if_changed))

    @router.post(
        "/datasets/{name}/bulk-edit",
        **_BULK_EDIT_DESCRIBED.describe(),
        **gives(an_object("count")),
    )
    def bulk_edit(name: str, body: dict = Body(...)) -> Json:
        values = _BULK_EDIT.read(body)
        settings = {key: value for key, value in body.items() if key not in values}
        editor = library.open(name)
        return Json(editor.bulk_edit(values.pop("action"), settings, **values))


def _add_caption_tables(router: APIRouter, library: Library) -> None:
    @router.post(
        "/datasets/{name}/captions/import",
        **gives(an_object("encoding", "encodings", "rows", "unchanged", "changes", "problems")),
    )
    def import_table(
        name: str,
        file: UploadFile = File(...),
        encoding: str = Form(""),
        apply: bool = Form(False),
        versions: str = Form(""),
    ) -> ImportReport | AppliedImport:
        return library.open(name).tables.import_captions(
            file.filename or "metadata.csv",
            _table_of(file),
            encoding=encoding or None,
            apply=apply,
            versions=_versions(versions),
        )

    @router.get(
        "/datasets/{name}/captions/export",
        response_class=Response,
        responses=file_of("text/csv", "application/jsonl"),
    )
    def export_table(name: str, format: str = "csv") -> Response:
        data = library.open(name).tables.export_captions(format)
        media_type = "text/csv" if format == "csv" else "application/jsonl"
        return Response(
            data,
            media_type=f"{media_type}; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="metadata.{format}"'},
        )


def _add_tables(router: APIRouter, library: Library) -> None:
    """A metadata.csv or metadata.jsonl that lies in the data set: read, put another in its place,
    thrown away.
    """

    @router.get(
        "/datasets/{name}/table",
        **gives(an_object("filename", "text", "version", "reason", "lines")),
    )
    def table(name: str, filename: str = "metadata.csv") -> TableView:
        return library.open(name).tables.read(filename)

    @router.post("/datasets/{name}/table", **gives(EDITED))
    def replace_table(
        name: str,
        file: UploadFile = File(...),
        filename: str = Form("metadata.csv"),
        version: str = Form(""),
    ) -> EditResult:
        return library.open(name).tables.replace(filename, _table_of(file), version=version or None)

    @router.post(
        "/datasets/{name}/table/trash",
        **_TRASH_TABLE.describe(),
        **gives(EDITED),
    )
    def trash_table(name: str, body: dict = Body(...)) -> EditResult:
        return library.open(name).tables.move_to_trash(**_TRASH_TABLE.read(body))


def _table_of(file: UploadFile) -> bytes:
    data = file.file.read(LARGEST_TABLE_BYTES + 1)
    if len(data) > LARGEST_TABLE_BYTES:
        raise Refused(
            f"The table is larger than {LARGEST_TABLE_BYTES // 1_000_000} MB.",
            field="file",
            code=ErrorCode.TOO_LARGE,
        )
    return data


def _add_files(router: APIRouter, library: Library) -> None:
    @router.post("/datasets/{name}/rename", **_RENAME.describe(), **gives(EDITED))
    def rename(name: str, body: dict = Body(...)) -> RenameResult:
        values = _RENAME.read(body)
        return library.open(name).files.rename(values["filename"], values["to"])

    @router.post("/datasets/{name}/rotate", **_ROTATE.describe(), **gives(EDITED))
    def rotate(name: str, body: dict = Body(...)) -> EditResult:
        values = _ROTATE.read(body)
        return library.open(name).files.rotate(values["filenames"], values["degrees"])

    @router.post("/datasets/{name}/trash", **_TRASH.describe(), **gives(EDITED))
    def trash(name: str, body: dict = Body(...)) -> EditResult:
        return library.open(name).files.move_to_trash(_TRASH.read(body)["filenames"])


def _add_views(router: APIRouter, library: Library) -> None:
    @router.post(
        "/datasets/{name}/checks",
        **_CHECK.describe(),
        **gives(an_object("ready", "examined", "total", "summary", "pictures")),
    )
    def checks(name: str, body: dict = Body({})) -> Json:
        return Json(library.open(name).pictures.check(_check_settings(body)))

    @router.get("/datasets/{name}/thumbnails/{filename:path}", **_PICTURE)
    def thumbnail(name: str, filename: str) -> FileResponse:
        return FileResponse(
            library.open(name).pictures.thumbnail(filename),
            media_type="image/jpeg",
            headers=_CACHED,
        )

    @router.get("/datasets/{name}/previews/{filename:path}", **_PICTURE)
    def preview(name: str, filename: str) -> Response:
        return Response(
            library.open(name).pictures.preview(filename), media_type="image/jpeg", headers=_CACHED
        )

    @router.get("/datasets/{name}/crops/{filename:path}", **_PICTURE)
    def crop(
        name: str,
        filename: str,
        resolution: int = CheckSettings.resolution,
        bucket_step: int = CheckSettings.bucket_step,
        enable_bucket: bool = CheckSettings.enable_bucket,
        bucket_min: int = CheckSettings.bucket_min,
        bucket_max: int = CheckSettings.bucket_max,
        bucket_no_upscale: bool = CheckSettings.bucket_no_upscale,
    ) -> Response:
        settings = _check_settings(
            {
                "resolution": resolution,
                "bucket_step": bucket_step,
                "enable_bucket": enable_bucket,
                "bucket_min": bucket_min,
                "bucket_max": bucket_max,
                "bucket_no_upscale": bucket_no_upscale,
            }
        )
        return Response(
            library.open(name).pictures.training_crop(filename, settings),
            media_type="image/jpeg",
            headers=_CACHED,
        )


def _check_settings(body: JsonObject) -> CheckSettings:
    values = _CHECK.read(body)
    values["trigger_word"] = (values["trigger_word"] or "").strip()
    return CheckSettings(**values)


def _versions(source: str) -> dict[str, str] | None:
    if not source:
        return None
    try:
        return _VERSIONS.read({"versions": json.loads(source)}, "versions")
    except ValueError as error:
        raise Refused(
            "`versions` must be JSON.", field="versions", code=ErrorCode.BAD_REQUEST
        ) from error
