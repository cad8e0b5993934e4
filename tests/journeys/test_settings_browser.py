"""The settings on the page, in a real browser: groups, search, what is changed or has no effect,
the model's line, and settings from elsewhere.
"""

import json
import re
import struct

import pytest
import yaml

from lora_trainer.base.contracts import ModelStatus
from tests.support.browser import drop_files, text
from tests.support.pages import FASTER, PLAIN, faster_clock

PAGE = PLAIN
# What gradio leaves open when it goes is not ours to close.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
KOHYA = b"""network_dim = 24
network_alpha = 12
unet_lr = 0.0003
max_train_epochs = 12
min_snr_gamma = 5
shuffle_caption = true
xformers = true
output_name = "theirs"
network_module = "networks.lora"
"""


def lora(filler=0, **metadata) -> bytes:
    header = json.dumps(
        {
            "__metadata__": metadata,
            "lora_unet_x.lora_down.weight": {
                "dtype": "U8",
                "shape": [filler],
                "data_offsets": [0, filler],
            },
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + b"\x00" * filler


TRAINED = dict(
    ss_network_dim="24",
    ss_network_alpha="12.0",
    ss_learning_rate="0.0003",
    ss_network_module="networks.lora",
)


def setting(name):
    return f"#tl-setting-{name}"


def is_open(page, group):
    return page.evaluate("group => document.querySelector(`[data-group=${group}]`).open", group)


def shown(page) -> list[str]:
    """The settings that are seen in the groups."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.tl-groups .tl-field')].filter((field) => field.checkVisibility())
        .map((field) => field.querySelector('.tl-label').htmlFor.replace('tl-setting-', '').replace(/-$/, ''))"""  # noqa: E501
    )


def show_model(page, host, status):
    """Let another checkpoint be loaded, and the page, which has the faster clock, look at once."""
    host.status = status
    page.wait_for_timeout(1100 / FASTER)  # it does not look twice within a second
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def sdxl():
    return ModelStatus(
        True,
        checkpoint="noobai",
        family="sdxl",
        prediction_type="epsilon",
        size_px=1024,
        dtype="float16",
    )


def test_groups_open_close_and_are_remembered(page):
    assert (
        shown(page) == []
        and page.is_visible(setting("lora_rank"))
        and page.is_visible(setting("learning_rate"))
    )
    page.click("[data-group=network] summary")
    page.wait_for_selector(setting("lora_type"))
    assert {"lora_type", "conv_rank", "init_lora"} <= set(shown(page)) and not page.is_visible(
        setting("huber_c")
    )
    page.wait_for_function("JSON.parse(localStorage['train-lora.v1']).groups.includes('network')")
    page.reload()
    page.wait_for_selector(setting("lora_type"))
    assert is_open(page, "network") and not is_open(page, "loss")


def test_what_is_changed_is_marked_and_taken_back(page):
    page.click("[data-group=loss] summary")
    page.fill(setting("min_snr_gamma"), "5")
    page.select_option(setting("loss_type"), "huber")
    page.fill(setting("batch_size"), "3")
    page.wait_for_selector("[data-group=loss] summary:has-text('2 changed')")
    assert (
        text(page, ".tl-changed").startswith("3 settings changed")
        and text(page, ".tl-segment:has-text('Changed')") == "Changed 3"
    )
    page.check("input[name=tl-settings-only][value=changed]", force=True)
    assert (
        shown(page) == ["loss_type", "min_snr_gamma"]
        and text(page, ".tl-found") == "Above: Batch size"
    )
    page.click("button[aria-label='Min-SNR gamma: Back to 0']")
    assert page.input_value(setting("min_snr_gamma")) == "0"
    page.check("input[name=tl-settings-only][value=all]", force=True)
    page.click(
        "[data-group=loss] summary button[aria-label='Take back 1 change in Loss and noise']"
    )
    assert page.input_value(setting("loss_type")) == "l2" and is_open(page, "loss")
    page.click("#tl-settings-more")
    page.click("text=Everything to its default")
    assert (
        page.input_value(setting("batch_size")) == "1"
        and page.input_value(setting("max_train_steps")) == "0"
    )


def test_search_finds_by_our_words_and_kohyas(page):
    def search(words):
        page.fill("#tl-settings-search", words)
        return shown(page)

    assert search("ip_noise_gamma") == ["input_perturbation", "input_perturbation_random"]
    assert text(page, "[data-group=loss] .tl-names:visible").startswith(
        "input_perturbation · kohya: ip_noise_gamma"
    )
    assert (
        search("restart") == ["scheduler", "scheduler_cycles"]
        and search("prodigy") == ["optimizer", "loraplus_lr_ratio"]
        and "masked_loss" in search("transparent")
    )
    assert search("network_dim") == [] and text(page, ".tl-found") == "Above: Rank"
    page.click(".tl-found >> text=Rank")
    assert page.evaluate("document.activeElement.id") == "tl-setting-lora_rank"
    assert (
        search("<b>nothing</b>") == []
        and text(page, ".tl-no-settings") == "No setting matches “<b>nothing</b>”."
    )
    page.press("#tl-settings-search", "Escape")
    assert (
        page.input_value("#tl-settings-search") == ""
        and shown(page) == []
        and page.locator(".tl-group:visible").count() >= 9
    )


@faster_clock
def test_what_has_no_effect_says_what_decides_and_leads_there(page, host):
    def note(name):
        return (
            page.inner_text(f"{setting(name)}-note")
            if page.is_visible(f"{setting(name)}-note")
            else ""
        )

    show_model(
        page,
        host,
        ModelStatus(
            True, checkpoint="tiny", family="sd1", prediction_type="epsilon", dtype="float32"
        ),
    )
    page.wait_for_selector(".tl-model:has-text('fp32')")
    assert note("epochs") == "Not used: Steps decides."  # the preset counts in steps
    page.fill(setting("max_train_steps"), "0")
    assert note("epochs") == "" and page.is_visible(f"{setting('epochs')}-help")
    for group in ("loss", "network", "captions"):
        page.click(f"[data-group={group}] summary")
    assert (
        note("huber_c") == "Only with Loss: huber or smooth_l1."
        and note("conv_rank") == "Only with Layers: all."
    )
    assert note("keep_tokens") == "Only with Shuffle tags or Tag dropout."
    page.select_option(setting("loss_type"), "smooth_l1")
    page.check(setting("shuffle_caption"))
    assert note("huber_c") == "" == note("keep_tokens")
    assert (
        note("v_pred_like_loss") == ""
        and note("scale_v_pred_loss") == "Only with The model predicts: v_prediction."
    )  # auto: what the checkpoint says
    page.click(f"{setting('scale_v_pred_loss')}-note >> text=The model predicts")
    assert page.evaluate("document.activeElement.id") == "tl-setting-prediction_type"
    page.select_option(setting("prediction_type"), "v_prediction")
    assert (
        note("scale_v_pred_loss") == ""
        and note("v_pred_like_loss") == "Only with The model predicts: epsilon."
    )
    page.fill(setting("init_lora"), "zib")
    assert note("lora_rank") == "Not used: Go on from a LoRA decides."


def test_mistake_in_a_closed_group_opens_it(page, filled):
    page.fill(setting("output_name"), "mine")
    page.click("[data-group=pictures] summary")
    page.fill(setting("extra_data_dirs"), "5 x /nowhere/at/all\n2000 x .")
    page.click("[data-group=pictures] summary")
    page.wait_for_selector(f"{setting('extra_data_dirs')}-error:visible:has-text('2000 times')")
    assert (
        is_open(page, "pictures")
        and page.evaluate("document.querySelector('#tl-setting-extra_data_dirs').tagName")
        == "TEXTAREA"
    )
    page.fill(setting("extra_data_dirs"), "")
    page.wait_for_selector(f"{setting('extra_data_dirs')}-error", state="hidden")


def test_optimizer_that_is_not_installed_says_what_to_install(page):
    form = page.evaluate("fetch('train-lora/v1/settings').then((answer) => answer.json())")
    for choice in next(entry for entry in form["settings"] if entry["name"] == "optimizer")[
        "choices"
    ]:
        choice["needs"] = "python -m pip install prodigyopt" if choice["value"] == "prodigy" else ""
    page.route("**/v1/settings", lambda route: route.fulfill(json=form))
    page.reload()
    page.click("[data-group=optimizer] summary")
    page.select_option(setting("optimizer"), "prodigy")
    assert (
        text(page, ".tl-needs:visible")
        == "Not installed. To have it, and then start again: python -m pip install prodigyopt"
    )
    assert "(not installed)" in text(
        page, f"{setting('optimizer')} option[value=prodigy]"
    ) and "(not" not in text(page, f"{setting('optimizer')} option[value=adamw]")
    page.select_option(setting("optimizer"), "adamw")
    assert not page.is_visible(".tl-needs:visible")


# --- The model's line -----------------------------------------------------------------------------


@faster_clock
def test_resolution_follows_the_checkpoint_until_it_is_set(page, host):
    assert page.input_value(setting("resolution")) == "512"
    show_model(page, host, sdxl())
    page.wait_for_function("document.querySelector('#tl-setting-resolution').value === '1024'")
    assert "SDXL" in text(page, ".tl-model") and "made for 1024 px" in text(page, ".tl-model")
    page.fill(setting("resolution"), "768")
    show_model(
        page,
        host,
        ModelStatus(
            True,
            checkpoint="old",
            family="sd1",
            variant="inpainting",
            prediction_type="epsilon",
            size_px=512,
        ),
    )
    page.wait_for_selector(".tl-model:has-text('SD1 · inpainting · made for 512 px')")
    assert page.input_value(setting("resolution")) == "768" and not page.is_visible("#tl-predicts")


@faster_clock
def test_a_resolution_that_was_set_stays_though_a_checkpoint_has_it_too(page, host):
    def load(size_px):
        show_model(
            page,
            host,
            ModelStatus(
                True,
                checkpoint=f"of {size_px}",
                family="sd1",
                prediction_type="epsilon",
                size_px=size_px,
            ),
        )
        page.wait_for_selector(f".tl-model:has-text('made for {size_px} px')")
        return page.input_value(setting("resolution"))

    page.fill(setting("resolution"), "64")
    assert load(64) == "64" and text(page, ".tl-segment:has-text('Changed')") == "Changed"
    page.reload()
    page.wait_for_selector(".tl-model:has-text('made for 64 px')")
    assert load(512) == "64" == load(64)
    page.click("button[aria-label='Resolution: Follow the checkpoint again']")
    assert load(512) == "512" and load(768) == "768"


def test_back_to_the_preset_takes_all_but_names_pictures_and_folders(page):
    page.click("[data-group=loss] summary")
    page.click("[data-group=output] summary")
    for name, value in {
        "output_name": "mine",
        "trigger_word": "zib",
        "output_dir": "elsewhere",
        "resolution": "640",
    }.items():
        page.fill(setting(name), value)
    page.select_option(setting("loss_type"), "huber")  # in no preset
    page.click("text=Reset to preset")
    values = {
        name: page.input_value(setting(name))
        for name in ("output_name", "trigger_word", "output_dir", "resolution", "loss_type")
    }
    assert values == {
        "output_name": "mine",
        "trigger_word": "zib",
        "output_dir": "elsewhere",
        "resolution": "512",
        "loss_type": "l2",
    }
    assert not page.is_visible("text=Reset to preset")


@faster_clock
def test_what_an_sdxl_model_predicts_can_be_said(page, host):
    show_model(page, host, sdxl())
    page.click("#tl-predicts:visible")
    assert text(page, ".tl-predicts") == "· predicts noise change"
    page.click(".tl-menu-item:has-text('v_prediction')")
    page.wait_for_selector(".tl-predicts:has-text('predicts v, as you chose')")
    assert (
        page.evaluate("document.querySelector('#tl-setting-prediction_type').value")
        == "v_prediction"
    )
    page.click("#tl-predicts")
    page.click(".tl-menu-item:has-text('As the checkpoint says')")
    page.wait_for_selector(".tl-predicts:has-text('· predicts noise change')")


# --- Presets of one's own -------------------------------------------------------------------------


def own_presets(page):
    return page.locator(".tl-own-preset .tl-preset-title").all_inner_texts()


def save_preset(page, name, help=""):
    page.click("#tl-save-preset")
    page.fill("#tl-preset-name", name)
    page.fill("#tl-preset-help", help)
    page.click(".tl-ask >> button:has-text('Save preset')")


def in_preset_menu(page, item):
    page.click(".tl-own-preset .tl-tool")
    page.click(f".tl-menu-item:has-text('{item}')")


def test_the_settings_become_a_preset_that_can_be_taken_again(page, service):
    page.fill(setting("output_name"), "mine")
    page.fill(setting("lora_rank"), "24")
    page.fill(setting("learning_rate"), "0.0003")
    save_preset(page, "水墨 🖌", "Ink on rice paper")
    page.wait_for_selector(".tl-own-preset :checked", state="attached")
    assert (
        own_presets(page) == ["水墨 🖌"]
        and "Ink on rice paper" in text(page, ".tl-own-preset .tl-help")
        and not page.is_visible(".tl-changed")
    )
    assert (
        service.presets.all()[-1]["settings"].items()
        >= {
            "lora_rank": 24,
            "learning_rate": 0.0003,
        }.items()
    )
    assert (
        not {"output_name", "output_dir", "trigger_word"}
        & service.presets.all()[-1]["settings"].keys()
    )
    page.check("input[name=tl-preset][value=quick_try]", force=True)
    assert (
        page.input_value(setting("lora_rank")) == "8"
        and page.input_value(setting("output_name")) == "mine"
    )
    page.reload()
    page.check(".tl-own-preset input", force=True)
    assert (page.input_value(setting("lora_rank")), page.input_value(setting("learning_rate"))) == (
        "24",
        "0.0003",
    )


def test_a_preset_is_replaced_when_asked_renamed_and_deleted(page, service):
    page.fill(setting("lora_rank"), "24")
    save_preset(page, "ink")
    page.wait_for_selector(".tl-own-preset :checked", state="attached")
    page.fill(setting("lora_rank"), "28")
    save_preset(page, "ink")
    page.click(".tl-ask >> button:has-text('Replace')")
    page.wait_for_function("!document.querySelector('dialog[open]')")
    page.wait_for_selector(".tl-changed", state="hidden")
    assert service.presets.all()[-1]["settings"]["lora_rank"] == 28
    save_preset(page, "Character")
    page.wait_for_selector(".tl-ask .tl-error:visible:has-text('already')")
    page.keyboard.press("Escape")
    in_preset_menu(page, "Rename")
    page.fill("#tl-preset-name", "墨")
    page.keyboard.press("Enter")
    page.wait_for_selector(".tl-own-preset:has-text('墨') :checked", state="attached")
    in_preset_menu(page, "Delete")
    page.click(".tl-ask >> button:has-text('Delete')")
    page.wait_for_selector(".tl-own-preset", state="detached")
    assert page.input_value(setting("lora_rank")) == "28" and page.is_visible(
        ".tl-changed"
    )  # what was set stays


def test_a_preset_is_shared_as_a_file(page, service, tmp_path):
    service.presets.save("ink", {"lora_rank": 24}, help="Ink")
    page.reload()
    page.wait_for_selector(".tl-own-preset")
    with page.expect_download() as download:
        in_preset_menu(page, "Save as a file")
    download.value.save_as(tmp_path / "ink.yaml")
    assert download.value.suggested_filename == "ink.yaml" and yaml.safe_load(
        (tmp_path / "ink.yaml").read_text()
    )["settings"] == {"lora_rank": 24}
    page.click("#tl-settings-more")
    with page.expect_file_chooser() as chooser:
        page.click(".tl-menu-item:has-text('Add a preset from a file')")
    chooser.value.set_files(tmp_path / "ink.yaml")
    page.wait_for_selector(".tl-own-preset:has-text('ink-2') :checked", state="attached")
    assert page.input_value(setting("lora_rank")) == "24" and own_presets(page) == ["ink", "ink-2"]


# --- Settings from elsewhere ----------------------------------------------------------------------


def test_a_file_is_looked_at_and_then_taken_over(page):
    page.fill(setting("output_name"), "mine")
    page.click("#tl-import-settings")
    drop_files(page, {"cat.toml": KOHYA}, ".tl-settings-drop")
    page.wait_for_selector(".tl-import-table")
    rows = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in page.locator(".tl-import-table tbody tr").all()
    }
    assert (
        rows["Rank"] == ["16", "24"]
        and rows["Shuffle tags"] == ["off", "on"]
        and rows["Steps"][0] == "1800"
        and rows["Steps"][1].startswith("0")
    )
    left = text(page, ".tl-left-out")
    assert "xformers" in left and "you have given a name already" in left
    assert page.input_value(setting("lora_rank")) == "16"  # nothing has happened yet
    page.click(".tl-settings-import >> button:has-text('Take over')")
    page.wait_for_selector(".tl-toast:has-text('taken over from cat.toml')")
    values = {
        name: page.input_value(setting(name))
        for name in (
            "lora_rank",
            "lora_alpha",
            "learning_rate",
            "epochs",
            "max_train_steps",
            "output_name",
            "min_snr_gamma",
        )
    }
    assert values == {
        "lora_rank": "24",
        "lora_alpha": "12",
        "learning_rate": "0.0003",
        "epochs": "12",
        "max_train_steps": "0",
        "output_name": "mine",
        "min_snr_gamma": "5",
    }


