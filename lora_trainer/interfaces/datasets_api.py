"""The REST routes of data sets: pictures, captions, edits of both, checks, tables. Mounted by api.py, which turns refusals into answers."""
import json
from typing import Any, List

from fastapi import APIRouter, Body, File, Form, Response, UploadFile
from fastapi.responses import FileResponse

from ..core.checks import Wanted
from ..core.errors import Refused
from ..core.library import LARGEST_UPLOAD_BYTES
from ..jobs.service import TrainingService
from .requests import mapping, switch, text, texts, whole

MOST_FILES = 1000
LARGEST_TABLE_BYTES = 20_000_000
_PICTURE_HEADERS = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}


def add_routes(router: APIRouter, service: TrainingService) -> None:
    _add_collection(router, service.library)
    _add_captions(router, service.library)
    _add_files(router, service.library)
    _add_views(router, service.library)


def _add_collection(router: APIRouter, library: Any) -> None:
    @router.get("/datasets")
    def datasets() -> Any:
        return library.all()

    @router.post("/datasets", status_code=201)
    def create_dataset(body: dict = Body(...)) -> Any:
        return library.create(text(body, "name", required=False), text(body, "path", required=False))

    @router.get("/datasets/{name}")
    def dataset(name: str) -> Any:
        return library.describe(name)

    @router.get("/datasets/{name}/revision")
    def revision(name: str) -> Any:
        return library.open(name).state()

    @router.post("/datasets/{name}/images")
    def add_images(name: str, files: List[UploadFile] = File(...), caption_from_prompt: bool = Form(False)) -> Any:
        library.path(name)
        if len(files) > MOST_FILES:
            raise Refused(f"{len(files)} files at once; at most {MOST_FILES}.", field="files", code="too_large")
        added, refused = [], []
        for file in files:
            try:
                added.append(library.add(name, file.filename or "", file.file.read(LARGEST_UPLOAD_BYTES + 1)))
            except Refused as error:
                refused.append({"filename": file.filename, "reason": error.message})
        if caption_from_prompt:
            library.add_captions_from_prompts(name, added)
        return {"added": added, "refused": refused}


def _add_captions(router: APIRouter, library: Any) -> None:
    @router.patch("/datasets/{name}/captions")
    def set_captions(name: str, body: dict = Body(...)) -> Any:
        changes = mapping(body, "changes")
        return {"changed": list(changes), **library.open(name).set_captions(changes, versions=mapping(body, "versions", required=False))}

    @router.post("/datasets/{name}/captions/undo")
    def undo(name: str, body: dict = Body({})) -> Any:
        return library.open(name).undo(if_changed=text(body, "if_changed", required=False) or "refuse")

    @router.post("/datasets/{name}/captions/redo")
    def redo(name: str, body: dict = Body({})) -> Any:
        return library.open(name).redo(if_changed=text(body, "if_changed", required=False) or "refuse")

    @router.post("/datasets/{name}/bulk-edit")
    def bulk_edit(name: str, body: dict = Body(...)) -> Any:
        settings = {key: value for key, value in body.items() if key not in ("action", "filenames", "preview", "versions")}
        return library.open(name).bulk_edit(text(body, "action"), settings, filenames=texts(body, "filenames", required=False), preview=switch(body, "preview"),
                                            versions=mapping(body, "versions", required=False))

    @router.post("/datasets/{name}/captions/import")
    def import_table(name: str, file: UploadFile = File(...), encoding: str = Form(""), apply: bool = Form(False), versions: str = Form("")) -> Any:
        data = file.file.read(LARGEST_TABLE_BYTES + 1)
        if len(data) > LARGEST_TABLE_BYTES:
            raise Refused(f"The table is larger than {LARGEST_TABLE_BYTES // 1_000_000} MB.", field="file", code="too_large")
        return library.open(name).import_table(file.filename or "metadata.csv", data, encoding=encoding or None, apply=apply, versions=_versions(versions))

    @router.get("/datasets/{name}/captions/export")
    def export_table(name: str, format: str = "csv") -> Any:
        data = library.open(name).export_table(format)
        media_type = "text/csv" if format == "csv" else "application/jsonl"
        return Response(data, media_type=f"{media_type}; charset=utf-8", headers={"Content-Disposition": f'attachment; filename="metadata.{format}"'})


def _add_files(router: APIRouter, library: Any) -> None:
    @router.post("/datasets/{name}/rename")
    def rename(name: str, body: dict = Body(...)) -> Any:
        return library.open(name).rename(text(body, "filename"), text(body, "to"))

    @router.post("/datasets/{name}/rotate")
    def rotate(name: str, body: dict = Body(...)) -> Any:
        return library.open(name).rotate(texts(body, "filenames"), whole(body, "degrees", 90, 0, 360))

    @router.post("/datasets/{name}/trash")
    def trash(name: str, body: dict = Body(...)) -> Any:
        return library.open(name).discard(texts(body, "filenames"))


def _add_views(router: APIRouter, library: Any) -> None:
    @router.post("/datasets/{name}/checks")
    def checks(name: str, body: dict = Body({})) -> Any:
        return library.open(name).check(_wanted(body))

    @router.get("/datasets/{name}/thumbnails/{filename:path}")
    def thumbnail(name: str, filename: str) -> Any:
        return FileResponse(library.open(name).thumbnail(filename), media_type="image/jpeg", headers=_PICTURE_HEADERS)

    @router.get("/datasets/{name}/previews/{filename:path}")
    def preview(name: str, filename: str) -> Any:
        return Response(library.open(name).preview(filename), media_type="image/jpeg", headers=_PICTURE_HEADERS)

    @router.get("/datasets/{name}/crops/{filename:path}")
    def crop(name: str, filename: str, resolution: int = 512, bucket_step: int = 64, enable_bucket: bool = True) -> Any:
        wanted = _wanted({"resolution": resolution, "bucket_step": bucket_step, "enable_bucket": enable_bucket})
        return Response(library.open(name).trained_view(filename, wanted), media_type="image/jpeg", headers=_PICTURE_HEADERS)


def _wanted(body: dict) -> Wanted:
    ordinary = Wanted()
    return Wanted(whole(body, "resolution", ordinary.resolution, 64, 4096), whole(body, "bucket_step", ordinary.bucket_step, 8, 512),
                  switch(body, "enable_bucket", ordinary.enable_bucket), (text(body, "trigger_word", required=False) or "").strip())


def _versions(source: str) -> dict[str, str] | None:
    if not source:
        return None
    try:
        return mapping({"versions": json.loads(source)}, "versions")
    except ValueError as error:
        raise Refused("`versions` must be JSON.", field="versions", code="bad_request") from error
