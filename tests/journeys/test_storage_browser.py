"""A LoRA downloaded through the page, and the disk looked at and cleared, in a real browser."""

import pytest

from tests.support.browser import text
from tests.support.pages import PLAIN

PAGE = PLAIN
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def job(service, settings):
    return service.wait(
        service.start({**settings, "output_name": "zib", "max_train_steps": 4, "save_steps": 2}), 60
    )


def downloaded(page, act):
    with page.expect_download() as download:
        act()
    return download.value


def test_downloads_and_storage(job, page, service, host):
    page.click(".tl-run-open")
    page.click(".tl-run-actions >> text=Download")
    lora = downloaded(page, lambda: page.click("text=Download the LoRA"))
    assert (
        lora.suggested_filename == "zib.safetensors"
        and lora.path().read_bytes() == (host.lora_dir / "zib.safetensors").read_bytes()
    )
    page.click(".tl-run-panel .tl-chip-button")
    assert (
        downloaded(page, lambda: page.click("text=Download with its card")).suggested_filename
        == "zib-000002.zip"
    )
    page.wait_for_function("document.querySelector('.tl-storage-link').textContent.includes('MB')")
    page.click(".tl-storage-link")
    page.wait_for_selector(".tl-storage-row")
    assert page.locator(".tl-storage-row").count() == 4 and "1 finished run" in text(
        page, ".tl-storage"
    )
    page.click(".tl-storage-row:nth-child(2) button")
    assert "cannot be trained on any more" in text(
        page, ".tl-ask"
    ) and "Their LoRAs, settings, logs and figures stay" in text(page, ".tl-ask")
    page.click(".tl-ask button:text('Remove')")
    page.wait_for_function("document.querySelector('.tl-storage-row:nth-child(2) button').disabled")
    assert not service.job(job["id"])["resumable"] and (host.lora_dir / "zib.safetensors").is_file()
