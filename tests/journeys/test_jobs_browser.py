"""Jobs on the page, in a real browser: the queue, pausing and going on, the history, the live link
and what is told while nobody looks.
"""

import json
import time

import pytest

from lora_trainer.jobs.service import TrainingService
from tests.support.browser import drop_files, files_in, text
from tests.support.pages import PLAIN, faster_clock

PAGE = PLAIN
# What gradio leaves open when it goes is not ours to close.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
LONG = 1_000_000
QUEUE = ".tl-queue-row"
FOCUS = "document.hasFocus = () => window.looked !== false;"
NOTIFICATIONS = """
    window.told = []; window.asked = 0;
    window.Notification = class { constructor(title, options) { window.told.push([title, options.body]); } };
    window.Notification.permission = 'default';
    window.Notification.requestPermission = async () => { window.asked += 1; window.Notification.permission = 'granted'; return 'granted'; };
"""  # noqa: E501


@pytest.fixture(autouse=True)
def no_previews(settings):
    settings["preview"] = False


@pytest.fixture
def at_work(service, settings, host, monkeypatch):
    """A run that goes on until it is stopped, in no hurry: browser and server need the machine,
    too. What waits behind it is cancelled in the end.
    """
    predict = host.model.predict
    monkeypatch.setattr(
        host.model, "predict", lambda *given: (time.sleep(0.02), predict(*given))[1]
    )
    job_id = service.start({**settings, "output_name": "first", "max_train_steps": LONG})
    yield job_id
    for waiting in service.store.waiting():
        service.stop(waiting)


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def names(page) -> list[str]:
    return [name.strip() for name in page.locator(".tl-queue-name").all_inner_texts()]


def wait_for_rest(page, selector):
    """Wait until an element stays where it is: a run that begins moves what is below it."""
    place, same = None, 0
    while same < 3:
        page.wait_for_timeout(40)
        before, place = place, page.locator(selector).bounding_box()
        same = same + 1 if place == before else 0


def wait_for_quiet(page, asked, seconds=1.5, within=60):
    """Wait until nothing was asked for a while."""
    deadline, since, count = time.monotonic() + within, time.monotonic(), len(asked)
    while time.monotonic() - since < seconds:
        assert time.monotonic() < deadline, f"it goes on asking: {asked[-3:]}"
        page.wait_for_timeout(20)
        since, count = (since, count) if len(asked) == count else (time.monotonic(), len(asked))


def wait_for_names(page, *wanted):
    page.wait_for_function(
        "wanted => JSON.stringify([...document.querySelectorAll('.tl-queue-name')].map((item) =>"
        " item.textContent)) === wanted",
        arg=json.dumps(wanted, separators=(",", ":")),
    )


def wait_with(service, settings, *wanted):
    return [
        service.start({**settings, "output_name": name, "max_train_steps": 5}) for name in wanted
    ]


def tell(page, *messages):
    """Let the page hear messages as from the server; the link that was there is given up for it."""
    page.route_web_socket(
        "**/events",
        lambda socket: [
            socket.send(json.dumps(message))
            for message in ({"type": "status", "queue_held": False, "current_job": None}, *messages)
        ],
    )
    page.context.set_offline(True)
    page.context.set_offline(False)


# --- The queue ------------------------------------------------------------------------------------


def test_what_is_added_waits_and_then_runs(page, service, pictures, at_work):
    drop_files(page, files_in(pictures))
    page.wait_for_selector(".tl-picture")
    page.check("input[name=tl-preset][value=quick_try]", force=True)
    for name, value in {"resolution": "64", "max_train_steps": "5", "lora_rank": "2"}.items():
        page.fill(f"#tl-setting-{name}", value)
    for name in ("second", "third"):
        page.fill("#tl-setting-output_name", name)
        page.click("#tl-train:not(:disabled):text-is('Add to queue')")
        page.wait_for_selector(f"{QUEUE}:has-text('{name}')")
    wait_for_names(page, "second", "third")
    page.fill("#tl-setting-output_name", "second")  # is going to be there
    page.click("#tl-train:not(:disabled)")
    page.wait_for_selector("button:has-text('Save as second-'):not(:disabled)")
    page.click("#tl-stop")
    page.wait_for_selector(".tl-job-title:text-is('third')")
    page.wait_for_selector(".tl-tag:visible:text-is('<lora:third:0.8>')")
    assert [service.job(job)["state"] for job in ("1", "2", "3")] == [
        "stopped",
        "finished",
        "finished",
    ]
    assert not page.is_visible(QUEUE) and text(page, "#tl-train") == "Train"


