"""The standalone host: loads what the file says, lends it, draws with LoRAs, and leaves no trace.
What the families do: test_families.py.
"""

import importlib.util
import socket
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.base.errors import Refused

pytest.importorskip("diffusers")
if not importlib.util.find_spec("open_clip"):
    pytest.skip("CLIP's vocabulary comes with open_clip", allow_module_level=True)

from lora_trainer.base.contracts import ModelOptions  # noqa: E402
from lora_trainer.hosts.standalone.host import StandaloneHost  # noqa: E402
from lora_trainer.hosts.standalone.loading import modules_of  # noqa: E402
from lora_trainer.lora.adapters import Adapters  # noqa: E402
from lora_trainer.lora.target_layers import (  # noqa: E402
    LayerSettings,
    assign_ranks,
    find_target_layers,
)
from lora_trainer.lora.weight_names import unet_to_ldm  # noqa: E402

DRAWING = dict(steps=3, width=64, height=64)


@pytest.fixture(scope="module")
def checkpoint(checkpoints):
    return checkpoints("sd1")


@pytest.fixture(scope="module")
def host(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    return StandaloneHost(checkpoint, folder / "loras", folder / "data", device="cpu")


@pytest.fixture(scope="module")
def unet(host):
    return host._load().unet


def random_lora(unet, path, *, seed=0, rank=2):
    """Write a kohya file for every attention and feed-forward layer; returns the change it means
    for each weight.
    """
    generator = torch.Generator().manual_seed(seed)
    state, changes = {}, {}
    for name, module in unet.named_modules():
        if ".attentions." in name and isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            outputs, inputs = module.weight.shape[:2]
            down, up = (
                torch.randn(shape, generator=generator) * 0.3
                for shape in ((rank, inputs), (outputs, rank))
            )
            changes[name] = (up @ down).reshape(module.weight.shape) / 2
            kernel = (1, 1) if isinstance(module, torch.nn.Conv2d) else ()
            key = "lora_unet_" + name.replace(".", "_")
            state |= {
                f"{key}.lora_down.weight": down.reshape(*down.shape, *kernel),
                f"{key}.lora_up.weight": up.reshape(*up.shape, *kernel),
                f"{key}.alpha": torch.tensor(rank / 2),
            }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, str(path))
    return changes


def fingerprint(host):
    """Everything of the base that must never change: weights, module objects, flags, leftovers."""
    parts = modules_of(host._load())
    modules = [
        (name, id(module), type(module), module.training, len(module._forward_pre_hooks))
        for part in parts
        for name, module in part.named_modules()
    ]
    weights = [
        (name, id(tensor), tensor.requires_grad, tensor.detach().numpy().tobytes())
        for part in parts
        for name, tensor in part.named_parameters()
    ]
    return modules, weights, sorted(set(vars(parts[0])) - {"_hf_peft_config_loaded"})


def test_status_loads_nothing(checkpoint, tmp_path):
    host = StandaloneHost(checkpoint, tmp_path, tmp_path, device="cpu")
    status = host.model_status()
    assert (status.trainable, status.family, status.prediction_type, status.checkpoint) == (
        True,
        "sd1",
        "epsilon",
        "sd1",
    )
    assert (status.device, status.dtype, host.default_size_px) == ("cpu", "float32", 64)
    assert host._pipeline is None


def test_a_missing_checkpoint_is_a_reason(tmp_path):
    host = StandaloneHost(tmp_path / "none.safetensors", tmp_path, tmp_path, device="cpu")
    assert (
        not host.model_status().trainable and "There is no checkpoint" in host.model_status().reason
    )
    with pytest.raises(Refused, match="There is no checkpoint"), host.borrow_model():
        pass


