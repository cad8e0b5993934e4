"""The grid of pictures in a real browser: captions, history, conflicts, tags, edits of many,
tables, automatic captions.
"""

import base64
import io
import time
import zipfile

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.support.browser import drop_files, text
from tests.support.pages import FASTER, PLAIN, faster_clock

PAGE = PLAIN
# What gradio leaves open when it goes is not ours to close.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def caption(page, number):
    return page.locator(".tl-picture:visible").nth(number).locator(".tl-caption").inner_text()


def write(page, number, words, key="Enter"):
    """Click into a caption, replace all of it, and leave with a key."""
    page.locator(".tl-picture:visible").nth(number).locator(".tl-caption").click()
    page.keyboard.press("Control+a")
    page.keyboard.type(words)
    page.keyboard.press(key)


def on_disk(folder, number):
    file = folder / f"{number}.txt"
    return file.read_text(encoding="utf-8").strip() if file.exists() else ""


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def look_at_once(page):
    """Let the page look at what changed on disk, as it does when its window is used again."""
    page.evaluate("window.dispatchEvent(new Event('focus'))")


def saved(page):
    page.wait_for_selector(".tl-mark-saved:visible")


# --- One caption ----------------------------------------------------------------------------------


def test_click_type_tab_and_it_is_on_disk(page, filled):
    write(page, 1, "a zib at noon", key="Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Caption of 2.png"
    page.keyboard.press("Control+a")
    page.keyboard.type("a zib at night")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.value") == "a zib at noon"
    until(lambda: (on_disk(filled, 1), on_disk(filled, 2)) == ("a zib at noon", "a zib at night"))
    saved(page)


def test_click_puts_the_cursor_where_it_was_clicked(page, filled):
    write(page, 0, "one two")
    page.locator(".tl-caption").first.click(position={"x": 4, "y": 8})
    page.keyboard.type("zero ")
    page.keyboard.press("Enter")
    until(lambda: on_disk(filled, 0) == "zero one two")


def test_escape_restores_and_writes_nothing(page, filled):
    before = (filled / "2.txt").stat().st_mtime_ns
    write(page, 2, "thrown away", key="Escape")
    assert caption(page, 2) == "a circle, number 2"
    page.wait_for_timeout(300)
    assert (filled / "2.txt").stat().st_mtime_ns == before


def test_shift_enter_begins_a_line_and_lines_are_kept(page, filled):
    page.locator(".tl-caption").first.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("a cat,  red")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("mycat")
    page.keyboard.press("Enter")
    until(lambda: on_disk(filled, 0) == "a cat, red\nmycat")
    assert caption(page, 0) == "a cat, red\nmycat" and not page.locator("dialog[open]").count()
    page.locator(".tl-caption").first.click()
    assert page.evaluate("document.activeElement.value") == "a cat, red\nmycat"
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector(".tl-caption")
    assert caption(page, 0) == "a cat, red\nmycat" and chip(page, "mycat").count() == 1


def test_two_captions_and_a_lora_are_marked_on_the_card(page, filled):
    (filled / "1.caption").write_text("kohya's", encoding="utf-8")
    write(page, 0, "a cat lora:mycat:0.9")
    until(lambda: on_disk(filled, 0) == "a cat lora:mycat:0.9")
    page.reload()
    page.wait_for_selector(".tl-remark:has-text('Two captions')")
    page.wait_for_selector(".tl-remark:has-text('LoRA in the caption')")


def test_undo_and_redo_also_after_a_reload(page, filled):
    write(page, 0, "first")
    write(page, 1, "second")
    until(lambda: on_disk(filled, 1) == "second")
    page.keyboard.press("Control+z")
    until(lambda: on_disk(filled, 1) == "a circle, number 1")
    page.reload()
    page.wait_for_selector(".tl-picture")
    page.click("#tl-undo:not(:disabled)")
    until(lambda: on_disk(filled, 0) == "a circle, number 0")
    page.wait_for_selector(".tl-caption:has-text('a circle, number 0')")
    page.locator(".tl-picture").first.focus()
    page.keyboard.press("Control+y")
    page.keyboard.press("Control+Shift+z")
    until(lambda: (on_disk(filled, 0), on_disk(filled, 1)) == ("first", "second"))
    page.wait_for_selector("#tl-redo:disabled")


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [("Leave them", "from an editor"), ("Overwrite them", "a circle, number 0")],
)
def test_undo_of_what_was_changed_outside_asks(page, filled, answer, outcome):
    write(page, 0, "first")
    until(lambda: on_disk(filled, 0) == "first")
    (filled / "0.txt").write_text("from an editor", encoding="utf-8")
    page.click("#tl-undo:not(:disabled)")
    page.wait_for_selector("dialog:has-text('Changed elsewhere'):has-text('0.png')")
    assert on_disk(filled, 0) == "from an editor"
    page.click(f"dialog button:text-is('{answer}')")
    page.wait_for_selector(".tl-toast:has-text('Undone')")
    until(lambda: on_disk(filled, 0) == outcome and caption(page, 0) == outcome)


