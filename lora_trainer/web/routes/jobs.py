"""The REST routes of jobs and their queue: plan, start, pause, resume, stop, reorder, duplicate,
delete; metrics, logs and files. Events are in websockets.py.
"""

from typing import TypedDict
from urllib.parse import quote

from fastapi import APIRouter, Body
from fastapi.responses import FileResponse, StreamingResponse

from ...base.errors import ErrorCode, Refused
from ...jobs import metrics
from ...jobs.job import JobState, JobView, QueueStatus
from ...jobs.log_file import LogPart
from ...jobs.lora_files import JobFile, describe_file, find_file, zipped
from ...jobs.metrics import MetricsRow
from ...jobs.planning import PlanView
from ...jobs.service import TrainingService
from ..bodies import ConfigValue, JsonBody, JsonObjectValue, Switch, WholeNumber
from ..responses import ROWS, a_list, an_object, file_of, gives

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
_ENTRY = an_object("id", "state", "position")
_QUEUE = an_object("queue_held", "queued")

_CONFIG = JsonBody(config=ConfigValue(required=True))
_DUPLICATE = JsonBody(optional=True, changes=JsonObjectValue({"type": "object"}))
_PAUSE = JsonBody(optional=True, free_memory=Switch())
_RESUME = JsonBody(optional=True, changes=ConfigValue(), anyway=Switch())
_MOVE = JsonBody(position=WholeNumber(0, MOST_JOBS, required=True))


class JobEntry(TypedDict):
    """A job that was put into the queue."""

    id: str
    state: JobState
    position: int | None


def add_routes(router: APIRouter, service: TrainingService) -> None:
    """Add the routes of jobs to the API's router."""
    _add_collection(router, service)
    _add_steering(router, service)
    _add_queue(router, service)
    _add_figures(router, service)
    _add_files(router, service)


def _add_collection(router: APIRouter, service: TrainingService) -> None:
    @router.post(
        "/plan",
        **_CONFIG.describe(),
        **gives(an_object("errors", "warnings", "advice")),
    )
    def plan(body: dict = Body(...)) -> PlanView:
        # not thorough: the page asks at every key press, and its checks find damaged pictures
        return service.planner.plan(_CONFIG.read(body)["config"], thorough=False)

    @router.post("/jobs", status_code=201, **_CONFIG.describe(), **gives(_ENTRY, 201))
    def start(body: dict = Body(...)) -> JobEntry:
        return _entry(service, service.start(_CONFIG.read(body)["config"]))

    @router.get("/jobs", **gives(a_list(*_JOB)))
    def jobs(kind: str | None = None) -> list[JobView]:
        return service.jobs(kind)

    @router.get("/jobs/{job_id}", **gives(an_object(*_JOB)))
    def job(job_id: str) -> JobView:
        return service.job(job_id)

    @router.post(
        "/jobs/{job_id}/duplicate",
        status_code=201,
        **_DUPLICATE.describe(),
        **gives(_ENTRY, 201),
    )
    def duplicate(job_id: str, body: dict = Body({})) -> JobEntry:
        return _entry(service, service.duplicate(job_id, _DUPLICATE.read(body)["changes"]))

    @router.delete("/jobs/{job_id}", **gives(an_object("moved")))
    def delete(job_id: str) -> dict[str, list[str]]:
        moved = service.delete(job_id)  # LoRAs that were in the job's folder only
        return {"moved": [str(path) for path in moved]}