def test_a_second_file_that_cannot_be_read_clears_the_first(page):
    page.click("#tl-import-settings")
    drop_files(page, {"cat.toml": KOHYA}, ".tl-settings-drop")
    page.wait_for_selector(".tl-import-table")
    page.set_input_files(
        ".tl-settings-import input[type=file]",
        {"name": "model.ckpt", "mimeType": "", "buffer": b"x"},
    )
    page.wait_for_selector(".tl-settings-import .tl-error:visible:has-text('is no settings file')")
    assert not page.is_visible(".tl-import-table") and not page.is_visible(
        ".tl-settings-import >> button:has-text('Take over')"
    )


def test_of_a_large_lora_only_the_header_is_sent(page):
    sizes = []
    page.on(
        "request",
        lambda request: (
            sizes.append(len(request.post_data_buffer or b""))
            if request.url.endswith("/import")
            else None
        ),
    )
    page.click("#tl-import-settings")
    page.set_input_files(
        ".tl-settings-import input[type=file]",
        {"name": "large.safetensors", "mimeType": "", "buffer": lora(5_000_000, **TRAINED)},
    )
    page.wait_for_selector(".tl-import-table tr:has-text('Rank') >> text=24")
    assert len(sizes) == 1 and sizes[0] < 5000
    page.click(".tl-settings-import >> text=Another file")
    for name, data, said in (
        ("model.ckpt", b"\x80\x04.", "is no settings file"),
        ("x.safetensors", b"\xff" * 20, "is damaged"),
        ("bare.safetensors", lora(4), "does not say how"),
    ):
        page.set_input_files(
            ".tl-settings-import input[type=file]", {"name": name, "mimeType": "", "buffer": data}
        )
        page.wait_for_selector(f".tl-settings-import .tl-error:visible:has-text('{said}')")
    assert len(sizes) == 2  # the first two were not even sent


