"""Entry of the WebUI: joins its host, the page and the API. The WebUI runs this file at its start
and at every "Reload UI".
"""

import html
import logging

import gradio as gr
from modules import script_callbacks, scripts

from lora_trainer import requirements

TITLE, TAB = "Train LoRA", "train_lora"

try:  # now: afterwards the extension's folder is no longer in sys.path
    from lora_trainer.hosts.webui import guard
    from lora_trainer.hosts.webui.service import training_service
    from lora_trainer.web import api, tab

    service = training_service()
    problem = None
except Exception as error:  # the WebUI goes on without us, and the tab says why
    logging.getLogger(__name__).exception("Train LoRA cannot start")
    service = None
    problem = error


def explanation() -> str:
    """Say in HTML what keeps the extension from starting and how to mend it."""
    sentence, command = requirements.explain(problem)
    shown_command = f"<pre>{html.escape(command)}</pre>" if command else ""
    return f"<p>{html.escape(sentence)}</p>{shown_command}"


class TrainLoRALive(scripts.Script):
    """Has no controls: before each picture, a LoRA that is being trained with the setting *live* is
    brought up to date if the prompt names it.
    """

    def title(self):
        return TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        if service:
            service.host.prepare_picture(
                [*p.all_prompts, *(getattr(p, "all_hr_prompts", None) or [])]
            )


def on_ui_tabs():
    if service:
        return [(tab.create_tab(), TITLE, TAB)]
    with gr.Blocks(analytics_enabled=False) as page:
        gr.HTML(explanation())
    return [(page, TITLE, TAB)]


def on_ui_train_tabs(params):
    with gr.Tab(label="LoRA", id="train_lora_link"):
        if service:
            tab.create_link()
        else:
            gr.HTML(explanation())


def on_app_started(demo, app):
    if service:
        api.mount(app, service, guard=guard.make_guard(app))


script_callbacks.on_ui_tabs(on_ui_tabs)
script_callbacks.on_ui_train_tabs(on_ui_train_tabs)
script_callbacks.on_app_started(on_app_started)