def test_queue_is_moved_by_buttons_keys_and_dragging_and_cancelled(
    page, service, settings, at_work
):
    wait_with(service, settings, "a", "b", "c")
    wait_for_names(page, "a", "b", "c")
    page.click("button[aria-label='Move c earlier']")
    wait_for_names(page, "a", "c", "b")
    page.keyboard.press("Enter")  # the focus went along
    wait_for_names(page, "c", "a", "b")
    assert page.is_disabled("button[aria-label='Move c earlier']")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Move c later"
    page.set_viewport_size({"width": 1280, "height": 1400})
    wait_for_rest(page, f"{QUEUE} >> nth=0")
    page.drag_and_drop(
        f"{QUEUE}:has-text('c') .tl-grip",
        f"{QUEUE}:has-text('b')",
        target_position={"x": 30, "y": 40},
    )
    wait_for_names(page, "a", "b", "c")
    assert [service.job(job)["name"] for job in service.store.waiting()] == ["a", "b", "c"]
    page.click("button[aria-label='Cancel b']")
    wait_for_names(page, "a", "c")
    page.click("text=Show 1 cancelled")
    page.wait_for_selector(".tl-run:has-text('Cancelled') .tl-run-name:text-is('b')")


@pytest.mark.parametrize("place", [".tl-queue-head", f"{QUEUE}:has-text('a')"])
def test_dragged_beside_the_rows_is_not_lost(page, service, settings, at_work, place):
    wait_with(service, settings, "a", "b")
    wait_for_names(page, "a", "b")
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.wait_for_selector(".tl-job .tl-is-training")
    wait_for_rest(page, f"{QUEUE} >> nth=0")
    above = (
        {"x": 60, "y": 12} if place.endswith("head") else {"x": 60, "y": -1}
    )  # two pixels above the row is the line, and no row
    page.drag_and_drop(f"{QUEUE}:has-text('b') .tl-grip", place, target_position=above, force=True)
    wait_for_names(page, "b", "a")
    assert page.locator(".tl-drop-before, .tl-drop-after").count() == 0


@faster_clock
def test_row_that_waits_tells_what_it_is(page, service, settings, host, at_work):
    wait_with(service, settings, "a")
    page.wait_for_selector(".tl-queue-what:has-text('5 steps')")
    assert "for tiny" not in text(page, ".tl-queue-what")
    job = {
        **service.job(at_work),
        "id": "90",
        "state": "queued",
        "position": 0,
        "name": "later",
        "pictures": 16,
        "total_steps": 300,
        "checkpoint": "models/dreamy_v5.safetensors [0123456789]",
        "step": 0,
    }
    tell(page, {"type": "jobs", "jobs": [job]})
    page.wait_for_selector(".tl-queue-what:text-is('16 pictures · 300 steps · for dreamy_v5')")


def test_queue_is_held_and_started(page, service, settings, at_work):
    wait_with(service, settings, "a")
    page.click("#tl-queue-hold")
    page.wait_for_selector("text=1 job is waiting. The queue is held")
    page.click("#tl-stop")
    page.wait_for_selector(".tl-job .tl-is-stopped")
    assert service.job("2")["state"] == "queued"
    page.click("#tl-queue-start")
    page.wait_for_selector(".tl-tag:visible:text-is('<lora:a:0.8>')")


