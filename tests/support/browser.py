"""A real browser for tests of the page: the fixture `browser`, and dropping files as a person
does.
"""

import base64
import os
import shutil
from pathlib import Path

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_DROP = """([files, target]) => {
    const transfer = new DataTransfer();
    for (const [name, data] of files) {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name));
    }
    const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
    for (const kind of ['dragenter', 'dragover', 'drop']) document.querySelector(target).dispatchEvent(new DragEvent(kind, options));
}"""  # noqa: E501


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="browser tests need playwright: pip install playwright"
    )
    chromium = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not chromium:
        pytest.skip("there is no chromium; install one or name it in CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


def drop_files(page, files: dict[str, bytes], target: str = ".tl-drop") -> None:
    """Drop files, by name, on an element of the page."""
    page.evaluate(
        _DROP, [[(name, base64.b64encode(data).decode()) for name, data in files.items()], target]
    )


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def text(page, selector: str) -> str:
    return page.inner_text(selector).strip()