def test_train_like_a_lora_of_the_folder_keeps_the_rest_if_asked(page, host):
    (host.lora_dir / "older.safetensors").write_bytes(lora(4, **TRAINED))
    page.click("[data-group=data] summary")
    page.check(setting("mirror"))
    page.click("#tl-import-settings")
    page.select_option("#tl-like", "older")
    page.wait_for_selector(".tl-import-table tr:has-text('Rank')")
    assert "Settings from older.safetensors" in text(page, ".tl-settings-import .tl-title")
    (rest,) = page.locator(".tl-import-table tr:has(th:text-is('Mirror'))").all()
    assert rest.locator("td").all_inner_texts()[0] == "on" and "the default" in rest.inner_text()
    page.uncheck("#tl-import-rest")
    assert page.locator(".tl-import-table tr:has(th:text-is('Mirror'))").count() == 0
    page.click(".tl-settings-import >> button:has-text('Take over')")
    assert page.input_value(setting("lora_rank")) == "24" and page.is_checked(setting("mirror"))


def test_settings_are_exported(page, filled):
    page.fill(setting("output_name"), "mine")
    page.fill(setting("lora_rank"), "7")
    page.click("#tl-settings-more")
    with page.expect_download() as download:
        page.click("text=Export as YAML")
    values = yaml.safe_load(download.value.path().read_text(encoding="utf-8"))
    assert (
        download.value.suggested_filename == "mine.yaml"
        and values["lora_rank"] == 7
        and values["train_data_dir"] == str(filled)
    )