class TestAfterARestart:
    @pytest.fixture
    def service(self, host, settings):
        """A service that finds what another one, which died, has left: one that ran, and two that
        waited.
        """
        before = TrainingService(host)
        cut = before.start(
            {**settings, "output_name": "cut", "max_train_steps": 20, "save_state_steps": 5}
        )
        before.wait(cut, 60)
        before.store.update(cut, state="training")
        before.hold_queue()
        for name in ("a", "b"):
            before.start({**settings, "output_name": name, "max_train_steps": 5})
        service = TrainingService(host)
        yield service
        for each in (before, service):
            each.library.close()

    def test_nothing_starts_by_itself(self, page, service):
        page.wait_for_selector("text=2 jobs are waiting. Nothing starts by itself after a restart.")
        page.wait_for_selector(".tl-job-title:text-is('cut')")
        page.wait_for_selector("text=Interrupted at step 20 of 20")
        assert [service.job(job)["state"] for job in ("1", "2", "3")] == [
            "interrupted",
            "queued",
            "queued",
        ]
        page.click("#tl-queue-start")
        page.wait_for_selector(".tl-tag:visible:text-is('<lora:b:0.8>')")
        assert not page.is_visible(QUEUE) and not page.is_visible("#tl-queue-start")

    def test_interrupted_run_goes_on(self, page, service):
        label = text(page, "#tl-go-on")
        assert label == f"Resume at step {service.job('1')['resume_step']} of 20"
        assert text(page, ".tl-follow:visible") == "The 2 that wait follow."
        page.click("#tl-go-on")
        page.wait_for_selector(".tl-toast:has-text('cut goes on. The 2 that wait follow.')")
        wait_until(lambda: service.job("1")["state"] != "interrupted")
        service.wait("1", 60)
        assert service.job("1")["state"] == "finished" and service.job("1")["step"] == 20
        page.wait_for_selector(".tl-run:has-text('Finished') .tl-run-name:text-is('cut')")


# --- One run --------------------------------------------------------------------------------------


def test_pause_snapshot_resume(page, service, at_work):
    page.wait_for_selector("#tl-snapshot:not(:disabled)")
    page.click("#tl-snapshot")
    page.wait_for_selector(".tl-toast:has-text('Saved first-')")
    page.click("#tl-pause")
    page.wait_for_selector("#tl-resume:visible")
    page.wait_for_selector(".tl-paused:has-text('Paused at step')")
    assert service.job(at_work)["state"] == "paused" and not page.is_visible("#tl-pause")
    (stem,) = service.job(at_work)["snapshots"]
    page.click(".tl-chip-button")
    assert f"<lora:{stem}:0.8>" in text(page, ".tl-menu")
    page.keyboard.press("Escape")
    page.click("#tl-resume")
    page.wait_for_selector("#tl-pause:visible:not(:disabled)")
    page.click("#tl-pause-more")
    page.click("text=Pause and free memory")
    page.wait_for_selector(".tl-paused:has-text('memory is free')")
    assert service.job(at_work)["free_memory"] is True
    page.click("#tl-stop")
    page.wait_for_selector(".tl-job .tl-is-stopped")


def stopped(page, service, at_work):
    page.wait_for_selector("#tl-stop:visible")
    wait_until(lambda: service.job(at_work)["step"] > 2)
    page.click("#tl-stop")
    page.wait_for_selector("#tl-go-on:visible:has-text('Resume at step')")
    return service.job(at_work)["step"]


def test_stopped_run_goes_on_where_it_was(page, service, at_work):
    step = stopped(page, service, at_work)
    page.click("#tl-go-on")
    page.wait_for_selector("#tl-pause:visible")
    wait_until(lambda: service.job(at_work)["step"] > step)
    assert [row["step"] for row in service.metrics(at_work)][: step + 1] == list(range(1, step + 2))


