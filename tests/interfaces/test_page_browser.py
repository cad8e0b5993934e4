"""The standalone page in a real browser, in front of the real API and a tiny model."""
import base64
import gc
import os
import shutil
import threading
import time
from pathlib import Path

import gradio as gr
import pytest

from lora_trainer.jobs.service import TrainingService

sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install playwright")
if int(gr.__version__.split(".")[0]) < 6:
    pytest.skip("the standalone page needs gradio 6", allow_module_level=True)

# What gradio leaves open when it goes is not ours to close.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
WAIT_MS = 60_000
DROP = """([files, target]) => {
    const transfer = new DataTransfer();
    for (const [name, data] of files) {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name));
    }
    const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
    for (const kind of ['dragenter', 'dragover', 'drop']) document.querySelector(target).dispatchEvent(new DragEvent(kind, options));
}"""


@pytest.fixture(scope="module")
def browser():
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        pytest.skip("there is no chromium; install one or name it in CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield browser
        browser.close()


@pytest.fixture
def service(host):
    return TrainingService(host)


@pytest.fixture
def address(service):
    """Serve the page from a thread for one test."""
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
    if (job := service.current_job()):
        service.stop(job["id"])
        service.wait(job["id"], 10)
    del server, config
    gc.collect()


@pytest.fixture
def page(browser, address):
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


def drop(page, folder, **more: bytes):
    files = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())] + [(name.replace("_", "."), data) for name, data in more.items()]
    page.evaluate(DROP, [[(name, base64.b64encode(data).decode()) for name, data in files], ".tl-drop"])
    page.wait_for_selector(".tl-picture")


def fill(page, **values):
    for name, value in values.items():
        page.fill(f"#tl-setting-{name}", str(value))


def small_run(page, name="mine", steps=5):
    page.check("input[name=tl-preset][value=quick_try]", force=True)
    fill(page, output_name=name, trigger_word="zib", resolution=64, max_train_steps=steps, lora_rank=2)


def text(page, selector):
    return page.inner_text(selector).strip()


def test_from_drop_to_tag(page, host, pictures):
    drop(page, pictures, notes_png=b"no picture", model_ckpt=b"x")
    page.wait_for_selector("text=2 files were not taken")
    assert text(page, ".tl-summary") == "6 pictures · 6 captions · 0 problems"
    assert page.locator(".tl-caption").first.inner_text() == "a circle, number 0"
    small_run(page)
    page.wait_for_selector(".tl-plan-main:has-text('5 steps')")
    page.click("#tl-train:not(:disabled)")
    page.wait_for_selector(".tl-tag:visible")
    assert text(page, ".tl-tag") == "<lora:mine:0.8>"
    assert text(page, ".tl-path.tl-wrap") == str(host.lora_dir / "mine.safetensors") and (host.lora_dir / "mine.safetensors").is_file()
    assert "5 of 5" in text(page, ".tl-stats")
    assert not page.is_visible("text=Send to txt2img")

    page.click(".tl-good >> text=Try it")
    assert page.input_value("#tl-prompt") == "zib <lora:mine:0.8>"
    page.click("#tl-draw")
    page.wait_for_selector(".tl-drawn:visible")


def test_running_job_is_shown_again_and_stops(page, address, pictures):
    drop(page, pictures)
    small_run(page, steps=100_000)
    page.click("#tl-train:not(:disabled)")
    page.wait_for_selector(".tl-is-training:visible")
    page.reload()
    page.wait_for_selector("#tl-stop:visible")
    assert page.input_value("#tl-setting-output_name") == "mine" and page.input_value("#tl-setting-max_train_steps") == "100000"
    assert page.is_disabled("#tl-train") and page.is_visible("progress, [role=progressbar]")
    page.click("#tl-stop")
    page.wait_for_selector(".tl-job .tl-is-stopped")
    page.wait_for_selector("#tl-train:not(:disabled)")


