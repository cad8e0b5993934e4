"""Invariant 4 without a WebUI: the trainer's adapters and diffusers' own loader predict the same from one file, every key matched."""
import pytest
import torch

pytest.importorskip("diffusers", reason="the standalone host needs diffusers")

from safetensors.torch import load_file  # noqa: E402

from lora_trainer.core import export  # noqa: E402
from lora_trainer.core.adapters import Adapters, plan_shapes  # noqa: E402
from lora_trainer.core.contracts import Conditioning  # noqa: E402
from lora_trainer.demo.checkpoint import write_checkpoint  # noqa: E402
from lora_trainer.hosts.standalone import StandaloneHost  # noqa: E402


@pytest.mark.parametrize("targets", ["attention", "attention+feed-forward", "all"])
def test_diffusers_predicts_what_the_trainer_does(tmp_path, targets):
    host = StandaloneHost(write_checkpoint(tmp_path / "checkpoint"), tmp_path, tmp_path / "data", device="cpu")
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 16, 16, generator=draws), torch.tensor([20, 700]), Conditioning(torch.randn(2, 77, 64, generator=draws))
    with host.borrow_model() as model, torch.no_grad():
        adapters = Adapters.create(model.unet, plan_shapes(model.unet, targets=targets, rank=4, alpha=2))
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.15)
        plain = model.predict(*inputs)
        with adapters.attached():
            ours = model.predict(*inputs)
        path = tmp_path / "x.safetensors"
        export.save(path, export.to_tensors(adapters.weights(), alphas=dict.fromkeys(adapters.shapes, 2), export_name=model.export_name, dtype=torch.float32), {})
    host._pipeline.load_lora_weights(load_file(path), adapter_name="x")
    loaded = [name for name, _ in host._pipeline.unet.named_modules() if name.endswith("lora_A.x")]
    with torch.no_grad():
        theirs = host._pipeline.unet(inputs[0], inputs[1], inputs[2].hidden_states).sample
    assert len(loaded) == len(adapters.weights())
    assert (ours - theirs).norm() < 1e-4 * ours.norm() and (ours - plain).norm() > 1e-2 * plain.norm()