def test_reasons_are_shown_and_only_a_yes_goes_on(page, service, pictures, at_work):
    stopped(page, service, at_work)
    (pictures / "0.txt").write_text("another caption", encoding="utf-8")
    page.click("#tl-go-on")
    page.wait_for_selector(".tl-reasons-dialog li:has-text('The caption of 0.png changed.')")
    page.click(".tl-reasons-dialog >> text=Cancel")
    assert service.job(at_work)["state"] == "stopped"
    page.click("#tl-go-on")
    page.click("text=Go on anyway")
    page.wait_for_selector("#tl-pause:visible")
    page.click("#tl-stop")
    page.wait_for_selector(".tl-job .tl-is-stopped")


def test_reasons_that_cannot_be_passed_over(page, service, host, at_work):
    stopped(page, service, at_work)
    page.route(
        "**/resume",
        lambda route: route.fulfill(
            status=409,
            json={
                "error": {
                    "code": "cannot_resume",
                    "message": "No.",
                    "anyway_possible": False,
                    "reasons": ["it was trained on <b>dreamy</b>, and tiny is loaded"],
                }
            },
        ),
    )
    page.click("#tl-go-on")
    page.wait_for_selector(
        ".tl-reasons-dialog li:has-text('It was trained on <b>dreamy</b>, and tiny is loaded.')"
    )
    assert page.locator(".tl-reasons-dialog button:text-is('Go on anyway')").count() == 0
    page.keyboard.press("Escape")
    page.wait_for_selector(".tl-reasons-dialog", state="detached")


def test_finished_run_is_trained_on(page, service, settings):
    job = service.start({**settings, "max_train_steps": 6})
    page.wait_for_selector(".tl-job .tl-tag:visible")
    page.click("#tl-go-on:text-is('Train on …')")
    page.fill("#tl-more", "4")
    assert text(page, ".tl-ask .tl-help") == "10 steps in all."
    page.click(".tl-ask button:text-is('Train on')")
    page.wait_for_selector(".tl-stats:has-text('10 of 10')")
    wait_until(lambda: service.job(job)["state"] == "finished")
    assert service.job(job)["step"] == 10


def test_checkpoint_that_is_missed_is_loaded_from_the_page(page, service):
    job = {
        "id": "7",
        "kind": "training",
        "name": "mine",
        "state": "paused",
        "stage": "paused",
        "waiting_for": "checkpoint",
        "checkpoint": "dreamy_v5",
        "step": 3,
        "total_steps": 9,
        "created_at": 0,
        "config": {},
        "remarks": ["<img src=x onerror=window.attacked=1>"],
    }
    page.evaluate("""() => {
        document.body.append(Object.assign(document.createElement('button'), {id: 'change_checkpoint', hidden: true}));
        window.gradio_config = {components: [{props: {elem_id: 'setting_sd_model_checkpoint', choices: ['other.ckpt [0123456789]', 'real/dreamy_v5.safetensors [abcdef0123]']}}]};
        window.selectCheckpoint = (title) => { window.selected = title; };
    }""")  # noqa: E501
    page.route_web_socket(
        "**/events",
        lambda socket: [
            socket.send(json.dumps(message))
            for message in (
                {"type": "status", "queue_held": False, "current_job": "7"},
                {"type": "jobs", "jobs": [job]},
            )
        ],
    )
    asked = []
    page.route(
        "**/jobs/7/*",
        lambda route: (
            asked.append(route.request.url)
            or route.fulfill(
                json=[] if "metrics" in route.request.url else {**job, "state": "training"}
            )
        ),
    )
    page.context.set_offline(True)  # the link that was there is given up for the one above
    page.context.set_offline(False)
    page.wait_for_selector(".tl-paused:has-text('Paused: waiting for the checkpoint dreamy_v5')")
    assert (
        not page.is_visible("#tl-resume")
        and page.evaluate("window.attacked") is None
        and "<img" in text(page, ".tl-job .tl-notes")
    )
    page.click("#tl-load-checkpoint:text-is('Load dreamy_v5')")
    page.wait_for_function("window.selected === 'real/dreamy_v5.safetensors [abcdef0123]'")
    assert any(url.endswith("load-checkpoint") for url in asked)