def test_undo_while_typing_is_the_fields_own(page, filled):
    write(page, 0, "kept")
    until(lambda: on_disk(filled, 0) == "kept")
    page.locator(".tl-caption").first.click()
    page.keyboard.insert_text(" and more")  # at once: a browser undoes slow typing in parts
    page.keyboard.press("Control+z")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert on_disk(filled, 0) == "kept"


def test_change_on_disk_appears_and_is_never_overwritten_unasked(page, filled):
    (filled / "0.txt").write_text("from an editor", encoding="utf-8")
    page.wait_for_selector(".tl-caption:has-text('from an editor')")
    for number, answer, outcome in ((1, "Keep mine", "mine"), (2, "Take theirs", "theirs")):
        page.locator(".tl-caption").nth(number).click()
        (filled / f"{number}.txt").write_text("theirs", encoding="utf-8")
        page.keyboard.press("Control+a")
        page.keyboard.type("mine")
        page.keyboard.press("Enter")
        page.wait_for_selector(".tl-conflict:has-text('theirs'):has-text('mine')")
        assert on_disk(filled, number) == "theirs"
        page.click(f".tl-conflict button:text-is('{answer}')")
        page.wait_for_selector(".tl-conflict", state="detached")
        until(
            lambda number=number, outcome=outcome: (
                on_disk(filled, number) == outcome and caption(page, number) == outcome
            )
        )


def test_text_that_cannot_be_saved_stays_and_is_saved_later(page, filled):
    page.context.set_offline(True)
    write(page, 0, "typed without a server")
    page.wait_for_selector(".tl-mark-failed:visible")
    page.wait_for_selector(".tl-summary:has-text('1 not saved')")
    assert caption(page, 0) == "typed without a server"
    page.context.set_offline(False)
    until(lambda: on_disk(filled, 0) == "typed without a server")
    page.wait_for_selector(".tl-mark-failed", state="hidden")


def test_text_of_a_page_that_was_closed_is_offered_again(page, filled):
    page.locator(".tl-caption").nth(3).click()
    page.keyboard.press("Control+a")
    page.keyboard.type("half a thought")
    page.goto("about:blank")
    page.go_back()
    page.wait_for_selector("text=not saved last time")
    page.click("#tl-pictures .tl-notice button:text-is('Save')")
    until(lambda: on_disk(filled, 3) == "half a thought")
    page.reload()
    page.wait_for_selector(".tl-picture")
    assert not page.is_visible("text=not saved last time")


def test_markup_in_captions_and_tags_is_text(page, filled):
    attack = "<img src=x onerror=window.attacked=1>"
    write(page, 0, f"{attack}, <b>bold</b>")
    page.wait_for_selector(f".tl-chip:has-text('{attack}')")
    page.click("text=Edit captions")
    page.click(".tl-bulk-action:has-text('Add at the end')")
    page.fill("#tl-bulk-text", attack)
    page.wait_for_selector(".tl-changes ins")
    page.keyboard.press("Escape")
    page.locator(".tl-frame").first.dblclick()
    page.wait_for_selector(".tl-detail-image")
    assert (
        page.evaluate("window.attacked") is None and page.locator("#train_lora_app b").count() == 0
    )


