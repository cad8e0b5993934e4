"""REST under /train-lora/v1, as in DESIGN.md's table: JSON in, JSON out, errors `{"error": {"code",
"message", "field"?}}`.

Host-agnostic: whoever mounts it brings the guard (who may ask) and the service (what answers). Runs
on FastAPI 0.94 to the newest.
"""

import io
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Body, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.routing import BaseRoute, Match, Route, Router

from ..base.errors import Refused
from ..base.paths import serving_foreign_host
from ..jobs.service import TrainingService
from . import guard as doors
from . import websockets
from .bodies import number, text
from .json import Json
from .routes import captioning, datasets, jobs, presets, settings
from .schemas import ERRORS, TEXT, a_list, a_number, an_object, file_of, gives, takes, whole_number
from .websockets import Guard

log = logging.getLogger(__name__)
PREFIX = "/train-lora/v1"
STATUS_CODES = {
    "not_found": 404,
    "name_taken": 409,
    "busy": 409,
    "exists": 409,
    "forbidden_path": 403,
    "not_trainable": 409,
    "cannot_save": 507,
    "disk_full": 507,
    "too_large": 413,
    "changed_meanwhile": 409,
    "nothing_to_undo": 409,
    "nothing_to_redo": 409,
    "not_ready": 409,
    "no_download": 409,
    "nothing_to_restore": 409,
    "cannot_resume": 409,
    "not_running": 409,
}
HTTP_CODES = {
    400: "bad_request",
    401: "not_allowed",
    403: "not_allowed",
    404: "not_found",
    405: "wrong_method",
    413: "too_large",
    415: "wrong_content_type",
}
Handle = Callable[[Request], Awaitable[Response]]


def _route_class(guard: Guard) -> type[APIRoute]:
    """Return the class of our routes, which answer as `_answering` does."""

    class Route(APIRoute):
        def get_route_handler(self) -> Handle:
            return _answering(super().get_route_handler(), guard)

    return Route


def _answering(handle: Handle, guard: Guard) -> Handle:
    """Ask the guard and doors.py before anything of the body is read; whatever is raised becomes an
    answer in the error format.
    """

    async def answer(request: Request) -> Response:
        try:
            guard(request)
            doors.admit(request)
            with serving_foreign_host(doors.foreign_name(request)):
                response = await handle(doors.limited(request))
        except Exception as error:  # entry point: log and report
            response = _refusal(request, error)
        response.headers.update(doors.HEADERS)
        return response

    return answer


def _refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        return _error(
            STATUS_CODES.get(error.code, 422), error.code, error.message, error.field, error.details
        )
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = [
            str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path")
        ]
        return _error(
            422,
            "bad_request",
            f"The request is not as expected: {first.get('msg', 'invalid')}.",
            ".".join(where) or None,
        )
    if isinstance(error, AnyHTTPException):
        response = _error(
            error.status_code, HTTP_CODES.get(error.status_code, "http_error"), str(error.detail)
        )
        response.headers.update(error.headers or {})
        return response
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _error(
        500,
        "internal",
        f"Something went wrong: {type(error).__name__}: {error}. The server's console has the"
        " details.",
    )


def mount(app: FastAPI, service: TrainingService, *, guard: Guard = lambda request: None) -> None:
    """Add the routes to an app. `guard` raises HTTPException for a request that may not ask."""
    routes, router = app.router.routes, create_router(service, guard)
    others = list(routes)
    app.include_router(router)
    app.include_router(websockets.create_router(service, guard, prefix=PREFIX))
    ours = [*routes[len(others) :], _Rest(router, guard)]
    routes[:] = [_UnderSubpath(ours), *ours, *others]  # before gradio's catch-all


def create_router(service: TrainingService, guard: Guard) -> APIRouter:
    router = APIRouter(
        prefix=PREFIX,
        route_class=_route_class(guard),
        default_response_class=Json,
        responses=ERRORS,
        tags=["Train LoRA"],
    )
    _add_information(router, service)
    presets.add_routes(router, service)
    settings.add_routes(router, service)
    datasets.add_routes(router, service)
    captioning.add_routes(router, service)
    jobs.add_routes(router, service)
    _add_generate(router, service)
    return router