WAITS = {
    "id": "7",
    "kind": "training",
    "name": "mine",
    "state": "paused",
    "stage": "paused",
    "waiting_for": "checkpoint",
    "checkpoint": "dreamy_v5",
    "step": 3,
    "total_steps": 9,
    "created_at": 0,
    "config": {},
}


@faster_clock
def test_header_tells_what_is_loaded_and_what_is_waited_for(page, host):
    page.wait_for_selector(".tl-model-text:has-text('Trains on tiny')")
    asked = []
    page.on(
        "request",
        lambda request: asked.append(request.url) if request.url.endswith("/status") else None,
    )
    page.route("**/jobs/7*", lambda route: route.fulfill(json={**WAITS, "state": "training"}))
    page.route(
        "**/jobs/7/*",
        lambda route: route.fulfill(
            json=[] if "metrics" in route.request.url else {**WAITS, "state": "training"}
        ),
    )
    tell(page, {"type": "jobs", "jobs": [WAITS]})
    page.wait_for_selector(".tl-model-text:has-text('Loaded: tiny · the run waits for dreamy_v5')")
    assert page.locator(".tl-dot.tl-wait").count() == 1
    assert page.is_disabled("#tl-snapshot") and "dreamy_v5 is not loaded" in page.get_attribute(
        "#tl-snapshot", "title"
    )
    host.status = type(host.status)(
        True, checkpoint="other", family="sd1", prediction_type="epsilon"
    )
    page.wait_for_selector(".tl-model-text:has-text('Loaded: other')")


@faster_clock
def test_header_follows_the_link_and_is_not_green_without_a_server(page):
    page.wait_for_selector(".tl-model-text:has-text('Trains on tiny')")
    page.route("**/v1/**", lambda route: route.abort())
    page.wait_for_selector("text=Connection lost")
    assert page.locator(".tl-dot.tl-away").count() == 1
    page.unroute_all()
    page.evaluate("window.dispatchEvent(new Event('focus'))")  # so that it tries at once
    page.wait_for_selector("text=Connection lost", state="hidden")
    assert page.get_attribute(".tl-dot", "class") == "tl-dot"
    page.evaluate("""() => {
        const shown = document.querySelector('.tl-model-text');
        window.seen = [];
        new MutationObserver(() => window.seen.push(shown.textContent)).observe(shown, {childList: true, characterData: true, subtree: true});
    }""")  # noqa: E501
    tell(
        page,
        {"type": "jobs", "jobs": []},
        {"type": "status", "model": {"trainable": True, "checkpoint": "fresh", "family": "sd1"}},
    )
    page.wait_for_function(
        "window.seen.includes('Trains on fresh')"
    )  # only the link says so; /status then says tiny again


# --- What came of it ------------------------------------------------------------------------------


def test_lora_that_was_saved_elsewhere_is_not_offered(page, service, settings):
    (job,) = wait_with(service, settings, "mine")
    service.wait(job, 60)
    page.wait_for_selector(".tl-tag:visible")
    where = (
        "The LoRA folder could not be written (no space left): the LoRA was saved to"
        " /data/jobs/1/mine.safetensors."
    )
    service.store.update(
        job,
        lora_tag="",
        output_file="/data/jobs/1/mine.safetensors",
        progress={
            **service.store.get(job).progress,
            "step": 5,
            "remarks": ["first", where],
        },
    )
    page.reload()
    page.wait_for_selector(f".tl-job .tl-notice.tl-warn >> text={where}")
    box = page.locator(".tl-job .tl-notice.tl-warn")
    assert (
        box.inner_text().startswith(where)
        and "<lora:" not in box.inner_text()
        and "Write" not in box.inner_text()
    )
    assert (
        not page.is_visible(".tl-job .tl-tag-line")
        and text(page, ".tl-job .tl-is-elsewhere") == "Finished, saved elsewhere"
    )
    assert text(
        page, ".tl-run .tl-is-elsewhere"
    ) == "Finished, saved elsewhere" and not page.is_visible(".tl-run-tag")