def test_nothing_is_fetched(checkpoint, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with StandaloneHost(checkpoint, tmp_path, tmp_path, device="cpu").borrow_model() as model:
        assert model.unet is not None


def test_incomplete_checkpoint_is_refused(checkpoint, tmp_path):
    state = load_file(str(checkpoint))
    save_file(
        {key: value for key, value in state.items() if "output_blocks.5." not in key},
        str(tmp_path / "cut.safetensors"),
    )
    with (
        pytest.raises(Refused, match="cut.safetensors cannot be loaded"),
        StandaloneHost(tmp_path / "cut.safetensors", tmp_path, tmp_path).borrow_model(),
    ):
        pass


def test_lending_gives_back_every_flag(host):
    pipeline = host._load()
    pipeline.unet.mid_block.train()
    pipeline.unet.conv_in.weight.requires_grad_(False)
    before = fingerprint(host)
    try:
        with pytest.raises(ZeroDivisionError), host.borrow_model() as model:
            assert not any(parameter.requires_grad for parameter in model.unet.parameters())
            assert not any(module.training for module in model.unet.modules())
            raise ZeroDivisionError
        assert fingerprint(host) == before
    finally:
        pipeline.unet.requires_grad_(True).eval()


def test_a_second_run_is_refused(host):
    said = []

    def meanwhile():
        with pytest.raises(Refused) as caught:
            host.borrow_model().__enter__()
        said.append(caught.value)

    with host.borrow_model():
        other = threading.Thread(target=meanwhile)
        other.start()
        other.join(timeout=60)
        with pytest.raises(Refused, match="already training"), host.borrow_model():
            pass
        host.generate("a preview by the training thread itself", **DRAWING)
    assert [refusal.code for refusal in said] == ["busy"]
    with host.borrow_model():
        pass


def test_what_can_be_trained_is_the_same_while_a_run_has_its_adapters_on_it(host):
    """The plan of another run counts the layers of the model, not those on top of it."""

    def targets():
        return [path for path, _ in find_target_layers(host.loaded_parts(), "attention")]

    before = targets()
    with host.borrow_model() as model:
        parts = model.parts()
        adapters = Adapters.create(parts, assign_ranks(parts, LayerSettings("attention", 2, 2.0)))
        with adapters.attached():
            assert targets() == before
    assert targets() == before and len(before) > 10


def test_a_picture_is_drawn_when_the_borrower_gives_way(host):
    """It waits until then, and is the one that is drawn without a run."""
    expected, drawn = host.generate("a circle", **DRAWING), []
    with host.borrow_model() as model:
        other = threading.Thread(target=lambda: drawn.append(host.generate("a circle", **DRAWING)))
        other.start()
        deadline = time.monotonic() + 30
        while not host.others_are_waiting() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert host.others_are_waiting() and not drawn
        assert host.give_way() and len(drawn) == 1 and not host.others_are_waiting()
        assert not any(parameter.requires_grad for parameter in model.unet.parameters())
    assert np.array_equal(drawn[0], expected)


def test_an_offered_lora_is_written_before_a_picture_that_names_it(host):
    written = []
    with host.offer_live_lora("alive", lambda: written.append(1)):
        host.generate("a circle", **DRAWING)
        assert not written
        with pytest.raises(Refused, match="There is no LoRA named 'alive'"):
            host.generate("a circle <lora:alive:1>", **DRAWING)
    assert written == [1]


def test_giving_way_ends_when_told_to_stop(host):
    with host.borrow_model():
        assert not host.give_way(until=lambda: False, should_stop=lambda: True)
    with host.borrow_model() as model:
        model.offload_encoders()
        assert host.give_way()


def test_what_a_run_reads_otherwise_is_read_so_until_it_ends(host):
    plain = host.generate("a", **DRAWING)
    with host.borrow_model() as model:
        model.configure(ModelOptions(prediction_type="v_prediction", zero_terminal_snr=True))
        meanwhile = host.generate("a", **DRAWING)
    assert not np.array_equal(meanwhile, plain) and np.array_equal(
        host.generate("a", **DRAWING), plain
    )


def test_peeking_loads_nothing(checkpoint, tmp_path, host):
    assert StandaloneHost(checkpoint, tmp_path, tmp_path, device="cpu").loaded_parts() is None
    host._load()
    with host.borrow_model() as model:
        assert [name for name, _ in host.loaded_parts().named_modules()] == [
            name for name, _ in model.parts().named_modules()
        ]


def test_pictures_follow_seed_and_prompt(host):
    one, two, other = host.draw(["a", "a", "a"], seeds=[1, 1, 2], **DRAWING)
    assert one.size == (64, 64) and np.array_equal(one, two) and not np.array_equal(one, other)
    assert (
        np.abs(
            np.asarray(host.generate("a", seed=1, **DRAWING), float) - np.asarray(one, float)
        ).max()
        <= 1
    )


def test_pictures_do_not_depend_on_the_batch(host, monkeypatch):
    whole = host.draw(["a", "b", "c"], seeds=[1, 2, 3], **DRAWING)
    monkeypatch.setattr("lora_trainer.hosts.standalone.host.PIXELS_AT_ONCE", 2 * 64 * 64)
    for left, right in zip(whole, host.draw(["a", "b", "c"], seeds=[1, 2, 3], **DRAWING)):
        assert np.abs(np.asarray(left, float) - np.asarray(right, float)).max() <= 1


def test_a_lora_draws_like_the_merged_checkpoint(host, unet, checkpoint, tmp_path):
    changes = random_lora(unet, host.lora_dir / "mine.safetensors")
    state = {key: value.float() for key, value in load_file(str(checkpoint)).items()}
    for path, change in changes.items():
        state[f"model.diffusion_model.{unet_to_ldm(path)}.weight"] += 0.5 * change
    save_file(state, str(tmp_path / "merged.safetensors"))
    other = StandaloneHost(tmp_path / "merged.safetensors", tmp_path, tmp_path, device="cpu")
    before, plain = fingerprint(host), host.generate("a", **DRAWING)
    drawn = np.asarray(host.generate("a <lora:mine:0.5>", **DRAWING), float)
    assert np.abs(drawn - np.asarray(other.generate("a", **DRAWING), float)).max() <= 2
    assert np.abs(drawn - np.asarray(plain, float)).max() > 20
    assert np.array_equal(host.generate("a <lora:mine:0>", **DRAWING), plain)
    assert fingerprint(host) == before and np.array_equal(host.generate("a", **DRAWING), plain)


def test_replaced_lora_is_replaced(host, unet, tmp_path):
    path = tmp_path / "elsewhere" / "mine2.safetensors"
    random_lora(unet, path, seed=1)
    with pytest.raises(Refused, match="no LoRA named 'mine2'"):
        host.generate("a <lora:mine2>", **DRAWING)
    host.register(path)
    first = host.generate("a <lora:mine2>", **DRAWING)
    random_lora(unet, path, seed=2)
    host.register(path)
    assert not np.array_equal(first, host.generate("a <lora:mine2>", **DRAWING))


def test_two_loras_add_up(host, unet):
    for number in (3, 4):
        random_lora(unet, host.lora_dir / "nested" / f"n{number}.safetensors", seed=number)
    one, both = (
        np.asarray(host.generate(prompt, **DRAWING))
        for prompt in ("a <lora:n3:1>", "a <lora:n3:1> <lora:n4:1>")
    )
    assert not np.array_equal(one, both)


def test_bad_loras_are_refused_and_leave_no_trace(host, unet):
    before = fingerprint(host)
    host.lora_dir.mkdir(parents=True, exist_ok=True)
    (host.lora_dir / "garbage.safetensors").write_bytes(b"nothing")
    wide = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {
            f"{wide}.lora_down.weight": torch.ones(2, 320),
            f"{wide}.lora_up.weight": torch.ones(320, 2),
            f"{wide}.alpha": torch.tensor(2.0),
        },
        str(host.lora_dir / "wide.safetensors"),
    )
    for name in ("garbage", "wide"):
        with pytest.raises(
            Refused, match=f"{name}.safetensors cannot be used with this checkpoint"
        ):
            host.generate(f"a <lora:{name}:1>", **DRAWING)
    assert fingerprint(host) == before


@pytest.mark.parametrize(
    ("setting", "value"), [("width", 65), ("height", 8), ("steps", 0), ("guidance", float("nan"))]
)
def test_impossible_pictures_are_refused(host, setting, value):
    with pytest.raises(Refused, match=setting.capitalize()) as caught:
        host.generate("a", **{**DRAWING, setting: value})
    assert caught.value.field == setting