def _add_steering(router: APIRouter, service: TrainingService) -> None:
    @router.post(
        "/jobs/{job_id}/pause",
        **_PAUSE.describe(),
        **gives(an_object(*_JOB)),
    )
    def pause(job_id: str, body: dict = Body({})) -> JobView:
        return service.pause(job_id, **_PAUSE.read(body))

    @router.post(
        "/jobs/{job_id}/resume",
        **_RESUME.describe(),
        **gives(an_object(*_JOB)),
    )
    def resume(job_id: str, body: dict = Body({})) -> JobView:
        return service.resume(job_id, **_RESUME.read(body))

    @router.post("/jobs/{job_id}/stop", **gives(an_object(*_JOB)))
    def stop(job_id: str) -> JobView:
        return service.stop(job_id)

    @router.post("/jobs/{job_id}/snapshot", **gives(an_object(*_JOB)))
    def snapshot(job_id: str) -> JobView:
        return service.snapshot(job_id)

    @router.post("/jobs/{job_id}/load-checkpoint", **gives(an_object(*_JOB)))
    def load_checkpoint(job_id: str) -> JobView:
        return service.load_checkpoint(job_id)


def _add_queue(router: APIRouter, service: TrainingService) -> None:
    @router.post(
        "/jobs/{job_id}/move",
        **_MOVE.describe(),
        **gives(a_list(*_JOB)),
    )
    def move(job_id: str, body: dict = Body(...)) -> list[JobView]:
        if "position" not in body:
            raise Refused(
                "Where to? Give `position`: 0 is next.",
                field="position",
                code=ErrorCode.BAD_REQUEST,
            )
        return service.move(job_id, **_MOVE.read(body))

    @router.post("/queue/hold", **gives(_QUEUE))
    def hold() -> QueueStatus:
        return service.hold_queue()

    @router.post("/queue/start", **gives(_QUEUE))
    def start_queue() -> QueueStatus:
        return service.start_queue()


def _add_figures(router: APIRouter, service: TrainingService) -> None:
    @router.get("/jobs/{job_id}/metrics", **gives(ROWS))
    def rows(job_id: str, since: int = 0) -> list[MetricsRow]:
        return service.metrics(job_id, since)

    @router.get(
        "/jobs/{job_id}/metrics.csv", response_class=FileResponse, responses=file_of("text/csv")
    )
    def table(job_id: str) -> FileResponse:
        job = service.job(job_id)
        path = service.job_folder(job_id) / metrics.NAME
        if not path.is_file():
            raise Refused(f"Job {job_id} has no figures yet.", code=ErrorCode.NOT_FOUND)
        return FileResponse(
            path, media_type="text/csv; charset=utf-8", filename=f"{job['name']}-{job_id}.csv"
        )

    @router.get("/jobs/{job_id}/log", **gives(an_object("text", "next")))
    def log(job_id: str, since: int = 0) -> LogPart:
        return service.log(job_id, since)


def _add_files(router: APIRouter, service: TrainingService) -> None:
    @router.get("/jobs/{job_id}/files", **gives(a_list("name", "lora", "part", "size_bytes")))
    def files(job_id: str) -> list[JobFile]:
        return [describe_file(path) for path in service.files(job_id)]

    @router.get(
        "/jobs/{job_id}/files/{name}",
        response_class=FileResponse,
        responses=file_of(OCTETS, "application/json", "image/png"),
    )
    def file(job_id: str, name: str) -> FileResponse:
        path = find_file(service.files(job_id), name)
        media_type = {".json": "application/json", ".png": "image/png"}.get(path.suffix, OCTETS)
        return FileResponse(path, media_type=media_type, filename=path.name)

    @router.get(
        "/jobs/{job_id}/files.zip",
        response_class=StreamingResponse,
        responses=file_of("application/zip"),
    )
    def archive(job_id: str, lora: str | None = None) -> StreamingResponse:
        found = service.files(job_id)
        name = lora
        if name is None:
            name = found[0].stem if found else service.job(job_id)["name"]
        chosen = find_file(found, f"{name}.safetensors")
        disposition = f"attachment; filename*=utf-8''{quote(name, safe='')}.zip"
        return StreamingResponse(
            zipped([path for path in found if path.stem == chosen.stem]),
            media_type="application/zip",
            headers={"Content-Disposition": disposition},
        )


def _entry(service: TrainingService, job_id: str) -> JobEntry:
    job = service.job(job_id)
    return {"id": job["id"], "state": job["state"], "position": job["position"]}
