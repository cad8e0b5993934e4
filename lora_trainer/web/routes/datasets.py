"""The REST routes of data sets: pictures, captions, edits of both, checks, tables. Mounted by
api.py, which turns refusals into answers.
"""

import json
from typing import Any

from fastapi import APIRouter, Body, Depends, File, Form, Response, UploadFile
from fastapi.responses import FileResponse

from ...base.errors import Refused
from ...dataset.caption_tables import LARGEST_TABLE_BYTES
from ...dataset.captions import CAPTION_ENDINGS, LINE_USES
from ...editor.checks import CheckSettings
from ...editor.picture_files import TURNS
from ...editor.upload_rules import LARGEST_UPLOAD_BYTES
from ...jobs.service import TrainingService
from ..bodies import mapping, one_of, switch, text, texts, whole
from ..guard import refuse_embedding
from ..json import Json
from ..schemas import (
    EDITED,
    FILENAMES,
    IF_CHANGED,
    SWITCH,
    TEXT,
    TEXTS,
    TEXTS_BY_NAME,
    VERSIONS,
    a_list,
    an_object,
    edits,
    file_of,
    gives,
    takes,
    whole_number,
)

_CACHED = {"Cache-Control": "private, max-age=86400"}
_PICTURE = {
    "response_class": Response,
    "responses": file_of("image/jpeg"),
    "dependencies": [Depends(refuse_embedding)],
}
_WANTED = {
    "resolution": whole_number(64, 4096),
    "bucket_step": whole_number(8, 512),
    "enable_bucket": SWITCH,
    "trigger_word": TEXT,
    "caption_lines": {"enum": list(LINE_USES), "default": LINE_USES[0]},
    "caption_extension": {"enum": list(CAPTION_ENDINGS), "default": CAPTION_ENDINGS[0]},
}


def add_routes(router: APIRouter, service: TrainingService) -> None:
    _add_collection(router, service.library)
    _add_captions(router, service.library)
    _add_tables(router, service.library)
    _add_files(router, service.library)
    _add_views(router, service.library)


def _add_collection(router: APIRouter, library: Any) -> None:  # noqa: C901
    @router.get("/datasets", **gives(a_list("name", "path", "pictures")))
    def datasets() -> Any:
        return library.all()

    @router.post(
        "/datasets",
        status_code=201,
        **takes(name=TEXT, path=TEXT),
        **gives(an_object("name", "path", "pictures"), 201),
    )
    def create_dataset(body: dict = Body(...)) -> Any:
        return library.create(
            text(body, "name", required=False), text(body, "path", required=False)
        )

    @router.get(
        "/datasets/{name}",
        **gives(an_object("name", "path", "revision", "history", "pictures", "problems")),
    )
    def dataset(name: str) -> Any:
        return Json(library.describe(name))

    @router.get("/datasets/{name}/revision", **gives(an_object("revision", "history")))
    def revision(name: str) -> Any:
        return library.open(name).state()

    @router.post("/datasets/{name}/images", **gives(an_object("added", "refused")))
    def add_images(
        name: str, files: list[UploadFile] = File(...), caption_from_prompt: bool = Form(False)
    ) -> Any:
        library.path(name)
        added, refused = [], []
        for file in files:
            try:
                if (file.filename or "").lower().endswith(".zip"):
                    taken = library.add_archive(name, file.filename, file.file)
                    added += taken.added
                    refused += taken.refused
                else:
                    added.append(
                        library.add(
                            name, file.filename or "", file.file.read(LARGEST_UPLOAD_BYTES + 1)
                        )
                    )
            except Refused as error:
                refused.append({"filename": file.filename, "reason": error.message})
        return _added(name, added, refused, caption_from_prompt)

    @router.post(
        "/datasets/{name}/folder",
        **takes(required=["folder"], folder=TEXT, create=SWITCH, caption_from_prompt=SWITCH),
        **gives(an_object("added", "refused")),
    )
    def add_folder(name: str, body: dict = Body(...)) -> Any:
        with_prompts = switch(body, "caption_from_prompt")
        taken = library.add_folder(
            name, text(body, "folder"), with_prompts=with_prompts, create=switch(body, "create")
        )
        return _added(name, taken.added, taken.refused, with_prompts)

    def _added(name: str, added: list, refused: list, caption_from_prompt: bool) -> dict:
        prompts = (
            {"uncaptioned": library.add_captions_from_prompts(name, added)}
            if caption_from_prompt
            else {}
        )
        return {"added": added, "refused": refused, **prompts}


