"""The standalone page in a real browser, in front of the real API and a tiny model."""

import pytest

from tests.support.browser import drop_files, files_in, text

# What gradio leaves open when it goes is not ours to close.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def drop(page, folder, **more: bytes):
    drop_files(
        page, {**files_in(folder), **{name.replace("_", "."): data for name, data in more.items()}}
    )
    page.wait_for_selector(".tl-picture")


def fill(page, **values):
    for name, value in values.items():
        page.fill(f"#tl-setting-{name}", str(value))


def small_run(page, name="mine", steps=5):
    page.check("input[name=tl-preset][value=quick_try]", force=True)
    fill(
        page,
        output_name=name,
        trigger_word="zib",
        resolution=64,
        max_train_steps=steps,
        lora_rank=2,
    )


def test_from_drop_to_tag(page, host, pictures):
    drop(page, pictures, notes_png=b"no picture", model_ckpt=b"x")
    page.wait_for_selector("text=2 files were not taken")
    assert text(page, ".tl-summary") == "6 pictures · 6 captions"
    assert page.locator(".tl-caption").first.inner_text() == "a circle, number 0"
    small_run(page)
    page.wait_for_selector(".tl-plan-main:has-text('5 steps')")
    page.click("#tl-train:not(:disabled)")
    page.wait_for_selector(".tl-tag:visible")
    assert text(page, ".tl-tag") == "<lora:mine:0.8>"
    assert (
        text(page, ".tl-path.tl-wrap") == str(host.lora_dir / "mine.safetensors")
        and (host.lora_dir / "mine.safetensors").is_file()
    )
    assert "5 of 5" in text(page, ".tl-stats")
    assert not page.is_visible("text=Send to txt2img")

    page.click(".tl-good >> text=Try it")
    assert page.input_value("#tl-prompt") == "zib <lora:mine:0.8>" and not page.is_visible(
        "text=calls no LoRA"
    )
    page.fill("#tl-prompt", "zib lora:mine:0.8, night")
    page.wait_for_selector(
        "text=lora:mine:0.8 calls no LoRA without brackets: write <lora:mine:0.8>."
    )
    page.fill("#tl-prompt", "zib <lora:mine:0.8>")
    page.wait_for_selector("text=calls no LoRA", state="hidden")
    page.click("#tl-draw")
    page.wait_for_selector(".tl-drawn:visible")


def test_running_job_is_shown_again_and_stops(page, address, pictures):
    drop(page, pictures)
    small_run(page, steps=100_000)
    page.click("#tl-train:not(:disabled)")
    page.wait_for_selector(".tl-is-training:visible")
    page.reload()
    page.wait_for_selector("#tl-stop:visible")
    assert (
        page.input_value("#tl-setting-output_name") == "mine"
        and page.input_value("#tl-setting-max_train_steps") == "100000"
    )
    assert page.is_visible(".tl-job [role=progressbar]")
    assert text(page, "#tl-train") == "Add to queue"
    page.click("#tl-stop")
    page.wait_for_selector(".tl-job .tl-is-stopped")
    page.wait_for_selector("#tl-train:text-is('Train')")


def answer_with_jobs(page, service, jobs):
    """Let the page see these jobs, by asking: there is no live link."""

    def answer(path, value):
        page.route(f"**/train-lora/v1/{path}", lambda route: route.fulfill(json=value))

    running = next((job for job in jobs if job["state"] == "training"), None)
    page.route_web_socket("**/train-lora/v1/events", lambda socket: socket.close())
    answer("status", {**service.status(), "current_job": running})
    answer("jobs", jobs)
    for job in jobs:
        answer(f"jobs/{job['id']}", job)
        answer(f"jobs/{job['id']}/metrics*", [])
    page.reload()