# --- Tags and filters -----------------------------------------------------------------------------


@pytest.fixture
def tagged(page, filled):
    for number, words in enumerate(
        ("zib, red", "zib, red, night", "zib, blue", "night, zib", "zib, blue, blue", "")
    ):
        (filled / f"{number}.txt").write_text(words, encoding="utf-8")
    look_at_once(page)
    page.wait_for_selector(".tl-chip:has-text('zib') .tl-chip-count:text-is('5')")
    return filled


def shown(page):
    return [
        name.split(".")[0]
        for name in page.evaluate(
            "[...document.querySelectorAll('.tl-picture')].filter((card) =>"
            " !card.hidden).map((card) => card.dataset.filename)"
        )
    ]


def chip(page, tag):
    return page.locator(".tl-chip", has=page.locator(f".tl-chip-text:text-is('{tag}')"))


def test_tag_filters_excludes_and_counts(page, tagged):
    chip(page, "red").locator(".tl-chip-name").click()
    assert shown(page) == ["0", "1"]
    assert chip(page, "zib").locator(".tl-chip-count").inner_text() == "2"
    chip(page, "night").locator(".tl-chip-name").click(modifiers=["Shift"])
    assert shown(page) == ["0"] and "1 shown" in text(page, ".tl-summary")
    page.click("#tl-pictures button:text-is('Show all')")
    assert len(shown(page)) == 6


def test_tag_is_renamed_and_removed_everywhere(page, tagged):
    chip(page, "red").click(button="right")
    page.click("[role=menuitem]:has-text('Rename everywhere')")
    page.fill("#tl-rename-tag", "crimson")
    page.keyboard.press("Enter")
    until(
        lambda: (on_disk(tagged, 0), on_disk(tagged, 1)) == ("zib, crimson", "zib, crimson, night")
    )
    chip(page, "night").locator(".tl-chip-name").focus()
    page.keyboard.press("Shift+F10")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    until(lambda: (on_disk(tagged, 1), on_disk(tagged, 3)) == ("zib, crimson", "zib"))
    page.click(".tl-toast >> text=Undo")
    until(lambda: (on_disk(tagged, 1), on_disk(tagged, 3)) == ("zib, crimson, night", "night, zib"))


def test_check_filters_and_a_mended_card_stays_until_the_filter_changes(page, tagged):
    page.click(".tl-check-chip:has-text('No caption')")
    assert shown(page) == ["5"]
    write(page, 0, "zib, green")
    until(lambda: on_disk(tagged, 5) == "zib, green")
    assert shown(page) == ["5"]
    page.click(".tl-check-chip[aria-pressed=true]")
    assert len(shown(page)) == 6
    page.wait_for_selector(".tl-check-chip:has-text('No caption')", state="detached")


def test_search(page, tagged):
    page.fill("#tl-search", "NIGHT zib")
    assert shown(page) == ["1", "3"]
    page.fill("#tl-search", "4.png")
    assert shown(page) == ["4"]


# --- Many at once ---------------------------------------------------------------------------------


def test_replace_shows_what_will_change_and_is_one_step(page, tagged):
    before = [on_disk(tagged, number) for number in range(6)]
    page.click("text=Edit captions")
    page.click(".tl-bulk-action:has-text('Replace')")
    page.check("#tl-bulk-regex")
    page.fill("#tl-bulk-find", "(")
    page.wait_for_selector(".tl-bulk .tl-error:visible")
    assert page.get_attribute("#tl-bulk-find", "aria-invalid") == "true"
    page.fill("#tl-bulk-find", "(red|blue)")
    page.fill("#tl-bulk-replace", r"dark \1")
    page.wait_for_selector("text=4 captions will change, 2 will not.")
    assert [on_disk(tagged, number) for number in range(6)] == before
    page.click("button:text-is('Change 4 captions'):not(:disabled)")
    until(
        lambda: (
            [on_disk(tagged, number) for number in range(3)]
            == ["zib, dark red", "zib, dark red, night", "zib, dark blue"]
        )
    )
    page.wait_for_selector("dialog", state="detached")
    page.click("#tl-undo:not(:disabled)")
    until(lambda: [on_disk(tagged, number) for number in range(6)] == before)


