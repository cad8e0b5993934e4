"""Schedule-Free does what its paper says."""

import numpy as np
import pytest
import torch

from lora_trainer.training import schedule_free
from tests.support.optimizers import fall, make, needs


def test_schedule_free_is_the_papers():
    """Against arXiv 2405.15682, equations 1 to 3 with Adam's scaling, kept as z and x; y is where
    gradients are taken.
    """
    needs("schedulefree")
    optimizer = make("schedulefree")
    group, rng, beta = optimizer.param_groups[0], np.random.default_rng(0), 0.9
    z, v = np.linspace(-1, 1, 8), np.zeros(8)
    x = z.copy()
    for step in range(1, 8):
        grad = rng.normal(size=8)
        group["params"][0].grad = torch.tensor(grad, dtype=torch.float32).reshape(2, 4)
        optimizer.step()
        v = 0.999 * v + 0.001 * grad**2
        z = z - 1e-2 * grad / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        x = (1 - 1 / step) * x + z / step
        assert group["params"][0].detach().flatten().numpy() == pytest.approx(
            (1 - beta) * z + beta * x, abs=2e-6
        )
    assert schedule_free.averaged_weights(
        optimizer, group, group["params"][0]
    ).flatten().numpy() == pytest.approx(x, abs=2e-6)


def test_schedule_frees_average_is_the_packages_own():
    needs("schedulefree")
    optimizer = make("schedulefree", arguments="betas=0.95,0.99")
    fall(optimizer, 5)
    group = optimizer.param_groups[0]
    mine, training = (
        schedule_free.averaged_weights(optimizer, group, group["params"][0]).clone(),
        group["params"][0].detach().clone(),
    )
    assert torch.equal(group["params"][0], training) and group["train_mode"]
    optimizer.eval()
    assert torch.equal(group["params"][0], mine) and not torch.equal(mine, training)