def test_stop_that_was_asked_for_shows_after_a_reload(page, service, pictures):
    drop(page, pictures)
    answer_with_jobs(
        page,
        service,
        [
            {
                "id": "7",
                "kind": "training",
                "name": "mine",
                "state": "training",
                "stage": "training",
                "stopping": True,
                "step": 3,
                "total_steps": 9,
                "created_at": 0,
                "config": {},
            }
        ],
    )
    page.wait_for_selector("#tl-stop:visible:disabled:has-text('Stopping …')")


def test_interrupted_job_without_figures_and_captioners_are_shown_rightly(page, service):
    answer_with_jobs(
        page,
        service,
        [
            {
                "id": "8",
                "kind": "captioning",
                "name": "words",
                "state": "finished",
                "created_at": 0,
                "config": {},
            },
            {
                "id": "7",
                "kind": "training",
                "name": "cut",
                "state": "interrupted",
                "created_at": 0,
                "config": {},
                "message": "The program ended.",
            },
        ],
    )
    page.wait_for_selector(
        "text=Interrupted before the first step"
    )  # the newest run, though nobody chose it
    page.click(".tl-run:has-text('cut') .tl-run-open")
    page.wait_for_selector(".tl-run-panel:has-text('The program ended.')")
    page.click(".tl-run:has-text('words') .tl-run-open")
    shown = text(page, "#train_lora_app")
    assert "undefined" not in shown and "NaN" not in shown and "Invalid" not in shown
    assert "words" not in text(page, "#tl-train >> xpath=ancestor::section")


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
    assert (
        page.is_disabled("#tl-train")
        and page.get_attribute("#tl-setting-learning_rate", "aria-invalid") == "true"
    )
    page.click("button[aria-label^='Learning rate']")
    page.wait_for_selector("#tl-train:not(:disabled)")
    assert page.input_value("#tl-setting-learning_rate") == "0.0005"


def test_markup_is_shown_as_text(page, pictures):
    attack = "<img src=x onerror=window.attacked=1><b>bold</b>"
    (pictures / "0.txt").write_text(attack, encoding="utf-8")
    (pictures / "<img src=x onerror=window.attacked=2>.png").write_bytes(b"no picture")
    drop(page, pictures)
    page.wait_for_selector("text=not taken")
    fill(page, output_name=attack)
    page.wait_for_selector("#tl-setting-output_name-error:visible")
    assert page.locator(".tl-caption").first.inner_text() == attack
    assert (
        page.evaluate("window.attacked") is None and page.locator("#train_lora_app b").count() == 0
    )


def test_folder_that_is_not_there(page, pictures):
    page.fill("#tl-folder", "/nowhere/at/all")
    page.click(".tl-joined >> text=Use")
    page.wait_for_selector(".tl-error:has-text('does not exist')")
    page.fill("#tl-folder", str(pictures))
    page.click(".tl-joined >> text=Use")
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
    page.evaluate(
        "document.querySelectorAll('.tl-groups details').forEach((group) => { group.open = true; })"
    )
    page.wait_for_timeout(100)  # for the layout
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        page.evaluate(
            """() => [...document.querySelectorAll('.tl-card *')].filter((item) => item.offsetParent !== null && !item.closest('.tl-tags, svg')
        && item.getBoundingClientRect().right > item.closest('.tl-card').getBoundingClientRect().right).map((item) => item.className)"""  # noqa: E501
        )
        == []
    )


def test_train_stays_in_view(page, pictures):
    drop(page, pictures)
    page.evaluate(
        "document.querySelectorAll('.tl-groups details').forEach((group) => { group.open = true; })"
    )
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    assert page.evaluate("document.querySelector('#tl-train').getBoundingClientRect().top") >= 0


def test_every_control_has_a_label(page):
    page.evaluate(
        "document.querySelectorAll('#train_lora_app [hidden]').forEach((item) => { item.hidden ="
        " false; })"
    )
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('#train_lora_app :is(input, select, textarea)')]
        .filter((item) => item.type !== 'file' && !item.labels.length && !item.getAttribute('aria-label')).map((item) => item.id)"""  # noqa: E501
    )
    assert nameless == []