def test_edit_of_the_selected_leaves_the_others(page, tagged):
    page.locator(".tl-frame").nth(0).click()
    page.locator(".tl-frame").nth(2).click(modifiers=["Shift"])
    assert "3 selected" in text(page, ".tl-selection")
    page.click("text=Edit captions")
    page.click(".tl-bulk-action:has-text('Add at the end')")
    page.fill("#tl-bulk-text", "soft light")
    page.click("button:text-is('Change 3 captions'):not(:disabled)")
    until(lambda: on_disk(tagged, 2) == "zib, blue, soft light")
    assert on_disk(tagged, 3) == "night, zib"


def test_select_by_keyboard_delete_and_undo(page, filled):
    page.locator(".tl-picture").first.focus()
    for key in ("Space", "ArrowRight", "Space"):
        page.keyboard.press(key)
    page.keyboard.press("Delete")
    page.wait_for_selector(".tl-summary:has-text('4 pictures')")
    assert not (filled / "0.png").exists() and not (filled / "1.txt").exists()
    page.keyboard.press("Control+z")
    page.wait_for_selector(".tl-summary:has-text('6 pictures · 6 captions')")
    assert (filled / "0.png").exists() and on_disk(filled, 1) == "a circle, number 1"


def test_select_all_and_escape(page, filled):
    page.locator(".tl-picture").first.focus()
    page.keyboard.press("Control+a")
    assert "6 selected" in text(page, ".tl-selection")
    page.keyboard.press("Escape")
    assert not page.is_visible(".tl-selection")


def test_detail_walks_rotates_renames_and_shows_the_crop(page, filled):
    page.locator(".tl-frame").nth(2).dblclick()
    page.wait_for_selector("dialog h3:text-is('2.png')")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("dialog h3:text-is('3.png')")
    assert "64 × 128" in text(page, ".tl-facts")
    page.click("dialog [aria-label='Rotate right']")
    page.wait_for_selector(".tl-facts:has-text('128 × 64')")
    page.click("text=As the trainer sees it")
    page.wait_for_function(
        "document.querySelector('.tl-detail-image').src.includes('/crops/') &&"
        " document.querySelector('.tl-detail-image').naturalWidth > 0"
    )
    page.fill("#tl-detail-name", "portrait")
    page.click("dialog button:text-is('Rename')")
    page.wait_for_selector("dialog h3:text-is('portrait.png')")
    assert (
        (filled / "portrait.png").exists()
        and on_disk(filled, "portrait") == "a circle, number 3"
        and not (filled / "3.png").exists()
    )
    page.fill("#tl-detail-caption", "written large")
    page.keyboard.press("Alt+ArrowLeft")
    page.wait_for_selector("dialog h3:text-is('5.png')")
    until(lambda: on_disk(filled, "portrait") == "written large")
    page.keyboard.press("Escape")  # leaves the caption
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")


def test_a_name_half_typed_stays_when_something_changes(page, filled):
    page.locator(".tl-frame").nth(2).dblclick()
    page.wait_for_selector("dialog h3:text-is('2.png')")
    page.fill("#tl-detail-name", "portrait")
    (filled / "1.txt").write_text("from an editor", encoding="utf-8")
    look_at_once(page)
    page.wait_for_selector(".tl-caption:has-text('from an editor')", state="attached")
    assert page.input_value("#tl-detail-name") == "portrait"
    page.click("dialog button:text-is('Rename')", timeout=5000)
    page.wait_for_selector("dialog h3:text-is('portrait.png')")
    assert (filled / "portrait.png").exists()


# --- Tables ---------------------------------------------------------------------------------------


