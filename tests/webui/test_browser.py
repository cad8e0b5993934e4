"""The main job by hand, in a browser before a running WebUI: drop pictures, press Train, draw with the tag."""
import base64
import os
import shutil
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install playwright")

WAIT_MS = 240_000
DROP = """([files, target]) => {
    const transfer = new DataTransfer();
    for (const [name, data] of files) {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name));
    }
    document.querySelector(target).dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
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
def page(browser, webui):
    """The WebUI in a browser that has never seen it, at the tab Train LoRA."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    open_tab(page, webui)
    yield page
    context.close()
    assert [problem for problem in page.problems if "train_lora" in problem] == []


def open_tab(page, webui):
    page.goto(webui.address, wait_until="domcontentloaded")
    page.click("#tabs > .tab-nav > button:has-text('Train LoRA')")
    page.wait_for_selector("#tl-setting-output_name")


def drop(page, folder: Path):
    files = [(path.name, base64.b64encode(path.read_bytes()).decode()) for path in sorted(folder.iterdir()) if path.suffix in (".png", ".txt")]
    page.evaluate(DROP, [files, ".tl-drop"])
    page.wait_for_selector(".tl-picture")


def set_number(page, block: str, value: int):
    """Type into one of the WebUI's own sliders."""
    page.fill(f"#{block} input[type=number]", str(value))
    page.press(f"#{block} input[type=number]", "Tab")


def test_from_dropped_pictures_to_a_picture(page, webui, tmp_path):
    from lora_trainer.demo.concept import write_dataset
    drop(page, write_dataset(tmp_path / "zib", 16))
    page.wait_for_selector(".tl-summary:has-text('16 pictures · 16 captions · 0 problems')")
    page.check("input[name=tl-preset][value=quick_try]", force=True)
    for name, value in dict(output_name="by-hand", trigger_word="zib", resolution=64, max_train_steps=8).items():
        page.fill(f"#tl-setting-{name}", str(value))
    page.wait_for_selector(".tl-plan-main:has-text('8 steps')")
    page.click("#tl-train:not(:disabled)")
    page.wait_for_selector(".tl-tag:visible, .tl-bad:visible")
    assert page.inner_text(".tl-tag") == "<lora:by-hand:0.8>"

    page.click(".tl-good >> text=Send to txt2img")
    page.wait_for_selector("#txt2img_prompt textarea:visible")
    assert page.input_value("#txt2img_prompt textarea") == "zib <lora:by-hand:0.8>"
    for block, value in dict(txt2img_width=64, txt2img_height=64, txt2img_steps=2).items():
        set_number(page, block, value)
    page.click("#txt2img_generate")
    page.wait_for_selector("#html_info_txt2img:has-text('by-hand')")
    assert "<lora:by-hand:0.8>" in page.inner_text("#html_info_txt2img")

    page.click("#txt2img_extra_tabs button:has-text('Lora')")                       # the card is there without Refresh
    page.wait_for_selector("#txt2img_lora_cards .name:has-text('by-hand')")

    page.reload(wait_until="domcontentloaded")                                      # a page opened again shows the last run
    page.click("#tabs > .tab-nav > button:has-text('Train LoRA')")
    page.wait_for_selector(".tl-tag:visible:has-text('<lora:by-hand:0.8>')")


def test_own_train_tab_leads_here(page):
    page.click("#tabs > .tab-nav > button:text-is('Train')")
    page.click("#tab_train button[role=tab]:text-is('LoRA'), #tab_train .tab-nav button:text-is('LoRA')")
    page.click("text=Open Train LoRA")
    page.wait_for_selector("#tl-train:visible")


def test_model_line_names_the_checkpoint(page, webui):
    checkpoint = webui.get("/train-lora/v1/status")["model"]["checkpoint"]
    page.wait_for_selector(f".tl-model-text:has-text('{checkpoint}')")
