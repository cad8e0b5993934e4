"""The page without a WebUI: the same tab, served to this machine only."""

from importlib import resources
from pathlib import Path

from fastapi import FastAPI, HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..jobs.service import TrainingService
from . import api, guard, tab

LOOPBACK = "127.0.0.1"


class OwnSiteOnly:
    """Middleware that keeps pages of other sites from gradio's own routes, such as its upload.

    The API's routes check that themselves. GET requests pass: a link may lead here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        writes = scope["type"] == "http" and scope["method"] not in guard.READING
        if writes and not scope["path"].startswith(f"{api.PREFIX}/"):
            try:
                guard.refuse_other_sites(Request(scope))
            except HTTPException as error:
                app = JSONResponse({"detail": error.detail}, error.status_code)
        await app(scope, receive, send)


def create_app(service: TrainingService) -> FastAPI:
    """Join the API and the page. Other names for this machine are refused, so that no web site can
    reach it by a name of its own.
    """
    app = FastAPI(title="Train LoRA")
    app.add_middleware(OwnSiteOnly)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", LOOPBACK])
    api.mount(app, service)
    root = Path(str(resources.files("lora_trainer"))).parent
    return tab.mount_page(app, javascript=root / "javascript", style=root / "style.css")


def serve(service: TrainingService, *, port: int) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    uvicorn.run(create_app(service), host=LOOPBACK, port=port, log_level="warning")