def test_table_is_shown_before_it_overwrites(page, filled):
    drop_files(
        page,
        {
            "metadata.csv": (
                b'filename,prompt\n0.png,from a table\n1.png,"a circle, number'
                b' 1"\nnowhere.png,lost\n'
            )
        },
    )
    page.wait_for_selector("dialog:has-text('Captions from metadata.csv')")
    page.wait_for_selector("text=1 caption will be written")
    assert (
        "Line 4" in text(page, "dialog .tl-notice") and on_disk(filled, 0) == "a circle, number 0"
    )
    page.click("dialog button:text-is('Write 1 caption')")
    until(lambda: on_disk(filled, 0) == "from a table")
    page.wait_for_selector(".tl-caption:has-text('from a table')")
    page.click("#tl-undo:not(:disabled)")
    until(lambda: on_disk(filled, 0) == "a circle, number 0")


def test_table_dropped_with_new_pictures_is_taken_at_once(page, service, pictures):
    files = {path.name: path.read_bytes() for path in pictures.glob("*.png")}
    rows = "".join(f'{{"file_name": "{name}", "text": "row of {name}"}}\n' for name in files)
    drop_files(page, {**files, "metadata.jsonl": rows.encode()})
    page.wait_for_selector(".tl-summary:has-text('6 pictures · 6 captions')")
    assert caption(page, 4) == "row of 4.png" and page.locator("dialog").count() == 0


# --- Automatic captions ---------------------------------------------------------------------------


def test_captioner_fills_what_is_missing_and_keeps_what_was_written(page, filled):
    for number in (1, 4):
        (filled / f"{number}.txt").unlink()
    look_at_once(page)
    page.wait_for_selector(".tl-summary:has-text('4 captions')")
    page.click("text=Caption automatically")
    page.check("input[name=tl-captioner][value=fixed]", force=True)
    page.fill("#tl-captioning-template", "words for all")
    page.wait_for_selector("text=4 captions you wrote are kept.")
    page.click("dialog button:text-is('Caption 2 pictures'):not(:disabled)")
    page.wait_for_selector(".tl-captioning-bar.tl-over:has-text('2 written')")
    assert "words for all" in on_disk(filled, 1) and on_disk(filled, 0) == "a circle, number 0"
    page.wait_for_selector(".tl-summary:has-text('6 captions')")
    assert (
        "words for all" in caption(page, 4)
        and page.locator(".tl-picture").nth(4).locator(".tl-auto").is_visible()
    )
    assert not page.locator(".tl-picture").nth(0).locator(".tl-auto").is_visible()
    page.click(".tl-captioning-bar button:text-is('Undo')")
    until(lambda: on_disk(filled, 1) == "" and on_disk(filled, 4) == "")


def test_end_of_a_captioner_is_said_until_the_next_edit(page, filled):
    write(page, 0, "first")
    until(lambda: on_disk(filled, 0) == "first")
    (filled / "1.txt").unlink()
    look_at_once(page)
    page.wait_for_selector(".tl-summary:has-text('5 captions')")
    page.click("text=Caption automatically")
    page.check("input[name=tl-captioner][value=fixed]", force=True)
    page.fill("#tl-captioning-template", "words for all")
    page.click("dialog button:text-is('Caption 1 picture'):not(:disabled)")
    page.wait_for_selector("#tl-undo[title*='Automatic captions']")
    page.wait_for_selector(".tl-captioning-bar.tl-over:visible")
    assert page.evaluate("document.activeElement.closest('#tl-pictures') !== null")
    write(page, 2, "second")
    page.wait_for_selector(".tl-captioning-bar", state="hidden")
    until(lambda: on_disk(filled, 2) == "second")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Control+z")
    page.wait_for_selector(".tl-toast:has-text('Undone')")
    until(lambda: on_disk(filled, 2) == "a circle, number 2")
    page.reload()
    page.wait_for_selector(".tl-picture")
    page.wait_for_timeout(500)  # for what would appear now
    assert not page.is_visible(".tl-captioning-bar")


