"""Captioning in a running WebUI: its own captioners are offered, pictures are drawn meanwhile, and
nothing of the model is changed.
"""

import io
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest
from PIL import Image

from lora_trainer.demo import world

API, PROMPT = "/train-lora/v1", "a red circle on a white background"
# Random weights of the WebUI's own class, saved as the real ones are. Run by its interpreter, in
# its folder.
MAKE_DEEPBOORU = """
import sys, types
sys.modules["modules.devices"] = types.SimpleNamespace()
import modules; modules.devices = sys.modules["modules.devices"]
import torch
from modules.deepbooru_model import DeepDanbooruModel
torch.manual_seed(0)
model = DeepDanbooruModel()
tags = ["rating:safe", *(f"tag_{number}" for number in range(1, 9176))]
torch.save({**{key: tensor.half() for key, tensor in model.state_dict().items()}, "tags": tags}, sys.argv[1])
"""  # noqa: E501


@pytest.fixture(scope="module")
def shapes(webui):
    """A data set of ten held-out pictures."""
    rng = np.random.RandomState(5)
    scenes = [world.random_scene(rng, held_out=True) for _ in range(10)]
    files = {}
    for number, scene in enumerate(scenes):
        buffer = io.BytesIO()
        Image.fromarray(world.paint(scene, rng)).resize((256, 256)).save(buffer, "PNG")
        files[f"{number}.png"] = buffer.getvalue()
    webui.post(f"{API}/datasets", {"name": "shapes"})
    webui.upload(f"{API}/datasets/shapes/images", files)
    return scenes


def caption(webui, captioner, **body):
    return webui.post(f"{API}/datasets/shapes/autocaption", {"captioner": captioner, **body})["id"]


def test_the_webuis_own_captioners_are_offered_and_say_what_they_need(webui):
    found = {each["name"]: each for each in webui.get(f"{API}/captioners")}
    assert list(found) == ["clip-labels", "coca", "wd-tagger", "blip", "deepbooru", "fixed"]
    assert (
        not found["blip"]["ready"]
        and not found["deepbooru"]["ready"]
        and "644 MB" in found["deepbooru"]["needs"]
    )


def test_labels_are_right_and_a_picture_drawn_before_and_after_is_the_same(webui, shapes):
    before = webui.draw(PROMPT)
    job = webui.wait(caption(webui, "clip-labels", options={"model": "demo"}))
    assert (job["state"], job["written"], job["failed"]) == ("finished", 10, []), job
    captions = [
        each["caption"].split(", ") for each in webui.get(f"{API}/datasets/shapes")["pictures"]
    ]
    assert (
        sum(
            scene.shape in found and scene.colour in found for scene, found in zip(shapes, captions)
        )
        >= 9
    )
    assert webui.draw(PROMPT) == before


@pytest.fixture
def deepbooru(webui):
    """Random weights where the WebUI looks for the real ones."""
    from tests.webui.conftest import _python, _root

    folder = webui.folder / "models" / "torch_deepdanbooru"
    folder.mkdir(parents=True)
    subprocess.run(
        [_python(_root()), "-c", MAKE_DEEPBOORU, folder / "model-resnet_custom_v3.pt"],
        cwd=_root(),
        check=True,
        capture_output=True,
        timeout=120,
    )
    yield
    shutil.rmtree(folder)


def test_deepbooru_runs_on_the_webuis_own_path_and_lets_others_draw(webui, shapes, deepbooru):
    """Three batches of some seconds; whoever asks for a picture meanwhile does not wait for all of
    them.
    """
    assert next(each for each in webui.get(f"{API}/captioners") if each["name"] == "deepbooru")[
        "ready"
    ]
    before, drawn = webui.draw(PROMPT), []
    job_id = caption(
        webui,
        "deepbooru",
        overwrite=True,
        options={"threshold": 0.5, "batch_size": 1},
        filenames=["0.png", "1.png", "2.png"],
    )
    while webui.get(f"{API}/jobs/{job_id}")["done"] < 1:
        time.sleep(0.05)

    def draw():
        drawn.append((webui.draw(PROMPT), webui.get(f"{API}/jobs/{job_id}")["state"]))

    drawing = threading.Thread(target=draw)
    drawing.start()
    job = webui.wait(job_id)
    drawing.join(60)
    assert (job["state"], job["written"]) == ("finished", 3), job
    assert drawn == [(before, "captioning")]
    captions = [each["caption"] for each in webui.get(f"{API}/datasets/shapes")["pictures"]]
    assert all("tag " in each and "rating" not in each and "_" not in each for each in captions[:3])
