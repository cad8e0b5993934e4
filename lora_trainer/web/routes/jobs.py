"""REST of jobs and their queue: plan, start, pause, resume, stop, reorder, duplicate, delete;
figures, logs and files; what it all takes of the disk. Events are in events.py.
"""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Body
from fastapi.responses import FileResponse, StreamingResponse

from ...base.errors import Refused
from ...jobs import metrics
from ...jobs.job_files import describe_file, find_file, zipped
from ...jobs.service import TrainingService
from ...jobs.storage import WHAT
from ..bodies import mapping_of_settings, switch, text, whole
from ..schemas import ROWS, SWITCH, a_list, an_object, file_of, gives, settings, takes, whole_number

MOST_JOBS = 1_000_000
OCTETS = "application/octet-stream"
_JOB = (
    "id",
    "name",
    "kind",
    "state",
    "position",
    "created_at",
    "ended_at",
    "message",
    "error",
    "output_file",
    "lora_tag",
    "resumable",
    "resume_step",
    "state_step",
    "waiting_for",
    "checkpoint",
    "snapshots",
    "remarks",
    "stopping",
    "pausing",
    "free_memory",
    "tensorboard_dir",
    "config",
)
_CONFIG, _ENTRY, _QUEUE = (
    settings(),
    an_object("id", "state", "position"),
    an_object("queue_held", "queued"),
)


def add_routes(router: APIRouter, service: TrainingService) -> None:
    """Add the routes of jobs to the API's router."""
    _add_collection(router, service)
    _add_steering(router, service)
    _add_queue(router, service)
    _add_figures(router, service)
    _add_files(router, service)
    _add_storage(router, service)


def _add_collection(router: APIRouter, service: TrainingService) -> None:
    @router.post(
        "/plan",
        **takes(required=["config"], config=_CONFIG),
        **gives(an_object("errors", "warnings", "advice")),
    )
    def plan(body: dict = Body(...)) -> Any:
        return service.plan(
            mapping_of_settings(body, "config"), thorough=False
        )  # the page asks at every key press; its checks find damage

    @router.post(
        "/jobs", status_code=201, **takes(required=["config"], config=_CONFIG), **gives(_ENTRY, 201)
    )
    def start(body: dict = Body(...)) -> Any:
        return _entry(service, service.start(mapping_of_settings(body, "config")))

    @router.get("/jobs", **gives(a_list(*_JOB)))
    def jobs(kind: str | None = None) -> Any:
        return service.jobs(kind)

    @router.get("/jobs/{job_id}", **gives(an_object(*_JOB)))
    def job(job_id: str) -> Any:
        return service.job(job_id)

    @router.post(
        "/jobs/{job_id}/duplicate",
        status_code=201,
        **takes(optional_body=True, changes={"type": "object"}),
        **gives(_ENTRY, 201),
    )
    def duplicate(job_id: str, body: dict = Body({})) -> Any:
        return _entry(
            service, service.duplicate(job_id, mapping_of_settings(body, "changes", required=False))
        )

    @router.delete("/jobs/{job_id}", **gives(an_object("moved")))
    def delete(job_id: str) -> Any:
        return {
            "moved": [str(path) for path in service.delete(job_id)]
        }  # LoRAs that were in the job's folder only


def _add_steering(router: APIRouter, service: TrainingService) -> None:
    @router.post(
        "/jobs/{job_id}/pause",
        **takes(optional_body=True, free_memory=SWITCH),
        **gives(an_object(*_JOB)),
    )
    def pause(job_id: str, body: dict = Body({})) -> Any:
        return service.pause(job_id, free_memory=switch(body, "free_memory"))

    @router.post(
        "/jobs/{job_id}/resume",
        **takes(optional_body=True, changes=_CONFIG, anyway=SWITCH),
        **gives(an_object(*_JOB)),
    )
    def resume(job_id: str, body: dict = Body({})) -> Any:
        return service.resume(
            job_id,
            mapping_of_settings(body, "changes", required=False),
            anyway=switch(body, "anyway"),
        )

    @router.post("/jobs/{job_id}/stop", **gives(an_object(*_JOB)))
    def stop(job_id: str) -> Any:
        return service.stop(job_id)

    @router.post("/jobs/{job_id}/snapshot", **gives(an_object(*_JOB)))
    def snapshot(job_id: str) -> Any:
        return service.snapshot(job_id)

    @router.post("/jobs/{job_id}/load-checkpoint", **gives(an_object(*_JOB)))
    def load_checkpoint(job_id: str) -> Any:
        return service.load_checkpoint(job_id)