def _add_information(router: APIRouter, service: TrainingService) -> None:
    @router.get(
        "/status",
        **gives(
            an_object("version", "host", "model", "lora_dir", "data_dir", "current_job", "problems")
        ),
    )
    def status() -> Any:
        return service.status()

    @router.get("/loras", **gives(a_list("name", "path", "size_bytes", "modified_at")))
    def loras() -> Any:
        return service.loras()


def _add_generate(router: APIRouter, service: TrainingService) -> None:
    @router.post(
        "/generate",
        response_class=Response,
        responses=file_of("image/png"),
        **takes(
            required=["prompt"],
            prompt=TEXT,
            negative_prompt=TEXT,
            seed=whole_number(0, 2**32 - 1),
            steps=whole_number(1, 150),
            guidance=a_number(1, 30),
            width=whole_number(64, 2048),
            height=whole_number(64, 2048),
        ),
    )
    def generate(body: dict = Body(...)) -> Any:
        size = service.host.default_size_px
        image = service.generate(
            text(body, "prompt"),
            negative_prompt=text(body, "negative_prompt", required=False) or "",
            seed=int(number(body, "seed", 0, 0, 2**32 - 1)),
            steps=int(number(body, "steps", 20, 1, 150)),
            guidance=number(body, "guidance", 7.0, 1.0, 30.0),
            width=int(number(body, "width", size, 64, 2048)) // 8 * 8,
            height=int(number(body, "height", size, 64, 2048)) // 8 * 8,
        )
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")


# --- Answers --------------------------------------------------------------------------------------


def _error(
    status: int,
    code: str,
    message: str,
    field: str | None = None,
    details: dict[str, Any] | None = None,
) -> Json:
    return Json(
        {
            "error": {
                "code": code,
                "message": message,
                **({"field": field} if field else {}),
                **(details or {}),
            }
        },
        status_code=status,
    )


class _UnderSubpath(BaseRoute):
    """The same routes where the app has a root_path (--subpath): a proxy strips that off the path
    or does not, and Starlette finds a route by the one or the other, depending on its version.
    """

    path = name = PREFIX  # for who lists an app's routes

    def __init__(self, routes: list[BaseRoute]) -> None:
        self._router = Router(routes)

    def matches(self, scope: Any) -> tuple[Match, dict[str, Any]]:
        return (Match.FULL if self._path(scope) else Match.NONE), {}

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        await self._router({**scope, "path": self._path(scope), "root_path": ""}, receive, send)

    @staticmethod
    def _path(scope: Any) -> str | None:
        """Return the path without the subpath, None where it is not ours or there is no subpath."""
        root = scope.get("root_path", "").rstrip("/")
        if not root or scope["type"] not in ("http", "websocket"):
            return None
        ways = (scope["path"].removeprefix(root), scope["path"])
        return next((path for path in ways if f"{path}/".startswith(f"{PREFIX}/")), None)


class _Rest(Route):
    """Answers where no route of ours does: 404, or 405 where another method would be right; and to
    nobody who may not ask.
    """

    def __init__(self, router: APIRouter, guard: Guard) -> None:
        self._ours, self._answer = (
            [route for route in router.routes if isinstance(route, APIRoute)],
            _answering(self._refuse, guard),
        )
        super().__init__(
            f"{PREFIX}/{{rest:path}}", _Endpoint(self._answer), include_in_schema=False
        )

    def matches(self, scope: Any) -> tuple[Match, dict[str, Any]]:
        ours = scope["type"] == "http" and f"{scope['path']}/".startswith(f"{PREFIX}/")
        return (
            (Match.FULL, {"endpoint": self.endpoint}) if ours else (Match.NONE, {})
        )  # a pattern would not take a line break

    async def _refuse(self, request: Request) -> Response:
        path = request.scope["path"]
        methods = ", ".join(
            sorted(
                {
                    method
                    for route in self._ours
                    if route.path_regex.match(path)
                    for method in route.methods
                }
            )
        )
        if methods:
            raise HTTPException(
                405, f"This can be asked by {methods} only.", headers={"Allow": methods}
            )
        raise HTTPException(404, "There is no such route.")


class _Endpoint:
    """An endpoint for any method: Starlette gives functions GET alone."""

    def __init__(self, answer: Handle) -> None:
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await (await self._answer(Request(scope, receive)))(scope, receive, send)