def test_taken_name_is_asked_about(page, host, pictures):
    host.lora_dir.joinpath("mine.safetensors").write_bytes(b"precious")
    drop(page, pictures)
    small_run(page, steps=2)
    page.click("#tl-train:not(:disabled)")
    page.wait_for_selector("button:text-is('Replace it')")
    assert host.lora_dir.joinpath("mine.safetensors").read_bytes() == b"precious"
    page.click("button:has-text('Save as mine-2'):not(:disabled)")
    page.wait_for_selector(".tl-tag:visible:has-text('<lora:mine-2:0.8>')")
    assert host.lora_dir.joinpath("mine.safetensors").read_bytes() == b"precious"
    fill(page, output_name="mine")
    page.click("#tl-train:not(:disabled)")
    page.click("button:text-is('Replace it')")
    page.wait_for_selector(".tl-tag:visible:has-text('<lora:mine:0.8>')")
    assert host.lora_dir.joinpath("mine.safetensors").read_bytes() != b"precious"


def test_mistake_is_shown_at_its_field(page, pictures):
    drop(page, pictures)
    small_run(page)
    fill(page, learning_rate="abc")
    page.wait_for_selector("#tl-setting-learning_rate-error:visible")
    assert "not a number" in text(page, "#tl-setting-learning_rate-error")
    assert page.is_disabled("#tl-train") and page.get_attribute("#tl-setting-learning_rate", "aria-invalid") == "true"
    page.click("button[aria-label^='Learning rate']")
    page.wait_for_selector("#tl-train:not(:disabled)")
    assert page.input_value("#tl-setting-learning_rate") == "0.0005"


def test_caption_is_edited_by_click(page, service, pictures):
    drop(page, pictures)
    page.locator(".tl-caption").nth(1).click()
    page.keyboard.press("Control+a")
    page.keyboard.type("a zib at noon")
    page.keyboard.press("Enter")
    page.wait_for_selector(".tl-mark:has-text('Saved')")
    (dataset,) = service.library.all()
    assert (Path(dataset["path"]) / "1.txt").read_text(encoding="utf-8").strip() == "a zib at noon"
    page.locator(".tl-caption").nth(2).click()
    page.keyboard.type("thrown away")
    page.keyboard.press("Escape")
    assert page.locator(".tl-caption").nth(2).inner_text() == "a circle, number 2"


def test_markup_is_shown_as_text(page, pictures):
    attack = "<img src=x onerror=window.attacked=1><b>bold</b>"
    (pictures / "0.txt").write_text(attack, encoding="utf-8")
    (pictures / "<img src=x onerror=window.attacked=2>.png").write_bytes(b"no picture")
    drop(page, pictures)
    page.wait_for_selector("text=not taken")
    fill(page, output_name=attack)
    page.wait_for_selector("#tl-setting-output_name-error:visible")
    assert page.locator(".tl-caption").first.inner_text() == attack
    assert page.evaluate("window.attacked") is None and page.locator("#train_lora_app b").count() == 0


def test_folder_that_is_not_there(page, pictures):
    page.fill("#tl-folder", "/nowhere/at/all")
    page.click("text=Use folder")
    page.wait_for_selector(".tl-error:has-text('does not exist')")
    page.fill("#tl-folder", str(pictures))
    page.click("text=Use folder")
    page.wait_for_selector(".tl-picture")
    assert text(page, ".tl-summary").startswith("6 pictures")


def test_lost_connection_is_said_and_mended(page):
    page.context.set_offline(True)
    page.wait_for_selector("text=Connection lost")
    page.context.set_offline(False)
    page.wait_for_selector("text=Connection lost", state="hidden")


@pytest.mark.parametrize("width", [400, 800, 1280, 1920])
def test_fits(page, pictures, width):
    drop(page, pictures)
    page.set_viewport_size({"width": width, "height": 900})
    page.click("text=More settings")
    page.wait_for_timeout(100)                                                     # for the layout
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("""() => [...document.querySelectorAll('.tl-card *')].filter((item) => item.offsetParent !== null
        && item.getBoundingClientRect().right > item.closest('.tl-card').getBoundingClientRect().right).map((item) => item.className)""") == []


def test_train_stays_in_view(page, pictures):
    drop(page, pictures)
    page.click("text=More settings")
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    assert page.evaluate("document.querySelector('#tl-train').getBoundingClientRect().top") >= 0


def test_every_control_has_a_label(page):
    nameless = page.evaluate("""() => [...document.querySelectorAll('#train_lora_app :is(input, select, textarea)')]
        .filter((item) => item.type !== 'file' && !item.labels.length && !item.getAttribute('aria-label')).map((item) => item.id)""")
    assert nameless == []