@faster_clock
def test_remarks_are_newest_first_and_few(page):
    page.route("**/jobs/7/*", lambda route: route.fulfill(json=[]))
    job = {
        **WAITS,
        "state": "training",
        "stage": "training",
        "waiting_for": "",
        "remarks": ["one", "two", "three", "four"],
    }
    tell(page, {"type": "jobs", "jobs": [job]})
    page.wait_for_selector(".tl-job .tl-notes li:text-is('four')")
    assert page.locator(".tl-job .tl-notes li").all_inner_texts() == ["four", "three"]
    page.click(".tl-job >> text=2 more")
    assert page.locator(".tl-job .tl-notes li").all_inner_texts() == ["four", "three", "two", "one"]
    tell(
        page,
        {
            "type": "jobs",
            "jobs": [
                {
                    **job,
                    "state": "finished",
                    "lora_tag": "<lora:mine:0.8>",
                    "output_file": "/mine.safetensors",
                }
            ],
        },
    )
    page.wait_for_selector(".tl-job .tl-is-finished")
    assert (
        not page.is_visible(".tl-job .tl-notes")
        and text(page, ".tl-job .tl-notes-more") == "4 notes"
    )


# --- The plan -------------------------------------------------------------------------------------


def test_taken_name_is_told_at_its_field(page, filled, host):
    (host.lora_dir / "mine.safetensors").write_bytes(b"a")
    page.fill("#tl-setting-output_name", "mine")
    page.wait_for_selector("#tl-setting-output_name-error.tl-asked:has-text('exists already')")
    page.click("#tl-train:not(:disabled)")
    page.wait_for_selector("button:has-text('Save as mine-2'):not(:disabled)")
    page.fill("#tl-setting-output_name", "other")
    page.wait_for_selector("#tl-setting-output_name-error", state="hidden")
    page.fill("#tl-setting-output_name", "mine")
    page.wait_for_selector("#tl-setting-output_name-error.tl-asked:visible")
    page.fill("#tl-setting-max_train_steps", "2")
    page.evaluate("""() => {
        const name = document.querySelector('#tl-setting-output_name');
        name.value = 'free';
        name.dispatchEvent(new Event('input', {bubbles: true}));
        document.querySelector('#tl-train').click();                               // before there is a plan for this name
    }""")  # noqa: E501
    page.wait_for_selector(".tl-job-title:text-is('free')")


def test_folder_that_is_back_is_noticed(page, filled, host, tmp_path):
    blocked = tmp_path / "place"
    blocked.write_text("in the way")
    page.fill("#tl-setting-output_name", "mine")
    page.click("[data-group=output] summary")
    page.fill("#tl-setting-output_dir", str(blocked))
    page.wait_for_selector("#tl-reasons:has-text('Nothing can be saved in')")
    blocked.unlink()
    page.mouse.move(0, 0)
    page.hover("#tl-train", force=True)
    page.wait_for_selector(
        "#tl-train:not(:disabled)", timeout=12_000
    )  # by itself it looks every 15 s


# --- The history ----------------------------------------------------------------------------------


