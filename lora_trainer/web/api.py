"""The REST API under /train-lora/v1, as in docs/api.md: JSON in, JSON out; mounts the routes of
routes/ on a FastAPI app and asks the guard before each.

Whoever mounts it brings the host's guard (who may ask) and the service. Runs on FastAPI 0.94 to the
newest.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match, Route, Router

from ..base.paths import asked_under
from ..jobs.service import TrainingService
from . import guard as request_guard
from . import websockets
from .errors import error_response
from .json import Json
from .responses import ERRORS
from .routes import captioning, datasets, host, jobs, presets, settings, storage
from .websockets import Guard

PREFIX = "/train-lora/v1"
Handle = Callable[[Request], Awaitable[Response]]


def _route_class(guard: Guard) -> type[APIRoute]:
    """Return the class of our routes; each handles requests as `_guarded` does."""

    class Route(APIRoute):
        def get_route_handler(self) -> Handle:
            return _guarded(super().get_route_handler(), guard)

    return Route


def _guarded(handle: Handle, guard: Guard) -> Handle:
    """Ask both guards before anything of the body is read, and turn errors into responses."""

    async def answer(request: Request) -> Response:
        try:
            guard(request)
            request_guard.check_change(request)
            with asked_under(request_guard.foreign_name(request)):
                response = await handle(request_guard.limited(request))
        except Exception as error:  # entry point: log and report
            response = error_response(request, error)
        response.headers.update(request_guard.HEADERS)
        return response

    return answer


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
    for routes in (host, presets, settings, datasets, captioning, jobs, storage):
        routes.add_routes(router, service)
    return router


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
            _guarded(self._refuse, guard),
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
