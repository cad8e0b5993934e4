"""The WebUI's own captioners against stand-ins of its modules: whose device, and whose turn."""

import contextlib
import importlib
import sys
import types

import pytest
import torch
from PIL import Image

NAME = "lora_trainer.hosts.webui.captioners"


class Model(torch.nn.Module):
    """Says where its pixels were, as DeepBooru and as BLIP, and fails as torch does where that is
    another device than its own.
    """

    tags = ["a", "rating:b"]

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def forward(self, pixels):
        assert pixels.device == self.weight.device and pixels.dtype == self.weight.dtype
        self.seen.append(pixels.device.type)
        return torch.ones(len(pixels), 2)

    def generate(self, pixels, **_):
        self(pixels)
        return ["a cat"] * len(pixels)


@pytest.fixture
def webui(monkeypatch, tmp_path):
    """The parts of the WebUI that are used; `device` is the GPU's stand-in, `taken` tells whether
    we have the turn.
    """
    cpu, device, webui = (
        torch.device("cpu"),
        torch.device("meta"),
        types.SimpleNamespace(taken=False),
    )
    webui.deepbooru = types.SimpleNamespace(model=types.SimpleNamespace(model=None))
    webui.deepbooru.model.load = lambda: setattr(
        webui.deepbooru.model, "model", webui.deepbooru.model.model or Model()
    )
    webui.interrogator = types.SimpleNamespace(
        blip_model=None, running_on_cpu=True, load_blip_model=Model
    )
    webui.devices = types.SimpleNamespace(
        device=device,
        device_interrogate=device,
        cpu=cpu,
        dtype=torch.float32,
        autocast=contextlib.nullcontext,
        torch_gc=lambda: None,
    )
    options = types.SimpleNamespace(
        interrogate_deepbooru_score_threshold=0.5,
        interrogate_clip_num_beams=1,
        interrogate_clip_min_length=1,
        interrogate_clip_max_length=9,
    )
    shared = types.SimpleNamespace(
        opts=options, interrogator=webui.interrogator, cmd_opts=types.SimpleNamespace(no_half=True)
    )
    resize = types.SimpleNamespace(
        resize_image=lambda mode, picture, width, height: picture.resize((width, height))
    )
    parts = {
        "deepbooru": webui.deepbooru,
        "devices": webui.devices,
        "images": resize,
        "interrogate": types.SimpleNamespace(blip_image_eval_size=8),
        "paths": types.SimpleNamespace(models_path=str(tmp_path)),
        "shared": shared,
    }
    monkeypatch.setitem(sys.modules, "modules", types.SimpleNamespace(**parts))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    for path in ("torch_deepdanbooru/a.pt", "BLIP/a.pth"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).touch()

    @contextlib.contextmanager
    def turn():
        assert not webui.taken
        webui.taken = True
        try:
            yield
        finally:
            webui.taken = False

    webui.captioners = {
        captioner.name: captioner
        for captioner in importlib.import_module(NAME).webui_captioners(turn)
    }
    yield webui
    sys.modules.pop(NAME, None)


def holder(webui, name):
    return (
        (webui.deepbooru.model, "model")
        if name == "deepbooru"
        else (webui.interrogator, "blip_model")
    )


def load(webui, name):
    captioner = webui.captioners[name]
    return captioner.load(
        {option.name: option.default for option in captioner.options()},
        on_progress=lambda *_: None,
        should_stop=lambda: False,
    )


@pytest.mark.parametrize("name", ["deepbooru", "blip"])
def test_a_button_of_the_webui_that_moves_the_model_does_not_fail_the_batch(webui, name):
    """Its Interrogate buttons take no turn: they send the model to the CPU while we believe it to
    be on the GPU.
    """
    loaded = load(webui, name)
    model = getattr(*holder(webui, name))
    loaded.to(torch.device("cpu"))
    moved = {"meta": 0}
    model.to = lambda device: (
        moved.update(meta=moved["meta"] + (torch.device(device).type == "meta")) or model
    )
    loaded.to(
        torch.device("cuda")
    )  # the stand-in stays on the CPU, as if it were sent there at once
    assert (
        loaded.caption([Image.new("RGB", (9, 9))] * 2, [])
        == [["a"] if name == "deepbooru" else ["a cat"]] * 2
    )
    assert model.seen == ["cpu"] and moved["meta"] == 2  # and it is called back before a batch


@pytest.mark.parametrize("name", ["deepbooru", "blip"])
@pytest.mark.parametrize("had_it", [True, False])
def test_what_is_shared_is_given_back_in_the_hosts_turn(webui, monkeypatch, name, had_it):
    owner, attribute = holder(webui, name)
    before = Model() if had_it else None
    setattr(owner, attribute, before)
    loaded = load(webui, name)
    turns = []
    monkeypatch.setattr(
        webui.devices, "torch_gc", lambda: turns.append((webui.taken, getattr(owner, attribute)))
    )
    loaded.close()
    assert turns == [(True, before)] and getattr(owner, attribute) is before
