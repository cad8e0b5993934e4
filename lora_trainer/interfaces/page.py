"""The page without a WebUI: the same tab, served to this machine only."""
from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..jobs.service import TrainingService
from . import api, tab

LOOPBACK = "127.0.0.1"


def create_app(service: TrainingService) -> FastAPI:
    """Join the API and the page. Other names for this machine are refused, so that no web site can reach it by a name of its own."""
    app = FastAPI(title="Train LoRA")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", LOOPBACK])
    api.mount(app, service)
    root = Path(str(resources.files("lora_trainer"))).parent
    return tab.mount_page(app, javascript=root / "javascript", style=root / "style.css")


def serve(service: TrainingService, *, port: int) -> None:
    """Serve until Ctrl-C."""
    import uvicorn
    uvicorn.run(create_app(service), host=LOOPBACK, port=port, log_level="warning")