# --- What is said before, and what sets it right --------------------------------------------------

WARNED = ".tl-warn-list li"


@faster_clock
def test_one_press_sets_right_what_the_plan_warns_of(page, filled, host):
    for name, value in {
        "output_name": "mine",
        "resolution": "64",
        "max_train_steps": "6",
        "batch_size": "20",
        "learning_rate": "0.5",
    }.items():
        page.fill(setting(name), value)
    page.click(f"{WARNED}:has-text('Batch size 20') >> button:text-is('Set batch size to 6')")
    page.wait_for_selector(f"{WARNED}:has-text('Batch size')", state="detached")
    assert page.input_value(setting("batch_size")) == "6"
    page.click(f"{WARNED}:has-text('Prodigy') >> button:text-is('Set the learning rate to 0.0001')")
    page.wait_for_selector(f"{WARNED}:has-text('Prodigy')", state="detached")
    assert (
        page.input_value(setting("learning_rate")) == "0.0001"
        and page.input_value(setting("batch_size")) == "6"
    )
    show_model(page, host, sdxl())
    page.fill(setting("resolution"), "512")
    page.click(
        f"{WARNED}:has-text('This SDXL checkpoint was made for pictures of 1024 px') >>"
        " button:text-is('Set resolution to 1024')"
    )
    page.wait_for_selector(f"{WARNED}:has-text('SDXL')", state="detached")
    assert page.input_value(setting("resolution")) == "1024"