def test_interrupted_captioner_is_offered_once(page, filled):
    row = {
        "id": "7",
        "kind": "captioning",
        "name": filled.name,
        "state": "interrupted",
        "done": 2,
        "total": 6,
        "written": 2,
        "config": {"dataset": filled.name, "captioner": "fixed"},
    }
    page.route("**/train-lora/v1/jobs?kind=captioning", lambda route: route.fulfill(json=[row]))
    page.reload()
    page.wait_for_selector(
        ".tl-captioning-bar:has-text('Captioning was interrupted: 2 of 6 done.')"
    )
    page.click(".tl-captioning-bar button:text-is('Go on')")
    page.wait_for_selector("dialog input[name=tl-captioner][value=fixed]:checked", state="attached")
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector(".tl-picture")
    page.wait_for_timeout(500)  # for what would appear now
    assert not page.is_visible(".tl-captioning-bar")


@faster_clock
def test_server_that_does_not_answer_is_asked_rarely_until_the_window_is_used(page, filled):
    asked = []
    page.route(
        "**/train-lora/v1/**", lambda route: (asked.append(route.request.url), route.abort())
    )
    page.wait_for_selector("text=Connection lost")
    while not asked or not asked[-1].endswith(
        "/status"
    ):  # what was under way has ended, and it tries again
        page.wait_for_timeout(20)
    asked.clear()
    page.wait_for_timeout(3500 / FASTER)  # two seconds after the loss, then four, then eight
    assert len(asked) <= 2 and all(address.endswith("/status") for address in asked)
    page.wait_for_timeout(3500 / FASTER)  # so that it would wait for eight
    asked.clear()
    page.unroute("**/train-lora/v1/**")
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    page.wait_for_selector("text=Connection lost", state="hidden", timeout=5000)


@faster_clock
def test_training_waits_for_a_captioner_and_is_not_mixed_up_with_it(page, filled, service):
    page.fill("#tl-setting-output_name", "mine")
    page.wait_for_selector("#tl-train:not(:disabled)")
    page.route(
        "**/train-lora/v1/status",
        lambda route: route.fulfill(
            json={
                **service.status(),
                "current_job": {"id": "x", "kind": "captioning", "state": "captioning"},
            }
        ),
    )
    page.route(
        "**/train-lora/v1/jobs/x",
        lambda route: route.fulfill(
            json={
                "id": "x",
                "kind": "captioning",
                "state": "captioning",
                "message": "",
                "done": 1,
                "total": 3,
                "written": 1,
                "skipped": 0,
                "failed": [],
                "fraction": 1 / 3,
                "eta_seconds": 65,
            }
        ),
    )
    page.wait_for_selector("text=Captions are being written")
    assert (
        text(page, "#tl-train") == "Add to queue" and page.locator(".tl-job:visible").count() == 0
    )
    assert "1 of 3 · 1 min 5 s left" in text(page, ".tl-captioning-line")


# --- Where it stands ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 1280, 1920])
def test_grid_and_dialogs_fit(page, filled, width):
    (filled / "0.txt").write_text("Supercalifragilistic" * 30, encoding="utf-8")
    (filled / "1.txt").write_text("猫が窓辺に座っている 🐈‍⬛ " * 40, encoding="utf-8")
    page.set_viewport_size({"width": width, "height": 900})
    look_at_once(page)
    page.wait_for_selector(".tl-caption:has-text('Supercali')")
    heights = page.evaluate(
        "[...new Set([...document.querySelectorAll('.tl-picture')].map((card) =>"
        " card.offsetHeight))].length"
    )
    assert heights == 1 and page.evaluate("document.documentElement.scrollWidth") <= width
    for opener in ("text=Edit captions", "text=Caption automatically"):
        page.click(opener)
        page.wait_for_selector("dialog[open]")
        page.wait_for_timeout(200)  # for the layout
        box = page.locator("dialog").bounding_box()
        assert (
            box["x"] >= 0
            and box["x"] + box["width"] <= width
            and box["y"] >= 0
            and box["y"] + box["height"] <= 900
        )
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('dialog :is(input, select, textarea)')]
            .filter((item) => !item.labels.length && !item.getAttribute('aria-label')).map((item) => item.outerHTML)"""  # noqa: E501
        )
        assert nameless == []
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")


# --- Two pages ------------------------------------------------------------------------------------


def second_page(browser, address, dataset):
    other = browser.new_context().new_page()
    other.set_default_timeout(20_000)
    other.goto(address + PLAIN)
    other.wait_for_selector(f"#tl-dataset option[value='{dataset}']", state="attached")
    other.select_option("#tl-dataset", dataset)
    other.wait_for_selector(".tl-picture >> nth=5")
    return other


def test_two_pages_that_save_at_once_both_see_both(browser, page, filled, address):
    """The answer to a page's own edit must not hide what the other page wrote just before."""
    other = second_page(browser, address, filled.name)
    write(page, 0, "sunrise", key="F8")  # typed, and not left yet
    write(other, 1, "moonlight", key="F8")
    page.keyboard.press("Enter")
    other.keyboard.press("Enter")
    for each in (page, other):
        each.wait_for_selector(".tl-caption:has-text('sunrise')")
        each.wait_for_selector(".tl-caption:has-text('moonlight')")
    assert (on_disk(filled, 0), on_disk(filled, 1)) == ("sunrise", "moonlight")
    other.context.close()


