"""The standalone page in a real browser, in front of the real API and a tiny model: fixtures for
the browser tests of this folder.
"""

import gc
import threading
import time
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient

from lora_trainer.jobs.service import TrainingService
from lora_trainer.web import api
from tests.support.browser import browser, drop_files, files_in  # noqa: F401 - a fixture
from tests.support.waiting import stop_all

WAIT_MS = 60_000
# How many times faster a page's clock can run than ours, so that what it looks at every few seconds
# shows in parts of one. What people read and press, for six seconds and longer, stays as long.
FASTER = 5
faster_clock = pytest.mark.usefixtures("_faster_clock")
_FASTER_CLOCK = """(() => {
    const wait = window.setTimeout.bind(window), now = Date.now, began = now();
    window.setTimeout = (act, ms, ...given) => wait(act, ms > 50 && ms < 6000 ? ms / FASTER : ms, ...given);
    Date.now = () => began + Math.round((now() - began) * FASTER);
})();""".replace("FASTER", str(FASTER))  # noqa: E501


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


# the page without gradio around it, which takes half the time; for modules with PAGE = PLAIN
PLAIN = "plain"


class _Switch:
    """An ASGI app that serves one page for all tests, and under it the API of the test that is
    running.
    """

    def __init__(self, page) -> None:
        self._page, self.api = page, None

    async def __call__(self, scope, receive, send):
        ours = scope["type"] != "lifespan" and scope["path"].startswith(f"{api.PREFIX}/")
        await (self.api if ours and self.api else self._page)(scope, receive, send)


def html_in(blocks) -> str:
    return "".join(block.value for block in blocks.blocks.values() if hasattr(block, "value"))


@pytest.fixture(scope="session")
def server():
    """Serve the page from a thread; returns its address and the switch. Making gradio's page takes
    longer than most tests.
    """
    import gradio

    if int(gradio.__version__.split(".")[0]) < 6:
        pytest.skip("the standalone page needs gradio 6")
    import uvicorn

    from lora_trainer.web import tab

    root = Path(__file__).parents[2]
    javascript, style, app = root / "javascript", root / "style.css", FastAPI()
    plain = (
        "<!doctype"
        f" html><html><head><title>{tab.TITLE}</title>{tab.page_head(javascript, style)}</head><body>{html_in(tab.create_tab())}</body></html>"  # noqa: E501
    )
    app.add_api_route(f"/{PLAIN}", lambda: HTMLResponse(plain))
    switch = _Switch(tab.mount_page(app, javascript=javascript, style=style))
    config = uvicorn.Config(
        switch, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + WAIT_MS / 1000
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", switch
    server.should_exit = True
    thread.join(10)
    del server, config
    gc.collect()


@pytest.fixture
def address(server, service):
    """The page's address, in front of this test's own service."""
    address, switch = server
    switch.api = FastAPI()
    api.mount(switch.api, service)
    yield address
    switch.api = None


@pytest.fixture
def _faster_clock():
    """Tell the fixture `page` that a test does not want to wait."""


def hasten(page):
    """Give a page that is not open yet the faster clock."""
    page.add_init_script(_FASTER_CLOCK)


@pytest.fixture(scope="module")
def context(browser):  # noqa: F811 - the fixture
    """One window's worth of cache and memory for a module: gradio's files are fetched once."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(context, address, request):
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    if "_faster_clock" in request.fixturenames:
        hasten(page)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "request",
        lambda request: (
            request.url.startswith((address, "data:", "blob:"))
            or page.problems.append(f"fetched {request.url}")
        ),
    )
    page.goto(address + getattr(request.module, "PAGE", ""))
    page.wait_for_selector("#tl-setting-output_name")
    yield page
    context.set_offline(False)
    page.evaluate("localStorage.clear()")
    for each in context.pages:
        each.close()
    assert page.problems == []


@pytest.fixture
def filled(page, service, pictures):
    """The page with the six pictures in a data set; returns the data set's folder."""
    drop_files(page, files_in(pictures))
    page.wait_for_selector(".tl-summary:has-text('6 pictures · 6 captions')")
    (dataset,) = service.library.all()
    return service.library.path(dataset["name"])