def test_history_tells_and_offers(page, service, settings, host):
    (job,) = wait_with(service, settings, "mine")
    service.wait(job, 60)
    page.click(".tl-run:has-text('mine') .tl-run-open")
    panel = page.locator(".tl-run-panel")
    panel.locator(".tl-run-facts:has-text('5 steps')").wait_for()
    panel.locator("button:text-is('Log')").click()
    page.wait_for_selector(".tl-log:has-text('job 1 finished')")
    page.keyboard.press("Escape")
    panel.locator("button:text-is('Settings')").click()
    page.wait_for_selector("dialog .tl-setting-list:has-text('Rank')")
    page.keyboard.press("Escape")
    with page.expect_download() as download:
        panel.locator("button:text-is('metrics.csv')").click()
    assert len(download.value.path().read_text().splitlines()) == 6
    panel.locator("button:text-is('Train again with …')").click()
    page.wait_for_function("document.querySelector('#tl-setting-output_name').value === 'mine-2'")
    assert (
        page.input_value("#tl-setting-lora_rank") == "4"
        and page.input_value("#tl-setting-max_train_steps") == "5"
    )
    panel.locator("button:text-is('Delete')").click()
    page.click(".tl-ask >> button:text-is('Delete')")
    page.wait_for_selector(".tl-run", state="detached")
    assert service.jobs() == [] and (host.lora_dir / "mine.safetensors").is_file()


@faster_clock
def test_history_is_in_the_order_of_its_dates_without_the_cancelled(page, service):
    base = {**WAITS, "state": "finished", "waiting_for": "", "step": 9}
    jobs = [
        {**base, "id": str(number), "name": f"run{number}", "finished_at": 1000 + ended}
        for number, ended in ((4, 10), (3, 40), (2, 20))
    ]
    jobs.insert(
        0,
        {
            **base,
            "id": "9",
            "name": "gone",
            "state": "stopped",
            "step": 0,
            "message": "Cancelled before it began",
            "finished_at": 1030,
        },
    )
    tell(page, {"type": "jobs", "jobs": jobs})
    page.wait_for_selector(".tl-run")
    assert page.locator(".tl-run-name").all_inner_texts() == ["run3", "run2", "run4"]
    assert text(page, ".tl-run >> nth=0 >> .tl-run-least >> nth=1").endswith(
        "–"
    )  # nobody knows how long it worked
    page.click("text=Show 1 cancelled")
    assert page.locator(".tl-run-name").all_inner_texts() == ["run3", "gone", "run2", "run4"]


# --- The live link --------------------------------------------------------------------------------


def test_two_pages_show_the_same(page, address, service, settings, at_work):
    other = page.context.new_page()
    other.goto(address + PLAIN)
    for each in (page, other):
        each.wait_for_selector(".tl-job .tl-is-training")
    page.click("#tl-pause")
    other.wait_for_selector("#tl-resume:visible")
    wait_with(service, settings, "a", "b")
    wait_for_names(page, "a", "b")
    other.click("button[aria-label='Move b earlier']")
    wait_for_names(page, "b", "a")
    other.click("#tl-resume")
    page.wait_for_selector("#tl-pause:visible")
    other.close()


def asked_for(page) -> list[str]:
    asked = []
    page.on(
        "request",
        lambda request: (
            asked.append(request.url.split("/v1/")[-1]) if "/v1/jobs" in request.url else None
        ),
    )
    return asked


def changes(page, times=3):
    """Wait until the number of steps on the page has changed so many times."""
    for _ in range(times):
        before = text(page, ".tl-stats dd")
        page.wait_for_function(
            "before => document.querySelector('.tl-stats dd').textContent.trim() !== before",
            arg=before,
        )


def test_while_the_link_lives_nothing_is_asked(page, at_work):
    page.wait_for_selector(".tl-job .tl-is-training")
    asked = asked_for(page)
    wait_for_quiet(page, asked)  # what the page asks when it opens is over
    asked.clear()
    changes(page)
    assert asked == []


@faster_clock
def test_without_the_link_it_is_asked_and_the_link_comes_back(page, service, settings, at_work):
    page.wait_for_selector(".tl-job .tl-is-training")
    refuse = [True]
    page.route_web_socket(
        "**/events", lambda socket: socket.close() if refuse[0] else socket.connect_to_server()
    )
    page.context.set_offline(True)
    page.context.set_offline(False)
    asked = asked_for(page)
    changes(page, 1)
    wait_with(service, settings, "a")
    wait_for_names(page, "a")  # told by asking
    assert any("metrics" in path for path in asked)
    refuse[0] = False
    wait_for_quiet(page, asked, seconds=0.5)
    asked.clear()
    changes(page)
    assert asked == []
    page.click("#tl-stop")
    page.wait_for_selector(".tl-tag:visible:text-is('<lora:a:0.8>')")


