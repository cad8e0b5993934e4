"""The page behind a proxy that rewrites the Host, in a real browser: a WebSocket is refused there,
so that the page asks.
"""

from urllib.parse import urlsplit

import pytest

from tests.support.browser import drop_files, files_in, text
from tests.support.pages import FASTER, PLAIN, WAIT_MS, hasten
from tests.support.proxy import HostProxy

# What gradio leaves open when it goes is not ours to close.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
ASKING = ".tl-asking"


@pytest.fixture
def through(context, address):
    """Open the page through the proxy."""
    with HostProxy(urlsplit(address).port) as proxy:
        page = context.new_page()
        hasten(page)
        page.set_default_timeout(WAIT_MS)
        page.sockets = []
        page.on("websocket", lambda socket: page.sockets.append(socket))
        page.goto(proxy.address + PLAIN)
        page.wait_for_selector("#tl-setting-output_name")
        yield page
        page.evaluate("localStorage.clear()")
        page.close()


def test_where_the_socket_is_refused_the_page_says_that_it_asks_and_works(
    through, service, pictures
):
    page = through
    page.wait_for_selector(f"{ASKING}:visible")
    assert "asks" in text(page, ASKING) and "Host" in page.get_attribute(ASKING, "title")
    assert page.sockets and all(socket.is_closed() for socket in page.sockets)
    drop_files(page, files_in(pictures))
    page.wait_for_selector(".tl-picture")
    page.check("input[name=tl-preset][value=quick_try]", force=True)
    for name, value in {
        "resolution": "64",
        "max_train_steps": "5",
        "lora_rank": "2",
        "output_name": "mine",
    }.items():
        page.fill(f"#tl-setting-{name}", value)
    page.click("#tl-train:not(:disabled)")
    page.wait_for_selector(".tl-tag:visible:text-is('<lora:mine:0.8>')")
    assert service.job("1")["state"] == "finished" and page.is_visible(ASKING)


def test_a_page_that_listens_does_not_say_that_it_asks(context, address):
    page = context.new_page()
    hasten(page)
    page.goto(address + PLAIN)
    page.wait_for_selector("#tl-setting-output_name")
    page.wait_for_timeout(4000 / FASTER)
    assert not page.is_visible(ASKING)
    page.close()