def _add_captions(router: APIRouter, library: Any) -> None:
    @router.patch(
        "/datasets/{name}/captions",
        **takes(required=["changes"], changes=TEXTS_BY_NAME, versions=VERSIONS),
        **gives(EDITED),
    )
    def set_captions(name: str, body: dict = Body(...)) -> Any:
        changes = mapping(body, "changes")
        return {
            "changed": list(changes),
            **library.open(name).set_captions(
                changes, versions=mapping(body, "versions", required=False)
            ),
        }

    @router.post(
        "/datasets/{name}/captions/undo",
        **takes(optional_body=True, if_changed=IF_CHANGED),
        **gives(EDITED),
    )
    def undo(name: str, body: dict = Body({})) -> Any:
        return Json(
            library.open(name).undo(if_changed=text(body, "if_changed", required=False) or "refuse")
        )

    @router.post(
        "/datasets/{name}/captions/redo",
        **takes(optional_body=True, if_changed=IF_CHANGED),
        **gives(EDITED),
    )
    def redo(name: str, body: dict = Body({})) -> Any:
        return Json(
            library.open(name).redo(if_changed=text(body, "if_changed", required=False) or "refuse")
        )

    @router.post(
        "/datasets/{name}/bulk-edit",
        **takes(
            required=["action"], **edits(), filenames=FILENAMES, preview=SWITCH, versions=VERSIONS
        ),
        **gives(an_object("count")),
    )
    def bulk_edit(name: str, body: dict = Body(...)) -> Any:
        settings = {
            key: value
            for key, value in body.items()
            if key not in ("action", "filenames", "preview", "versions")
        }
        return Json(
            library.open(name).bulk_edit(
                text(body, "action"),
                settings,
                filenames=texts(body, "filenames", required=False),
                preview=switch(body, "preview"),
                versions=mapping(body, "versions", required=False),
            )
        )

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
    ) -> Any:
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
    def export_table(name: str, format: str = "csv") -> Any:
        data = library.open(name).tables.export_captions(format)
        media_type = "text/csv" if format == "csv" else "application/jsonl"
        return Response(
            data,
            media_type=f"{media_type}; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="metadata.{format}"'},
        )


def _add_tables(router: APIRouter, library: Any) -> None:
    """A metadata.csv or metadata.jsonl that lies in the data set: read, put another in its place,
    thrown away.
    """

    @router.get(
        "/datasets/{name}/table",
        **gives(an_object("filename", "text", "version", "reason", "lines")),
    )
    def table(name: str, filename: str = "metadata.csv") -> Any:
        return library.open(name).tables.read(filename)

    @router.post("/datasets/{name}/table", **gives(EDITED))
    def replace_table(
        name: str,
        file: UploadFile = File(...),
        filename: str = Form("metadata.csv"),
        version: str = Form(""),
    ) -> Any:
        return library.open(name).tables.replace(filename, _table_of(file), version=version or None)

    @router.post(
        "/datasets/{name}/table/trash",
        **takes(required=["filename"], filename=TEXT),
        **gives(EDITED),
    )
    def trash_table(name: str, body: dict = Body(...)) -> Any:
        return library.open(name).tables.move_to_trash(text(body, "filename"))


