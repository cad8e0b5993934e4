"""Formulas against independent computations."""

import numpy as np
import pytest
import torch

from lora_trainer.training import diffusion

ALPHAS = torch.linspace(0.999, 0.01, 1000)


@pytest.fixture
def tensors():
    rng = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, 4, 2, 2, generator=rng),
        torch.randn(3, 4, 2, 2, generator=rng),
        torch.tensor([0, 400, 999]),
    )


def test_add_noise_matches_numpy(tensors):
    latents, noise, timesteps = tensors
    a = ALPHAS.numpy()[timesteps.numpy()].reshape(3, 1, 1, 1).astype(np.float64)
    expected = np.sqrt(a) * latents.numpy() + np.sqrt(1 - a) * noise.numpy()
    assert np.allclose(
        diffusion.add_noise(latents, noise, timesteps, ALPHAS).numpy(), expected, atol=1e-6
    )


def test_epsilon_and_v_describe_the_same_picture(tensors):
    """x_0 = sqrt(ā) x_t - sqrt(1 - ā) v must give the latents back (arXiv 2202.00512)."""
    latents, noise, timesteps = tensors
    a = ALPHAS[timesteps].view(3, 1, 1, 1)
    v = diffusion.target(latents, noise, timesteps, ALPHAS, "v_prediction")
    noisy = diffusion.add_noise(latents, noise, timesteps, ALPHAS)
    assert torch.allclose(a.sqrt() * noisy - (1 - a).sqrt() * v, latents, atol=1e-5)
    assert torch.equal(diffusion.target(latents, noise, timesteps, ALPHAS, "epsilon"), noise)


def test_unknown_prediction_type_is_named(tensors):
    with pytest.raises(ValueError, match="'sample'; expected 'epsilon' or 'v_prediction'"):
        diffusion.target(*tensors, ALPHAS, "sample")


def test_distance_is_computed_in_fp32():
    predicted = torch.full((2, 4), 300.0, dtype=torch.float16)
    assert (
        diffusion.distance(predicted, torch.zeros(2, 4), "l2").max().item() == 90000
    )  # overflows fp16
