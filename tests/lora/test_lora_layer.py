"""LoRA layers: dropouts per picture and layer, and kohya's limit of norms."""

import torch

from lora_trainer.lora.adapter_layers import AdapterSpec, RankAlpha
from lora_trainer.lora.adapters import Adapters
from tests.support.adapted_models import BLOCK, scramble


def test_rank_dropout_is_per_picture_and_keeps_the_mean(parts):
    """Each picture's change is the one of a LoRA with some ranks gone and the rest scaled up by 1 /
    (1 - rate).
    """
    path = f"{BLOCK}.attn1.to_q"
    adapters = scramble(
        Adapters.create(parts, {path: RankAlpha(2, 2)}, AdapterSpec(rank_dropout=0.25))
    )
    down, up = (weight.double() for weight in adapters.weights()[path].values())
    x = torch.randn(64, 3, 16)
    base = parts.get_submodule(path)(x)
    with adapters.attached(), torch.no_grad():
        change = (parts.get_submodule(path)(x) - base).double()
    possible = torch.stack(
        [
            torch.einsum(
                "bti,ri,or,r->bto", x.double(), down, up, torch.tensor([a, b]).double() / 0.75
            )
            for a in (0, 1)
            for b in (0, 1)
        ]
    )
    distance = (possible - change).abs().amax((2, 3))  # (4 choices of ranks, 64 pictures)
    assert distance.min(0).values.max() < 1e-5 and len(set(distance.argmin(0).tolist())) == 4


def test_module_dropout_leaves_whole_layers_out(parts):
    path = f"{BLOCK}.attn1.to_q"
    for kind in ("lora", "loha", "lokr"):
        adapters = scramble(
            Adapters.create(parts, {path: RankAlpha(2, 2)}, AdapterSpec(kind, module_dropout=0.5))
        )
        x = torch.randn(2, 3, 16)
        base = parts.get_submodule(path)(x)
        with adapters.attached(), torch.no_grad():
            drawn = [parts.get_submodule(path)(x) for _ in range(40)]
            with adapters.without_dropout():
                full = parts.get_submodule(path)(x)
        out = sum(torch.equal(y, base) for y in drawn)
        assert (
            8 <= out <= 32
            and sum(torch.equal(y, full) for y in drawn) == 40 - out
            and not torch.equal(base, full)
        )


def test_kohyas_norm_limit(parts):
    """Its `scale_weight_norms`: both factors are scaled by the square root of limit / |alpha / rank
    * up @ down|.
    """
    path = f"{BLOCK}.attn1.to_q"
    adapters = scramble(Adapters.create(parts, {path: RankAlpha(4, 2)}), 1.0)
    down, up = adapters.weights()[path].values()
    ratio = (0.5 / torch.linalg.matrix_norm((up @ down).double() * 2 / 4)) ** 0.5
    assert adapters.limit_norms(0.5) == 1
    for now, then in zip(adapters.weights()[path].values(), (down, up)):
        assert torch.allclose(now.double(), then.double() * ratio, rtol=1e-5)