def test_two_pages_that_edit_one_caption_ask_the_second(browser, page, filled, address):
    other = second_page(browser, address, filled.name)
    write(page, 2, "mine", key="F8")
    write(other, 2, "yours", key="F8")
    page.keyboard.press("Enter")
    until(lambda: on_disk(filled, 2) == "mine")
    other.keyboard.press("Enter")
    other.wait_for_selector(".tl-conflict:has-text('mine'):has-text('yours')")
    assert on_disk(filled, 2) == "mine"
    other.click(".tl-conflict button:text-is('Keep mine')")
    until(lambda: on_disk(filled, 2) == "yours")
    page.wait_for_selector(".tl-caption:has-text('yours')")
    other.context.close()


# --- Archives, folders and galleries --------------------------------------------------------------


def generated(folder, prompts):
    """Draw pictures with prompts in them, as the WebUI saves them; returns their folder."""
    folder.mkdir()
    for number, prompt in enumerate(prompts):
        texts = PngInfo()
        texts.add_text("parameters", f"{prompt}\nSteps: 20, Sampler: Euler")
        Image.new("RGB", (64, 64), (60 * number, 90, 120)).save(
            folder / f"0000{number}.png", pnginfo=texts
        )
    return folder


def test_a_zip_is_dropped(page, service, pictures):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(pictures.iterdir()):
            archive.write(path, f"my set/10_circle/{path.name}")
        archive.writestr("my set/../evil.png", b"x")
    drop_files(page, {"circles.zip": buffer.getvalue()})
    page.wait_for_selector(".tl-summary:has-text('6 pictures · 6 captions')")
    page.wait_for_selector("text=1 file was not taken")
    (dataset,) = service.library.all()
    assert (
        dataset["name"] == "circles"
        and (service.library.path("circles") / "10_circle" / "0.png").is_file()
    )


def test_the_pictures_of_an_output_folder_are_copied(page, service, tmp_path):
    folder = generated(tmp_path / "outputs", ["a cat", "a (dog:1.2)"])
    page.fill("#tl-folder", str(tmp_path / "nothing"))
    page.click("text=Copy >> visible=true")
    page.wait_for_selector(".tl-error:has-text('does not exist')")
    assert service.library.all() == []
    page.fill("#tl-folder", str(folder))
    page.click("text=Copy >> visible=true")
    page.wait_for_selector(".tl-summary:has-text('2 pictures · 2 captions')")
    assert (caption(page, 0), caption(page, 1)) == ("a cat", "a dog") and service.library.all()[0][
        "name"
    ] == "outputs"
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "00001.png"]


_GALLERY = """async (pictures) => {
    const row = document.createElement('div');
    row.id = 'image_buttons_txt2img';
    row.innerHTML = '<button class="tool">x</button>';
    const gallery = document.createElement('div');
    gallery.id = 'txt2img_gallery';
    document.body.append(row, gallery);
    for (const [name, data] of pictures) {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        const holder = document.createElement('div');
        holder.className = 'thumbnail-item';
        const image = document.createElement('img');
        image.src = name ? URL.createObjectURL(new Blob([bytes], {type: 'image/png'})) : 'blob:nothing';
        holder.append(image);
        gallery.append(holder);
        await image.decode().catch(() => {});
    }
}"""  # noqa: E501