def _table_of(file: UploadFile) -> bytes:
    data = file.file.read(LARGEST_TABLE_BYTES + 1)
    if len(data) > LARGEST_TABLE_BYTES:
        raise Refused(
            f"The table is larger than {LARGEST_TABLE_BYTES // 1_000_000} MB.",
            field="file",
            code="too_large",
        )
    return data


def _add_files(router: APIRouter, library: Any) -> None:
    @router.post(
        "/datasets/{name}/rename",
        **takes(required=["filename", "to"], filename=TEXT, to=TEXT),
        **gives(EDITED),
    )
    def rename(name: str, body: dict = Body(...)) -> Any:
        return library.open(name).files.rename(text(body, "filename"), text(body, "to"))

    @router.post(
        "/datasets/{name}/rotate",
        **takes(
            required=["filenames"], filenames=TEXTS, degrees={"enum": list(TURNS), "default": 90}
        ),
        **gives(EDITED),
    )
    def rotate(name: str, body: dict = Body(...)) -> Any:
        return library.open(name).files.rotate(
            texts(body, "filenames"), whole(body, "degrees", 90, 0, 360)
        )

    @router.post(
        "/datasets/{name}/trash", **takes(required=["filenames"], filenames=TEXTS), **gives(EDITED)
    )
    def trash(name: str, body: dict = Body(...)) -> Any:
        return library.open(name).files.move_to_trash(texts(body, "filenames"))


def _add_views(router: APIRouter, library: Any) -> None:
    @router.post(
        "/datasets/{name}/checks",
        **takes(optional_body=True, **_WANTED),
        **gives(an_object("ready", "examined", "total", "summary", "pictures")),
    )
    def checks(name: str, body: dict = Body({})) -> Any:
        return Json(library.open(name).pictures.check(_wanted(body)))

    @router.get("/datasets/{name}/thumbnails/{filename:path}", **_PICTURE)
    def thumbnail(name: str, filename: str) -> Any:
        return FileResponse(
            library.open(name).pictures.thumbnail(filename),
            media_type="image/jpeg",
            headers=_CACHED,
        )

    @router.get("/datasets/{name}/previews/{filename:path}", **_PICTURE)
    def preview(name: str, filename: str) -> Any:
        return Response(
            library.open(name).pictures.preview(filename), media_type="image/jpeg", headers=_CACHED
        )

    @router.get("/datasets/{name}/crops/{filename:path}", **_PICTURE)
    def crop(
        name: str,
        filename: str,
        resolution: int = 512,
        bucket_step: int = 64,
        enable_bucket: bool = True,
        bucket_min: int = 0,
        bucket_max: int = 0,
        bucket_no_upscale: bool = False,
    ) -> Any:
        wanted = _wanted(
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
            library.open(name).pictures.training_crop(filename, wanted),
            media_type="image/jpeg",
            headers=_CACHED,
        )


def _wanted(body: dict) -> CheckSettings:
    ordinary = CheckSettings()
    return CheckSettings(
        whole(body, "resolution", ordinary.resolution, 64, 4096),
        whole(body, "bucket_step", ordinary.bucket_step, 8, 512),
        switch(body, "enable_bucket", ordinary.enable_bucket),
        (text(body, "trigger_word", required=False) or "").strip(),
        whole(body, "bucket_min", ordinary.bucket_min, 0, 2048),
        whole(body, "bucket_max", ordinary.bucket_max, 0, 8192),
        switch(body, "bucket_no_upscale", ordinary.bucket_no_upscale),
        whole(body, "max_token_length", ordinary.max_token_length, 75, 750),
        one_of(body, "caption_lines", LINE_USES),
        one_of(body, "caption_extension", CAPTION_ENDINGS),
    )


def _versions(source: str) -> dict[str, str] | None:
    if not source:
        return None
    try:
        return mapping({"versions": json.loads(source)}, "versions")
    except ValueError as error:
        raise Refused("`versions` must be JSON.", field="versions", code="bad_request") from error