def _add_queue(router: APIRouter, service: TrainingService) -> None:
    @router.post(
        "/jobs/{job_id}/move",
        **takes(required=["position"], position=whole_number(0, MOST_JOBS)),
        **gives(a_list(*_JOB)),
    )
    def move(job_id: str, body: dict = Body(...)) -> Any:
        if "position" not in body:
            raise Refused(
                "Where to? Give `position`: 0 is next.", field="position", code="bad_request"
            )
        return service.move(job_id, whole(body, "position", 0, 0, MOST_JOBS))

    @router.post("/queue/hold", **gives(_QUEUE))
    def hold() -> Any:
        return service.hold_queue()

    @router.post("/queue/start", **gives(_QUEUE))
    def start_queue() -> Any:
        return service.start_queue()


def _add_figures(router: APIRouter, service: TrainingService) -> None:
    @router.get("/jobs/{job_id}/metrics", **gives(ROWS))
    def rows(job_id: str, since: int = 0) -> Any:
        return service.metrics(job_id, since)

    @router.get(
        "/jobs/{job_id}/metrics.csv", response_class=FileResponse, responses=file_of("text/csv")
    )
    def table(job_id: str) -> Any:
        job, path = service.job(job_id), service.job_folder(job_id) / metrics.NAME
        if not path.is_file():
            raise Refused(f"Job {job_id} has no figures yet.", code="not_found")
        return FileResponse(
            path, media_type="text/csv; charset=utf-8", filename=f"{job['name']}-{job_id}.csv"
        )

    @router.get("/jobs/{job_id}/log", **gives(an_object("text", "next")))
    def log(job_id: str, since: int = 0) -> Any:
        return service.log(job_id, since)


def _add_files(router: APIRouter, service: TrainingService) -> None:
    @router.get("/jobs/{job_id}/files", **gives(a_list("name", "lora", "part", "size_bytes")))
    def files(job_id: str) -> Any:
        return [describe_file(path) for path in service.files(job_id)]

    @router.get(
        "/jobs/{job_id}/files/{name}",
        response_class=FileResponse,
        responses=file_of(OCTETS, "application/json", "image/png"),
    )
    def file(job_id: str, name: str) -> Any:
        path = find_file(service.files(job_id), name)
        kind = {".json": "application/json", ".png": "image/png"}.get(path.suffix, OCTETS)
        return FileResponse(path, media_type=kind, filename=path.name)

    @router.get(
        "/jobs/{job_id}/files.zip",
        response_class=StreamingResponse,
        responses=file_of("application/zip"),
    )
    def archive(job_id: str, lora: str | None = None) -> Any:
        found = service.files(job_id)
        name = lora if lora is not None else found[0].stem if found else service.job(job_id)["name"]
        chosen = find_file(found, f"{name}.safetensors")
        header = {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name, safe='')}.zip"}
        return StreamingResponse(
            zipped([path for path in found if path.stem == chosen.stem]),
            media_type="application/zip",
            headers=header,
        )


def _add_storage(router: APIRouter, service: TrainingService) -> None:
    @router.get(
        "/storage", **gives(an_object("jobs", "states", "trash", "models", "free_bytes", "limits"))
    )
    def storage() -> Any:
        return service.storage()

    @router.post(
        "/storage/clear",
        **takes(
            required=["what"],
            what={"type": "string", "enum": list(WHAT)},
            keep=whole_number(0, MOST_JOBS),
        ),
        **gives(an_object("count", "bytes", "problems")),
    )
    def clear(body: dict = Body(...)) -> Any:
        return service.clear_storage(text(body, "what"), keep=whole(body, "keep", 0, 0, MOST_JOBS))

    @router.get("/tensorboard", **gives(an_object("url")))
    def tensorboard() -> Any:
        return service.tensorboard()


def _entry(service: TrainingService, job_id: str) -> dict[str, Any]:
    job = service.job(job_id)
    return {name: job[name] for name in ("id", "state", "position")}