# --- While nobody looks ---------------------------------------------------------------------------


def test_title_tells_until_the_page_is_looked_at(page, service, settings):
    page.evaluate(FOCUS)
    page.evaluate("window.looked = false")
    service.start({**settings, "max_train_steps": LONG})
    page.wait_for_function("/^\\d+ % · Train LoRA$/.test(document.title)")
    page.click("#tl-stop")
    page.wait_for_selector(".tl-job .tl-is-stopped")
    page.wait_for_function("document.title === 'Train LoRA'")  # whoever pressed Stop knows
    wait_with(service, settings, "quick")
    page.wait_for_function("document.title === '✓ quick: finished · Train LoRA'")
    page.evaluate("window.looked = true; window.dispatchEvent(new Event('focus'))")
    assert page.title() == "Train LoRA"


def test_notification_is_asked_for_by_a_click_only(browser, address, service, settings):
    context = browser.new_context()
    context.add_init_script(NOTIFICATIONS + FOCUS)
    page = context.new_page()
    page.goto(address + PLAIN)
    page.wait_for_selector("#tl-notify")
    page.evaluate("window.looked = false")
    service.wait(wait_with(service, settings, "quiet")[0], 60)
    page.wait_for_selector(".tl-tag:visible:text-is('<lora:quiet:0.8>')")
    assert page.evaluate("[window.asked, window.told]") == [0, []]
    page.check("#tl-notify")
    page.wait_for_function("window.asked === 1")
    service.wait(wait_with(service, settings, "loud")[0], 60)
    page.wait_for_function("window.told.length === 1")
    assert page.evaluate("window.told[0]") == ["loud finished", "<lora:loud:0.8>"]
    context.close()


def test_refused_notification_is_said(browser, address):
    context = browser.new_context()
    context.add_init_script("window.Notification = class {}; Notification.permission = 'denied';")
    page = context.new_page()
    page.goto(address + PLAIN)
    page.wait_for_selector("#tl-notify")
    page.click("#tl-notify")
    page.wait_for_selector(".tl-notify-note:visible:has-text('does not let this page notify')")
    assert not page.is_checked("#tl-notify")
    context.close()


# --- Looks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 800, 1280, 1920])
def test_fits(page, service, settings, at_work, width):
    wait_with(
        service,
        settings,
        "a",
        "a name that goes on and on and on and on and on and does not stop where it should",
    )
    service.stop(wait_with(service, settings, "gone")[0])
    page.set_viewport_size({"width": width, "height": 900})
    page.click("text=Show 1 cancelled")
    page.click(".tl-run:has-text('gone') .tl-run-open")
    page.click("#tl-pause-more")
    menu, card = (
        page.locator(".tl-menu").bounding_box(),
        page.locator(".tl-side .tl-card").bounding_box(),
    )
    assert (
        card["x"] <= menu["x"]
        and menu["x"] + menu["width"] <= card["x"] + card["width"]
        or width < 500
    )
    page.keyboard.press("Escape")
    page.click("#tl-pause")
    page.wait_for_selector("#tl-resume:visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        page.evaluate(
            """() => [...document.querySelectorAll('.tl-card *')].filter((item) => item.offsetParent !== null && !item.closest('.tl-tags, svg, .tl-hidden')
        && item.getBoundingClientRect().right > item.closest('.tl-card').getBoundingClientRect().right).map((item) => item.className)"""  # noqa: E501
        )
        == []
    )
    ids = page.evaluate(
        "[...document.querySelectorAll('#train_lora_app [id]')].map((item) => item.id)"
    )
    assert not [each for each in ids if each.endswith(("_generate", "_interrupt", "_skip"))]
