"""Invariant 4 without a WebUI, for every family: the trainer's adapters and diffusers' own loader
do the same with one file, every key matched.
"""

import pytest
import torch

pytest.importorskip("diffusers", reason="the standalone host needs diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

from lora_trainer.base.contracts import Size  # noqa: E402
from lora_trainer.base.errors import Refused  # noqa: E402
from lora_trainer.hosts.standalone.loading import modules_of, quiet_diffusers  # noqa: E402
from lora_trainer.lora import save  # noqa: E402
from lora_trainer.lora.adapter_layers import AdapterSpec
from lora_trainer.lora.adapters import Adapters
from lora_trainer.lora.target_layers import LayerSettings, assign_ranks
from tests.support.narrow_checkpoint import FAMILIES  # noqa: E402

TRAINABLE = [name for name in FAMILIES if name != "sdxl-refiner"]
CAPTIONS = ["a red circle", ""]


def inputs(seed: int = 0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 8, 8, generator=draws), torch.tensor([20, 700])


def encoded(model):
    return model.encode_captions(CAPTIONS).of_sizes(
        [Size(96, 64, 0, 8, 64, 64), Size(64, 64, 0, 0, 64, 64)]
    )


def random_adapters(model, targets: str, form: AdapterSpec = AdapterSpec()) -> Adapters:
    shapes = assign_ranks(
        model.parts(), LayerSettings(targets=targets, rank=4, alpha=2.0, text_encoder=True)
    )
    adapters, draws = Adapters.create(model.parts(), shapes, form), torch.Generator().manual_seed(0)
    for parameter in adapters.parameters():
        parameter.copy_(
            torch.randn(parameter.shape, generator=draws) * parameter[0].numel() ** -0.5
        )
    return adapters


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / ours.norm()).item()


@pytest.mark.parametrize(
    ("name", "targets"),
    [(name, "all") for name in TRAINABLE]
    + [("sd1", "attention"), ("sd1", "attention+feed-forward")],
)
@torch.no_grad()
def test_diffusers_predicts_and_reads_what_the_trainer_does(hosts, tmp_path, name, targets):
    host, path = hosts(name), tmp_path / "x.safetensors"
    with host.borrow_model() as model:
        adapters, plain = random_adapters(model, targets), encoded(model)
        unchanged = model.predict(*inputs(), plain)
        with adapters.attached():
            read, predicted = encoded(model), model.predict(*inputs(), plain)
        save.save(
            path,
            save.to_tensors(
                adapters.weights(),
                alphas=adapters.alphas,
                export_name=model.export_name,
                dtype=torch.float32,
            ),
            {},
        )
        assert torch.equal(model.predict(*inputs(), plain), unchanged)
        before = [
            weight.clone()
            for module in modules_of(host._pipeline)
            for weight in module.parameters()
        ]
        with quiet_diffusers():
            host._pipeline.load_lora_weights(load_file(path), adapter_name="x")
        try:
            loaded = [
                layer
                for module in modules_of(host._pipeline)
                for layer, _ in module.named_modules()
                if layer.endswith("lora_A.x")
            ]
            their_reading, their_prediction = encoded(model), model.predict(*inputs(), plain)
        finally:
            host._pipeline.unload_lora_weights()
    assert len(loaded) == len(adapters.rank_alphas)
    assert apart(predicted, their_prediction) < 1e-4 and apart(unchanged, predicted) > 1e-2
    assert (
        apart(read.hidden_states, their_reading.hidden_states) < 1e-4
        and apart(plain.hidden_states, read.hidden_states) > 1e-2
    )
    if read.pooled is not None:
        assert (
            apart(read.pooled, their_reading.pooled) < 1e-4
            and apart(plain.pooled, read.pooled) > 1e-2
        )
    assert all(
        torch.equal(old, new)
        for old, new in zip(
            before,
            (weight for module in modules_of(host._pipeline) for weight in module.parameters()),
        )
    )


def test_true_sdxl_has_kohyas_722_unet_layers(hosts):
    """As many as kohya's own files for SDXL have, by names that begin as theirs; and 264 of the
    text encoders there, by their depth here.
    """
    with hosts("sdxl").borrow_model() as model:
        names = [
            model.export_name(path)
            for path in assign_ranks(
                model.parts(), LayerSettings("attention+feed-forward", 4, 4.0, text_encoder=True)
            )
        ]
    unet = [name for name in names if name.startswith("lora_unet_")]
    assert (
        len(unet) == 722
        and "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_out_0" in unet
        and "lora_unet_output_blocks_5_1_proj_out" in unet
    )
    assert sum(name.startswith("lora_te1_text_model_encoder_layers_") for name in names) == 6 * 2
    assert sum(name.startswith("lora_te2_text_model_encoder_layers_") for name in names) == 6 * 10
    assert len(set(names)) == len(names) == 722 + 72


@torch.no_grad()
def test_a_dora_is_not_drawn_wrongly(hosts, tmp_path):
    """diffusers takes a DoRA's magnitudes for those of the outputs, and where a layer is square it
    says nothing of it.
    """
    host = hosts("sd1")
    with host.borrow_model() as model:
        adapters = random_adapters(model, "attention", AdapterSpec(use_dora=True))
        tensors = save.to_tensors(
            adapters.weights(),
            alphas=adapters.alphas,
            export_name=model.export_name,
            dtype=torch.float32,
        )
    host.lora_dir.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(host.lora_dir / "dora.safetensors"))
    with pytest.raises(
        Refused, match="dora.safetensors is a DoRA, which diffusers cannot draw with"
    ):
        host.generate("a <lora:dora:1>", steps=1, width=64, height=64)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
@torch.no_grad()
def test_what_diffusers_cannot_read_is_said(hosts, tmp_path, kind):
    """diffusers knows neither LoHa nor LoKr."""
    host = hosts("sd1")
    with host.borrow_model() as model:
        adapters = random_adapters(model, "attention", AdapterSpec(kind))
        tensors = save.to_tensors(
            adapters.weights(),
            alphas=adapters.alphas,
            export_name=model.export_name,
            dtype=torch.float32,
        )
    host.lora_dir.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(host.lora_dir / f"{kind}.safetensors"))
    with pytest.raises(
        Refused, match=f"{kind}.safetensors is a Lo(Ha|Kr), which diffusers cannot draw with"
    ):
        host.generate(f"a <lora:{kind}:1>", steps=1, width=64, height=64)
    with (
        pytest.raises(Exception),  # noqa: B017
        quiet_diffusers(),
    ):  # without our sentence: whatever diffusers says
        host._pipeline.load_lora_weights(tensors, adapter_name="x")
