"""REST under /train-lora/v1, as in DESIGN.md's table: JSON in, JSON out, errors `{"error": {"code", "message", "field"?}}`.

Host-agnostic: whoever mounts it brings the guard (who may ask) and the service (what answers). Runs on FastAPI 0.94 to the newest.
"""
import io
import logging
from collections.abc import Callable
from typing import Any, Optional
from urllib.parse import urlparse

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from ..core.errors import Refused
from ..jobs.service import TrainingService
from . import captioning_api, datasets_api
from .requests import number, text

log = logging.getLogger(__name__)
PREFIX = "/train-lora/v1"
STATUS_CODES = {"not_found": 404, "name_taken": 409, "busy": 409, "exists": 409, "forbidden_path": 403, "not_trainable": 409, "cannot_save": 507,
                "disk_full": 507, "too_large": 413, "changed_meanwhile": 409, "nothing_to_undo": 409, "nothing_to_redo": 409,
                "not_ready": 409, "no_download": 409, "nothing_to_restore": 409}
Guard = Callable[[Request], None]


class _Route(APIRoute):
    """Turns every refusal into the error format; an unforeseen exception becomes a 500 in the same format, with its trace in the log."""

    def get_route_handler(self):
        handle = super().get_route_handler()

        async def handle_errors(request: Request) -> Response:
            try:
                _refuse_other_sites(request)
                return await handle(request)
            except Refused as error:
                return _error(STATUS_CODES.get(error.code, 422), error.code, error.message, error.field, error.details)
            except RequestValidationError as error:
                first = error.errors()[0]
                where = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path")]
                return _error(422, "bad_request", f"The request is not as expected: {first.get('msg', 'invalid')}.", ".".join(where) or None)
            except HTTPException as error:
                response = _error(error.status_code, "not_allowed" if error.status_code in (401, 403) else "http_error", str(error.detail))
                response.headers.update(error.headers or {})
                return response
            except Exception as error:                                             # entry point: log and report
                log.exception("%s %s failed", request.method, request.url.path)
                return _error(500, "internal", f"Something went wrong: {type(error).__name__}: {error}. The server's console has the details.")
        return handle_errors


def mount(app: FastAPI, service: TrainingService, *, guard: Guard = lambda request: None) -> None:
    """Add the routes to an app. `guard` raises HTTPException for a request that may not ask."""
    app.include_router(create_router(service, guard))
    if app.router.routes:                                                          # before gradio's catch-all, where there is one
        ours = [route for route in app.router.routes if getattr(route, "path", "").startswith(PREFIX)]
        app.router.routes[:] = ours + [route for route in app.router.routes if route not in ours]


def create_router(service: TrainingService, guard: Guard) -> APIRouter:
    def guarded(request: Request) -> None:
        guard(request)

    router = APIRouter(prefix=PREFIX, route_class=_Route, dependencies=[Depends(guarded)], tags=["Train LoRA"])
    _add_information(router, service)
    datasets_api.add_routes(router, service)
    captioning_api.add_routes(router, service)
    _add_jobs(router, service)
    _add_generate(router, service)
    return router


def _add_information(router: APIRouter, service: TrainingService) -> None:
    @router.get("/status")
    def status() -> Any:
        return service.status()

    @router.get("/presets")
    def presets() -> Any:
        return service.presets()

    @router.get("/loras")
    def loras() -> Any:
        return service.loras()


def _add_jobs(router: APIRouter, service: TrainingService) -> None:
    @router.post("/plan")
    def plan(body: dict = Body(...)) -> Any:
        return service.plan(_config(body), thorough=False)                         # the page asks at every key press; its checks find damage

    @router.post("/jobs", status_code=201)
    def start(body: dict = Body(...)) -> Any:
        return {"id": service.start(_config(body))}

    @router.get("/jobs")
    def jobs(kind: Optional[str] = None) -> Any:
        return service.jobs(kind)

    @router.get("/jobs/{job_id}")
    def job(job_id: str) -> Any:
        return service.job(job_id)

    @router.post("/jobs/{job_id}/stop")
    def stop(job_id: str) -> Any:
        return service.stop(job_id)

    @router.get("/jobs/{job_id}/metrics")
    def metrics(job_id: str, since: int = 0) -> Any:
        return service.metrics(job_id, since)


def _add_generate(router: APIRouter, service: TrainingService) -> None:
    @router.post("/generate")
    def generate(body: dict = Body(...)) -> Any:
        if service.current_job():
            raise Refused("A LoRA is being trained or captions are being written; pictures can be drawn when that has ended.", code="busy")
        size = service.host.default_size_px
        image = service.host.generate(text(body, "prompt"), negative_prompt=text(body, "negative_prompt", required=False) or "",
                                      seed=int(number(body, "seed", 0, 0, 2**32 - 1)), steps=int(number(body, "steps", 20, 1, 150)),
                                      guidance=number(body, "guidance", 7.0, 1.0, 30.0), width=int(number(body, "width", size, 64, 2048)) // 8 * 8,
                                      height=int(number(body, "height", size, 64, 2048)) // 8 * 8)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")


# --- Reading requests ----------------------------------------------------------------------------------------------------

def _config(body: dict) -> dict:
    config = body.get("config")
    if not isinstance(config, dict):
        raise Refused("`config` must map settings to values.", field="config", code="bad_request")
    return config


def _refuse_other_sites(request: Request) -> None:
    """A page of another site may not change anything here on behalf of somebody who is logged in."""
    origin = request.headers.get("origin")
    if request.method in ("GET", "HEAD", "OPTIONS") or not origin or request.headers.get("sec-fetch-site") == "same-origin":
        return
    hosts = {request.headers.get("host"), request.headers.get("x-forwarded-host")}
    if urlparse(origin).netloc not in hosts:
        raise HTTPException(403, "This request comes from another site. Behind a proxy, let it pass on the header Host or X-Forwarded-Host.")


def _error(status: int, code: str, message: str, field: str | None = None, details: dict[str, Any] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message, **({"field": field} if field else {}), **(details or {})}}, status_code=status)