def show_gallery(page, files):
    """Put pictures into a gallery as the WebUI has it."""
    page.evaluate(_GALLERY, [(name, base64.b64encode(data).decode()) for name, data in files])


def test_a_batch_of_the_gallery_comes_whole_and_without_its_grid(page, service, tmp_path):
    folder = generated(
        tmp_path / "outputs", ["a cat", "a dog", "a " + "very " * 30_000 + "long prompt"]
    )
    grid = io.BytesIO()
    Image.new("RGB", (128, 128)).save(grid, "PNG")
    show_gallery(
        page,
        [
            ("grid", grid.getvalue()),
            *((path.name, path.read_bytes()) for path in sorted(folder.iterdir())),
        ],
    )
    page.click("#txt2img_send_to_train_lora")
    page.wait_for_selector(".tl-toast:has-text('Click the picture you want first')")
    page.click("#txt2img_send_all_to_train_lora")
    page.wait_for_selector(".tl-toast:has-text('Added 3 to generated')")
    found = service.library.open("generated").captions()
    assert sorted(found.values()) == ["", "a cat", "a dog"]
    page.evaluate(
        "document.querySelectorAll('#txt2img_gallery .thumbnail-item')[2].classList.add('selected')"
    )
    page.click("#txt2img_send_to_train_lora")
    page.wait_for_selector(
        ".tl-toast:has-text('Added to generated'), .tl-toast:has-text('Already in')"
    )


def test_a_picture_of_the_gallery_that_is_gone_keeps_no_other_back(page, service, tmp_path):
    folder = generated(tmp_path / "outputs", ["a cat"])
    show_gallery(page, [("", b""), ("00000.png", (folder / "00000.png").read_bytes())])
    page.click("#txt2img_send_all_to_train_lora")
    page.wait_for_selector(".tl-toast:has-text('Added to generated; 1 could not be added')")


# --- A table that cannot be read ------------------------------------------------------------------

BAD_TABLE = b"filename,prompt\n1.png,cat, red\n2.png,dog\n"


def test_a_bad_table_is_mended_on_the_page(page, filled):
    (filled / "metadata.csv").write_bytes(BAD_TABLE)
    notice = page.locator(".tl-table-notice")
    notice.wait_for()
    assert (
        "Line 2: has 3 fields" in notice.inner_text()
        and page.locator(".tl-picture:visible").count() >= 3
    )
    notice.get_by_role("button", name="Mend").click()
    box = page.locator(".tl-table-text")
    assert (
        box.evaluate("box => box.value.slice(box.selectionStart, box.selectionEnd)")
        == "1.png,cat, red"
    )
    page.keyboard.type('1.png,"cat, red')
    page.get_by_role("button", name="Save", exact=True).click()
    page.wait_for_selector(".tl-mend .tl-error:visible")
    box.fill('filename,prompt\n1.png,"cat, red"\n2.png,dog\n')
    page.get_by_role("button", name="Save", exact=True).click()
    notice.wait_for(state="detached")
    assert (
        filled / "metadata.csv"
    ).read_bytes() == b'filename,prompt\n1.png,"cat, red"\n2.png,dog\n'


def test_a_bad_table_is_thrown_away_and_taken_back_and_replaced(page, filled):
    (filled / "metadata.csv").write_bytes(BAD_TABLE)
    look_at_once(page)
    notice = page.locator(".tl-table-notice")
    notice.get_by_role("button", name="Move to trash").click()
    notice.wait_for(state="detached")
    assert not (filled / "metadata.csv").exists()
    page.click("#tl-undo")
    notice.wait_for()
    assert (filled / "metadata.csv").read_bytes() == BAD_TABLE
    with page.expect_file_chooser() as chooser:
        notice.get_by_role("button", name="Replace").click()
    chooser.value.set_files(
        [{"name": "mine.csv", "mimeType": "text/csv", "buffer": b"filename,prompt\n1.png,cat\n"}]
    )
    notice.wait_for(state="detached")
    assert (filled / "metadata.csv").read_bytes() == b"filename,prompt\n1.png,cat\n"
