"""The page's frame, its presets, and what its script and style sheet must never do. What the page
does is in test_page_browser.py.
"""

import gc
import re
import shutil
import subprocess
from pathlib import Path

import gradio as gr
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lora_trainer.interop.presets import package_presets
from lora_trainer.settings.config import TrainConfig, all_settings
from lora_trainer.web import tab

# What gradio leaves open when it goes is not ours to close.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
ROOT = Path(__file__).parents[2]
JAVASCRIPT, STYLE = ROOT / "javascript", ROOT / "style.css"
SCRIPTS = sorted(JAVASCRIPT.glob("*.js"))
NEEDS_GRADIO_6 = pytest.mark.skipif(
    int(gr.__version__.split(".")[0]) < 6, reason="the standalone page needs gradio 6"
)


@pytest.fixture
def let_go():
    """Collect what gradio leaves behind while its warnings are still ignored."""
    yield
    gc.collect()


def html_in(blocks):
    return [block.value for block in blocks.blocks.values() if isinstance(block, gr.HTML)]


def test_tab_is_one_element_for_the_script(let_go):
    (frame,) = html_in(tab.create_tab())
    assert f'id="{tab.APP_ID}"' in frame and "noscript" in frame


def test_link_leads_to_the_tab(let_go):
    with gr.Blocks(analytics_enabled=False) as blocks:
        tab.create_link()
    assert "trainLora.open()" in html_in(blocks)[0]
    assert re.search(r"window\.trainLora = .*\{open:", SCRIPTS[0].read_text(encoding="utf-8"))


@pytest.mark.parametrize("preset", package_presets(), ids=lambda preset: preset["name"])
def test_preset_is_valid_and_says_what_it_is_for(preset):
    assert preset["title"] and preset["help"]
    config = TrainConfig.parse(preset["settings"])
    for name, value in preset["settings"].items():
        assert getattr(config, name) == value


def test_presets_decide_the_same_settings():
    """So that going from one to another leaves nothing of the first behind."""
    decided = {preset["name"]: sorted(preset["settings"]) for preset in package_presets()}
    assert sorted(decided) == [
        "anime_character",
        "character",
        "ink_painting",
        "object",
        "product",
        "quick_try",
        "style",
    ]
    assert len({tuple(names) for names in decided.values()}) == 1


def test_script_names_only_settings_that_exist():
    script = "\n".join(file.read_text(encoding="utf-8") for file in SCRIPTS)
    tables = re.findall(
        r"const (?:HIDDEN|WIDE|FIRST|LINES|SECOND_OF) = (.*?);", script, flags=re.DOTALL
    )
    named = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", " ".join(tables))) - {
        "feed_forward",
        "text_encoder",
    }  # of which rank and alpha are made
    assert (
        len(tables) == 5
        and len(named) > 20
        and named <= {setting.name for setting in all_settings()}
    )


def test_script_lays_out_the_settings_as_they_are_declared():
    script = (JAVASCRIPT / "train_lora_settings.js").read_text(encoding="utf-8")
    hidden = re.search(r"const HIDDEN = (.*?);", script).group(1)
    pairs = re.search(r"const SECOND_OF = (.*?);", script, flags=re.DOTALL).group(1)
    beside = {second: first for first, second in re.findall(r"(\w+): '(\w+)'", pairs)}
    parts = re.search(r"\[([^\]]*)\]\.map", pairs).group(1)
    beside |= {f"{part}_alpha": f"{part}_rank" for part in re.findall(r"\w+", parts)}
    assert set(re.findall(r"\w+_\w+|overwrite", hidden)) == {
        setting.name for setting in all_settings() if setting.hidden
    }
    assert beside == {setting.name: setting.beside for setting in all_settings() if setting.beside}


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_script_never_writes_markup_and_fetches_from_nowhere_else(file):
    script = file.read_text(encoding="utf-8").replace("'http://www.w3.org/2000/svg'", "")
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|https?://", script
    )
    assert "</script" not in script.lower()


def test_page_waits_for_exactly_the_parts_that_there_are():
    """A part that is missing, or misspelt, would keep the page from ever appearing."""
    wanted = re.findall(
        r"'(\w+)'",
        re.search(r"const PARTS = \[(.*?)\]", SCRIPTS[0].read_text(encoding="utf-8")).group(1),
    )
    brought = [
        name
        for file in SCRIPTS[1:]
        for name in re.findall(r"\}\)\.parts\.(\w+) = ", file.read_text(encoding="utf-8"))
    ]
    assert sorted(wanted) == sorted(brought) and wanted


def test_style_touches_nothing_outside_the_page():
    sheet = re.sub(r"/\*.*?\*/", "", STYLE.read_text(encoding="utf-8"), flags=re.DOTALL)
    selectors = [
        selector.strip()
        for selector in re.findall(r"([^{}]+)\{", sheet)
        if not selector.strip().startswith(("@", "to", "from"))
    ]
    assert selectors and all(
        re.search("#train_lora_(app|toasts)", part)
        for selector in selectors
        for part in re.split(r",(?![^(]*\))", selector)
    )
    assert not re.findall(r"@import|url\(", sheet)


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_script_is_valid(file):
    if not (node := shutil.which("node")):
        pytest.skip("there is no node to check the script with")
    subprocess.run([node, "--check", file], check=True)


@NEEDS_GRADIO_6
def test_page_brings_script_and_style(let_go):
    app = tab.mount_page(FastAPI(), javascript=JAVASCRIPT, style=STYLE)
    with TestClient(app) as client:
        page = client.get("/").text
    assert (
        "window.trainLora" in page
        and "parts.grid = " in page
        and "#train_lora_app .tl-card" in page
    )
    assert "fonts.googleapis.com" not in page
