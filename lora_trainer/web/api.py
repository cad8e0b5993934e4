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
from starlette.types import Receive, Scope, Send

from ..base.paths import request_for_host
from ..jobs.service import TrainingService
from . import guard as request_guard
from . import websockets
from .errors import error_response
from .guard import Guard
from .json import Json
from .responses import ERRORS
from .routes import captioning, datasets, host, jobs, presets, settings, storage

PREFIX = "/train-lora/v1"
Handle = Callable[[Request], Awaitable[Response]]


def _route_class(guard: Guard) -> type[APIRoute]:
    """Return the class of our routes; each handles requests as `_guarded` does."""

    class GuardedRoute(APIRoute):
        def __init__(self, path: str, endpoint: Callable[..., object], **options: Any) -> None:
            # FastAPI would check and copy what a route returns, by the type that it is said to be.
            super().__init__(path, endpoint, **{**options, "response_model": Any})

        def get_route_handler(self) -> Handle:
            return _guarded(super().get_route_handler(), guard)

    return GuardedRoute


def _guarded(handle: Handle, guard: Guard) -> Handle:
    """Ask both guards before anything of the body is read, and turn errors into responses."""

    async def handle_guarded(request: Request) -> Response:
        try:
            guard(request)
            request_guard.check_change(request)
            with request_for_host(request_guard.foreign_name(request)):
                response = await handle(request_guard.limited(request))
        except Exception as error:  # entry point: log and report
            response = error_response(request, error)
        response.headers.update(request_guard.HEADERS)
        return response

    return handle_guarded


def mount(app: FastAPI, service: TrainingService, *, guard: Guard = lambda request: None) -> None:
    """Add the routes to an app. `guard` raises HTTPException for a request that may not ask."""
    routes = app.router.routes
    others = list(routes)
    router = create_router(service, guard)
    app.include_router(router)
    app.include_router(websockets.create_router(service, guard, prefix=PREFIX))
    ours = [*routes[len(others) :], _UnknownRoute(router, guard)]
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
    """The same routes where the app has a root_path (--subpath).

    A proxy strips that off the path or does not, and Starlette matches the one or the other,
    depending on its version.
    """

    path = name = PREFIX  # for code that lists an app's routes

    def __init__(self, routes: list[BaseRoute]) -> None:
        self._router = Router(routes)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.FULL if self._path(scope) else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router({**scope, "path": self._path(scope), "root_path": ""}, receive, send)

    @staticmethod
    def _path(scope: Scope) -> str | None:
        """Return the path without the subpath; None where it is not ours or has no subpath."""
        root = scope.get("root_path", "").rstrip("/")
        if not root or scope["type"] not in ("http", "websocket"):
            return None
        for path in (scope["path"].removeprefix(root), scope["path"]):
            if f"{path}/".startswith(f"{PREFIX}/"):
                return path
        return None


class _UnknownRoute(Route):
    """Responds where no route of ours matches: 404, or 405 where another method would be right; to
    whoever may ask only.
    """

    def __init__(self, router: APIRouter, guard: Guard) -> None:
        self._routes = [route for route in router.routes if isinstance(route, APIRoute)]
        endpoint = _Endpoint(_guarded(self._refuse, guard))
        super().__init__(f"{PREFIX}/{{rest:path}}", endpoint, include_in_schema=False)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        # not by the pattern, which would not take a line break
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(f"{PREFIX}/"):
            return Match.NONE, {}
        return Match.FULL, {"endpoint": self.endpoint}

    async def _refuse(self, request: Request) -> Response:
        path = request.scope["path"]
        methods: set[str] = set()
        for route in self._routes:
            if route.path_regex.match(path):
                methods |= route.methods
        if not methods:
            raise HTTPException(404, "There is no such route.")
        allowed = ", ".join(sorted(methods))
        message = f"This can be asked by {allowed} only."
        raise HTTPException(405, message, headers={"Allow": allowed})


class _Endpoint:
    """An endpoint for any method: Starlette gives functions GET alone."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handle(Request(scope, receive))
        await response(scope, receive, send)
