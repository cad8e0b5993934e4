"""The page's frame in gradio: one HTML element that javascript/ fills and that talks to the REST
API by itself.

The same element serves as a tab of the WebUI (gradio 3.41, Forge's 4), which injects javascript/
and style.css on its own, and as the standalone page (gradio 6), for which `mount_page` puts both
into the document's head.
"""

from pathlib import Path

import gradio as gr
from fastapi import FastAPI

APP_ID = "train_lora_app"
TITLE = "Train LoRA"
SANS = ["system-ui", "sans-serif"]  # gradio 6's own semi-bold holds only a few letters
MONO = ["ui-monospace", "Consolas", "monospace"]

_UNCLIPPED = (  # gradio 6 hides overflow, and nothing would stay in view
    ".gradio-container { overflow: visible !important; }"
)

_FRAME = f"""
<div id="{APP_ID}">
  <p class="tl-loading">Loading Train LoRA …</p>
  <noscript><p>Train LoRA needs JavaScript: allow it for this page and reload.</p></noscript>
</div>
"""

_LINK = f"""
<p>Training a LoRA has a page of its own.</p>
<button type="button" class="lg secondary gradio-button" onclick="trainLora.open()">
Open {TITLE}</button>
"""


def create_tab() -> gr.Blocks:
    """Build the tab. It knows no host and has no gradio events: everything on it goes through the
    API.
    """
    with gr.Blocks(analytics_enabled=False) as blocks:
        _html(_FRAME, elem_id="train_lora_frame")
    return blocks


def create_link() -> gr.HTML:
    """Build, inside the current gradio container, a button that leads to the tab (for the WebUI's
    own Train tab).
    """
    return _html(_LINK, elem_id="train_lora_link")


def mount_page(app: FastAPI, *, javascript: Path, style: Path, path: str = "/") -> FastAPI:
    """Mount the page on a FastAPI app at `path` and return the app; routes added before keep
    precedence. Needs gradio 6.

    `javascript` is the folder with the scripts.
    """
    with gr.Blocks(analytics_enabled=False, title=TITLE, fill_width=True) as blocks:
        _html(_FRAME, elem_id="train_lora_frame")
    theme = gr.themes.Default(font=SANS, font_mono=MONO)
    return gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        head=page_head(javascript, style),
        theme=theme,
        footer_links=[],
        ssr_mode=False,
        run_history=False,
    )


def page_head(javascript: Path, style: Path) -> str:
    """Return what belongs into the head of a page outside the WebUI: the style sheet and the
    scripts, inline, in the WebUI's order.
    """
    scripts = "\n".join(
        f"<script>\n{file.read_text(encoding='utf-8')}\n</script>"
        for file in sorted(Path(javascript).glob("*.js"))
    )
    return f"<style>\n{_UNCLIPPED}\n{Path(style).read_text(encoding='utf-8')}\n</style>\n{scripts}"


def _html(value: str, *, elem_id: str) -> gr.HTML:
    return gr.HTML(value, elem_id=elem_id)
