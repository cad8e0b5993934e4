"""Each option of loss and noise against an independent computation: numpy, one picture at a time,
from the papers' equations.
"""

import math

import numpy as np
import pytest
import torch

from lora_trainer.training import diffusion
from lora_trainer.training.objective import Objective

ALPHAS = torch.cumprod(
    1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0
).float()
TIMESTEPS = torch.tensor([3, 250, 700, 999])
SHAPE = torch.Size((4, 4, 8, 6))


def pair():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(SHAPE, generator=rng), torch.randn(SHAPE, generator=rng)


def losses(prediction_type="epsilon", masks=None, **settings):
    objective = Objective(**settings)
    found = objective.losses(*pair(), borders=objective.borders(TIMESTEPS, ALPHAS), masks=masks)
    return (found * objective.weights(TIMESTEPS, ALPHAS, prediction_type)).numpy()


def squares():
    predicted, wanted = (tensor.double().numpy() for tensor in pair())
    return np.array(
        [((predicted[at] - wanted[at]) ** 2).sum() / predicted[at].size for at in range(4)]
    )


def snr():
    """sqrt(SNR) = signal's amplitude over noise's, at each timestep, in double precision."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = np.array([math.prod(1 - betas[: at + 1]) for at in TIMESTEPS.tolist()])
    return (np.sqrt(signal) / np.sqrt(1 - signal)) ** 2


def test_plain_loss_is_the_mean_square_of_each_picture():
    assert losses() == pytest.approx(squares(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr(gamma):
    ratio = snr()
    assert losses(min_snr_gamma=gamma) == pytest.approx(
        squares() * np.array([min(1, gamma / each) for each in ratio]), rel=1e-4
    )
    assert losses("v_prediction", min_snr_gamma=gamma) == pytest.approx(
        squares() * np.array([min(each, gamma) / (each + 1) for each in ratio]), rel=1e-4
    )


def test_debiased_estimation():
    ratio = np.minimum(snr(), 1000)
    assert losses(debiased_estimation=True) == pytest.approx(squares() / np.sqrt(ratio), rel=1e-4)
    assert losses("v_prediction", debiased_estimation=True) == pytest.approx(
        squares() / (1 + ratio), rel=1e-4
    )


def test_v_like_loss_is_the_loss_on_the_v_that_a_prediction_of_noise_implies():
    """Of a model that says ε' for x_t, v' = (ε' - sqrt(1-ā) x_t) / sqrt(ā), so (v' - v)² = (ε' -
    ε)² / ā; SNR/(SNR+1) is ā.
    """
    alpha_bar = ALPHAS[TIMESTEPS].double().numpy()
    assert losses(v_pred_like_loss=0.25) == pytest.approx(
        squares() * (1 + 0.25 / np.minimum(alpha_bar, 1000 / 1001)), rel=1e-4
    )
    assert losses("v_prediction", v_pred_like_loss=0.25) == pytest.approx(squares(), rel=1e-5)


def test_scaling_the_v_loss_gives_the_loss_on_noise():
    alpha_bar = np.minimum(ALPHAS[TIMESTEPS].double().numpy(), 1000 / 1001)
    assert losses("v_prediction", scale_v_pred_loss=True) == pytest.approx(
        squares() * alpha_bar, rel=1e-4
    )
    assert losses(scale_v_pred_loss=True) == pytest.approx(squares(), rel=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_huber(kind, schedule):
    predicted, wanted = (tensor.double().numpy() for tensor in pair())
    c, expected = 0.1, []
    for at, timestep in enumerate(TIMESTEPS.tolist()):
        sigma = 1 / math.sqrt(snr()[at])
        border = {
            "constant": c,
            "exponential": math.exp(math.log(c) * timestep / 1000),
            "snr": (1 - c) / (1 + sigma) ** 2 + c,
        }[schedule]
        rooted = np.sqrt((predicted[at] - wanted[at]) ** 2 + border**2) - border
        expected.append((2 * border * rooted if kind == "huber" else 2 * rooted).mean())
    assert losses(loss_type=kind, huber_c=c, huber_schedule=schedule) == pytest.approx(
        np.array(expected), rel=1e-4
    )


def test_huber_is_quadratic_for_small_and_linear_for_large_differences():
    border = torch.tensor([1.0])
    small, large = torch.full((1, 1), 1e-2), torch.full((1, 1), 1e4)
    zero = torch.zeros(1, 1)
    assert diffusion.distance(small, zero, "huber", border).item() == pytest.approx(1e-4, rel=1e-3)
    assert diffusion.distance(large, zero, "smooth_l1", border).item() == pytest.approx(
        2e4, rel=1e-3
    )


def test_l1():
    predicted, wanted = pair()
    assert losses(loss_type="l1") == pytest.approx(
        (predicted - wanted).abs().flatten(1).mean(1).numpy(), rel=1e-5
    )


def test_mask_weighs_each_place():
    masks = torch.zeros(4, 1, 8, 6)
    masks[:, :, :2] = 1.0
    masks[1] = 0.5
    predicted, wanted = (tensor.double().numpy() for tensor in pair())
    expected = ((predicted - wanted) ** 2 * masks.double().numpy()).mean(axis=(1, 2, 3))
    assert losses(masks=masks) == pytest.approx(expected, rel=1e-5)


# --- Noise ----------------------------------------------------------------------------------------

BIG = torch.Size((64, 4, 16, 16))


def test_draws_depend_on_seed_and_number_alone():
    settings = Objective(
        noise_offset=0.1,
        noise_offset_random=True,
        multires_noise_iterations=3,
        input_perturbation=0.1,
        timestep_sampling="logit_normal",
    )
    one, torch_state = settings.draw(BIG, seed=1, number=7), torch.get_rng_state()
    again, other = settings.draw(BIG, seed=1, number=7), settings.draw(BIG, seed=1, number=8)
    assert (
        torch.equal(one.perturbed_noise, again.perturbed_noise)
        and torch.equal(one.timesteps, again.timesteps)
        and torch.equal(torch_state, torch.get_rng_state())
    )
    assert not torch.equal(one.noise, other.noise) and not torch.equal(
        one.timesteps, other.timesteps
    )


def test_plain_noise_is_what_is_shown():
    task = Objective().draw(BIG, seed=1, number=0)
    assert task.perturbed_noise is task.noise and task.noise.std().item() == pytest.approx(
        1, abs=0.01
    )


def test_noise_offset_moves_each_channel_as_a_whole():
    plain, moved = (
        Objective().draw(BIG, seed=1, number=0).noise,
        Objective(noise_offset=0.5).draw(BIG, seed=1, number=0).noise,
    )
    shifts = (moved - plain).flatten(2)
    assert shifts.std(dim=2).max() < 1e-6 and shifts.mean(dim=2).std().item() == pytest.approx(
        0.5, abs=0.06
    )


def test_random_noise_offset_differs_between_pictures_and_stays_below():
    plain = Objective().draw(BIG, seed=1, number=0).noise
    moved = Objective(noise_offset=0.5, noise_offset_random=True).draw(BIG, seed=1, number=0).noise
    spread = (moved - plain).mean(dim=(2, 3)).std(dim=1)
    assert spread.std() > 0.05 and (moved - plain).mean(dim=(2, 3)).std().item() == pytest.approx(
        0.5 / 3**0.5, abs=0.06
    )  # uniform's second moment


def test_multires_noise_has_unit_variance_and_more_of_the_coarse():
    plain = Objective().draw(BIG, seed=1, number=0).noise
    rich = (
        Objective(multires_noise_iterations=6, multires_noise_discount=0.8)
        .draw(BIG, seed=1, number=0)
        .noise
    )
    coarse = [torch.nn.functional.avg_pool2d(noise, 8).std().item() for noise in (plain, rich)]
    assert (
        rich.std().item() == pytest.approx(1, abs=1e-3)
        and coarse[0] == pytest.approx(1 / 8, abs=0.02)
        and coarse[1] > 3 * coarse[0]
    )


def test_multires_noise_without_discount_left_is_plain_noise_twice():
    """Level 0 is as fine as the noise itself, weight 1: the sum of two, scaled back; levels above
    vanish with discount 0.
    """
    rich = (
        Objective(multires_noise_iterations=4, multires_noise_discount=0.0)
        .draw(BIG, seed=1, number=0)
        .noise
    )
    plain = Objective().draw(BIG, seed=1, number=0).noise
    correlation = np.corrcoef(rich.flatten().numpy(), plain.flatten().numpy())[0, 1]
    assert correlation == pytest.approx(1 / 2**0.5, abs=0.02)


def test_input_perturbation_shows_more_noise_than_is_to_be_predicted():
    task, plain = (
        Objective(input_perturbation=0.2).draw(BIG, seed=1, number=0),
        Objective().draw(BIG, seed=1, number=0),
    )
    assert torch.equal(task.noise, plain.noise) and (
        task.perturbed_noise - task.noise
    ).std().item() == pytest.approx(0.2, abs=0.005)


def test_timesteps_stay_in_their_range():
    task = Objective(min_timestep=200, max_timestep=210).draw(
        torch.Size((500, 4, 1, 1)), seed=1, number=0
    )
    assert set(task.timesteps.tolist()) == set(range(200, 210))
    logit = Objective(
        min_timestep=200, max_timestep=210, timestep_sampling="logit_normal", logit_std=5.0
    ).draw(torch.Size((500, 4, 1, 1)), seed=1, number=0)
    assert set(logit.timesteps.tolist()) == set(range(200, 210))


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-1.0, 0.5)])
def test_logit_normal_has_its_median_and_quantiles(mean, std):
    task = Objective(timestep_sampling="logit_normal", logit_mean=mean, logit_std=std).draw(
        torch.Size((20_000, 1, 1, 1)), seed=1, number=0
    )
    places = task.timesteps.double().numpy() / 1000
    logits = np.log((places + 0.0005) / (1 - places - 0.0005))
    assert np.median(logits) == pytest.approx(mean, abs=0.03) and np.quantile(
        logits, 0.8413
    ) - np.median(logits) == pytest.approx(std, abs=0.04)


def test_zero_terminal_snr_follows_the_papers_listing():
    """Algorithm 1 of arXiv 2305.08891 works on betas; written out in numpy."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    scaled = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    found = diffusion.rescale_zero_terminal_snr(ALPHAS)
    assert (
        found[-1] == 0
        and found.dtype == torch.float32
        and found.numpy() == pytest.approx(scaled**2, abs=1e-6)
        and found[0] == pytest.approx(ALPHAS[0].item())
    )


def test_pure_noise_asks_a_v_model_for_the_negative_picture():
    schedule, (latents, noise) = diffusion.rescale_zero_terminal_snr(ALPHAS), pair()
    last = torch.full((4,), 999)
    assert torch.equal(diffusion.add_noise(latents, noise, last, schedule), noise) and torch.equal(
        diffusion.target(latents, noise, last, schedule, "v_prediction"), -latents
    )
    weights = diffusion.min_snr_weights(
        diffusion.signal_to_noise(schedule, last), 5.0, "v_prediction"
    )
    assert torch.isfinite(weights).all() and weights.sum() == 0
