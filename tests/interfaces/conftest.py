"""The standalone page in a real browser, in front of the real API and a tiny model: fixtures for the browser tests of this folder."""
import gc
import threading
import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lora_trainer.interfaces import api
from lora_trainer.jobs.service import TrainingService
from tests.browser import browser, drop_files, files_in  # noqa: F401 - a fixture
from tests.waiting import stop_all

WAIT_MS = 60_000


@pytest.fixture
def service(host):
    service = TrainingService(host)
    yield service
    stop_all(service)
    service.library.close()


@pytest.fixture
def client(service):
    """The API alone, without a server."""
    app = FastAPI()
    api.mount(app, service)
    return TestClient(app)


@pytest.fixture
def address(service):
    """Serve the page from a thread for one test."""
    import gradio
    if int(gradio.__version__.split(".")[0]) < 6:
        pytest.skip("the standalone page needs gradio 6")
    import uvicorn

    from lora_trainer.interfaces.page import create_app
    config = uvicorn.Config(create_app(service), host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + WAIT_MS / 1000
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)
    del server, config
    gc.collect()


@pytest.fixture
def page(browser, address):  # noqa: F811 - the fixture
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith((address, "data:", "blob:")) or page.problems.append(f"fetched {request.url}"))
    page.goto(address)
    page.wait_for_selector("#tl-setting-output_name")
    yield page
    context.close()
    assert page.problems == []


@pytest.fixture
def filled(page, service, pictures):
    """The page with the six pictures in a data set; returns the data set's folder."""
    drop_files(page, files_in(pictures))
    page.wait_for_selector(".tl-summary:has-text('6 pictures · 6 captions')")
    (dataset,) = service.library.all()
    return service.library.path(dataset["name"])