@faster_clock
def test_one_press_at_a_field_sets_right_what_is_refused(page, filled, host):
    (host.lora_dir / "old").mkdir()
    (host.lora_dir / "old" / "mine.safetensors").write_bytes(b"x")
    page.fill(setting("output_name"), "mine")
    page.click(".tl-identity button:text-is('Call it mine-2')")
    page.wait_for_selector("#tl-setting-output_name-error", state="hidden")
    assert page.input_value(setting("output_name")) == "mine-2" and not page.is_visible(
        "button:has-text('Call it')"
    )
    for number in range(2, 6):
        (filled / f"{number}.png").unlink()
    page.fill("#tl-settings-search", "validation")
    page.fill(setting("validation_split"), "0.5")
    page.click(".tl-reasons button:text-is('Set validation to 0')")
    page.wait_for_selector("#tl-train:not(:disabled)")
    assert page.input_value(setting("validation_split")) == "0"


# --- What is measured -----------------------------------------------------------------------------


def test_validation_is_a_second_curve(page, service):
    rows = [
        dict(
            step=step,
            loss=0.2,
            loss_average=0.2,
            learning_rate=1e-4,
            seconds=step,
            validation_loss=0.3 - step / 1000 if step % 10 == 0 else None,
        )
        for step in range(1, 41)
    ]
    job = {
        "id": "7",
        "kind": "training",
        "name": "mine",
        "state": "training",
        "stage": "training",
        "step": 40,
        "total_steps": 80,
        "loss": 0.2,
        "validation_loss": 0.26,
        "created_at": 0,
        "config": {},
    }
    page.route_web_socket("**/train-lora/v1/events", lambda socket: socket.close())
    status = {**service.status(), "current_job": job}
    answers = {"status": status, "jobs": [job], "jobs/7": job, "jobs/7/metrics": rows}
    page.route(
        re.compile(r"/v1/(status|jobs.*)$"),
        lambda route: route.fulfill(json=answers[route.request.url.split("/v1/")[1].split("?")[0]]),
    )
    page.reload()
    page.wait_for_selector(".tl-legend:has-text('validation')")
    assert "0.2600" in text(
        page, ".tl-stats:visible"
    ) and "validation 0.2600 at step 40" in page.get_attribute(".tl-canvas >> nth=0", "aria-label")
    page.focus(".tl-canvas >> nth=0")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.wait_for_selector(
        ".tl-readout:has-text('Step 35 · 0.2000 · average 0.2000 · validation 0.2700')"
    )
    drawn = page.evaluate("""() => {
        const canvas = document.querySelector('.tl-canvas'), wanted = document.createElement('canvas').getContext('2d');
        wanted.fillStyle = getComputedStyle(canvas).getPropertyValue('--tl-curve-measured').trim();
        wanted.fillRect(0, 0, 1, 1);
        const [r, g, b] = wanted.getImageData(0, 0, 1, 1).data, data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let count = 0;
        for (let at = 0; at < data.length; at += 4) count += data[at] === r && data[at + 1] === g && data[at + 2] === b;
        return count;
    }""")  # noqa: E501
    assert drawn > 50
