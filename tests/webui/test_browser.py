"""The main job by hand, in a browser before a running WebUI: drop pictures, press Train, draw with
the tag.
"""

import pytest

from tests.support.browser import browser, drop_files, files_in  # noqa: F401 - a fixture

WAIT_MS = 240_000


@pytest.fixture
def page(browser, webui):  # noqa: F811 - the fixture
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


def drop(page, folder):
    drop_files(
        page,
        {name: data for name, data in files_in(folder).items() if name.endswith((".png", ".txt"))},
    )
    page.wait_for_selector(".tl-picture")


def set_number(page, block: str, value: int):
    """Type into one of the WebUI's own sliders."""
    page.fill(f"#{block} input[type=number]", str(value))
    page.press(f"#{block} input[type=number]", "Tab")


def test_from_dropped_pictures_to_a_picture(page, webui, tmp_path):
    from lora_trainer.demo.concept import write_dataset

    drop(page, write_dataset(tmp_path / "zib", 16))
    page.wait_for_selector(".tl-summary:has-text('16 pictures · 16 captions')")
    page.check("input[name=tl-preset][value=quick_try]", force=True)
    for name, value in dict(
        output_name="by-hand", trigger_word="zib", resolution=64, max_train_steps=8
    ).items():
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

    page.click("#txt2img_extra_tabs button:has-text('Lora')")  # the card is there without Refresh
    page.wait_for_selector("#txt2img_lora_cards .name:has-text('by-hand')")

    page.reload(wait_until="domcontentloaded")  # a page opened again shows the last run
    page.click("#tabs > .tab-nav > button:has-text('Train LoRA')")
    page.wait_for_selector(".tl-tag:visible:has-text('<lora:by-hand:0.8>')")


def test_own_train_tab_leads_here(page):
    page.click("#tabs > .tab-nav > button:text-is('Train')")
    page.click(
        "#tab_train button[role=tab]:text-is('LoRA'), #tab_train .tab-nav button:text-is('LoRA')"
    )
    page.click("text=Open Train LoRA")
    page.wait_for_selector("#tl-train:visible")


def test_model_line_names_the_checkpoint(page, webui):
    checkpoint = webui.get("/train-lora/v1/status")["model"]["checkpoint"]
    page.wait_for_selector(f".tl-model-text:has-text('{checkpoint}')")


def test_picture_of_the_gallery_comes_with_its_prompt(page, webui):
    page.click("#tabs > .tab-nav > button:has-text('txt2img')")
    page.fill("#txt2img_prompt textarea", "a ring at dusk <lora:nothing:0.5>")
    for block, value in dict(txt2img_width=64, txt2img_height=64, txt2img_steps=2).items():
        set_number(page, block, value)
    page.click("#txt2img_generate")
    page.wait_for_selector("#txt2img_gallery img")
    page.wait_for_selector("#html_info_txt2img:has-text('a ring at dusk')")
    page.click("#txt2img_send_to_train_lora")
    page.wait_for_selector(".tl-toast:has-text('Added to generated')")
    page.click(".tl-toast-action")
    page.wait_for_selector(".tl-caption-text:visible:text-is('a ring at dusk')")
    rows = webui.get("/train-lora/v1/datasets/generated")["pictures"]
    assert [(row["caption"], row["width"]) for row in rows] == [("a ring at dusk", 64)]


def test_keys_of_the_pictures_do_nothing_while_another_tab_is_in_front(page, webui, tmp_path):
    from lora_trainer.demo.concept import write_dataset

    drop(page, write_dataset(tmp_path / "keys", 2))
    page.locator(".tl-caption").first.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("changed")
    page.keyboard.press("Enter")
    page.wait_for_selector(".tl-mark-saved")
    name = page.input_value("#tl-dataset")
    page.click("#tabs > .tab-nav > button:has-text('txt2img')")
    page.fill("#txt2img_prompt textarea", "something")
    page.keyboard.press("Control+z")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Control+z")
    page.wait_for_timeout(500)
    assert "changed" in [
        row["caption"] for row in webui.get(f"/train-lora/v1/datasets/{name}")["pictures"]
    ]
