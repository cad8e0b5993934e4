"""The objective: which noise at which timesteps a batch gets, and the loss of a prediction. Every
draw depends on (seed, number) alone, where `number` counts the batches.
"""

import dataclasses

import torch

from ..base.rng import generator
from . import diffusion


@dataclasses.dataclass(frozen=True)
class NoiseDraw:
    """What is drawn for a batch: `noise` to be predicted and `perturbed_noise` `(batch, 4, h, w)`,
    which is mixed into the latents, at int64 `timesteps` `(batch,)`.
    """

    noise: torch.Tensor
    perturbed_noise: torch.Tensor
    timesteps: torch.Tensor

    def __getitem__(self, index: slice) -> "NoiseDraw":
        return NoiseDraw(self.noise[index], self.perturbed_noise[index], self.timesteps[index])


@dataclasses.dataclass(frozen=True)
class Objective:
    """The settings of loss and noise, under their names in the config."""

    loss_type: str = "l2"
    huber_c: float = 0.1
    huber_schedule: str = "snr"
    min_snr_gamma: float = 0.0
    debiased_estimation: bool = False
    v_pred_like_loss: float = 0.0
    scale_v_pred_loss: bool = False
    noise_offset: float = 0.0
    noise_offset_random: bool = False
    multires_noise_iterations: int = 0
    multires_noise_discount: float = 0.3
    input_perturbation: float = 0.0
    input_perturbation_random: bool = False
    min_timestep: int = 0
    max_timestep: int = 1000
    timestep_sampling: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def draw(self, shape: torch.Size, *, seed: int, number: int) -> NoiseDraw:
        """Draw noise and timesteps for latents of `shape`."""
        noise = torch.randn(shape, generator=generator(seed, "noise", number))
        rng = generator(seed, "noise settings", number)
        if self.noise_offset:
            strengths = _strengths(self.noise_offset, self.noise_offset_random, shape[0], rng)
            noise = diffusion.offset_noise(noise, strengths, rng)
        if self.multires_noise_iterations:
            noise = diffusion.multires_noise(
                noise,
                iterations=self.multires_noise_iterations,
                discount=self.multires_noise_discount,
                rng=rng,
            )
        perturbed_noise = noise
        if self.input_perturbation:  # arXiv 2301.11706, algorithm 1
            strengths = _strengths(
                self.input_perturbation, self.input_perturbation_random, shape[0], rng
            )
            perturbation = torch.randn(shape, generator=rng)
            perturbed_noise = noise + strengths.view(-1, 1, 1, 1) * perturbation
        timesteps = diffusion.draw_timesteps(
            shape[0],
            generator(seed, "timesteps", number),
            lowest=self.min_timestep,
            below=self.max_timestep,
            sampling=self.timestep_sampling,
            logit_mean=self.logit_mean,
            logit_std=self.logit_std,
        )
        return NoiseDraw(noise, perturbed_noise, timesteps)

    def borders(self, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor) -> torch.Tensor | None:
        """Return Huber's border c at timesteps `(batch,)` on the CPU; None for other losses."""
        if self.loss_type not in ("huber", "smooth_l1"):
            return None
        return diffusion.huber_borders(
            timesteps, alphas_cumprod, c=self.huber_c, schedule=self.huber_schedule
        )

    def losses(
        self,
        predicted: torch.Tensor,
        target: torch.Tensor,
        *,
        borders: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return each picture's loss `(batch,)`, float32: the mean over its latents, multiplied by
        `masks` `(batch, 1, h, w)`.
        """
        distance = diffusion.distance(predicted, target, self.loss_type, borders)
        if masks is not None:
            distance = distance * masks
        return distance.mean(dim=(1, 2, 3))

    def weights(
        self, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor, prediction_type: str
    ) -> torch.Tensor:
        """Return the loss weights of timesteps `(batch,)`, all on the CPU."""
        snr = diffusion.signal_to_noise(alphas_cumprod, timesteps)
        weights = torch.ones_like(snr)
        if self.min_snr_gamma:
            weights = weights * diffusion.min_snr_weights(snr, self.min_snr_gamma, prediction_type)
        if self.scale_v_pred_loss and prediction_type == "v_prediction":
            weights = weights * diffusion.noise_like_weights(snr)
        if self.v_pred_like_loss and prediction_type == "epsilon":
            weights = weights * (1 + self.v_pred_like_loss / diffusion.noise_like_weights(snr))
        if self.debiased_estimation:
            weights = weights * diffusion.debiased_weights(snr, prediction_type)
        return weights


def _strengths(most: float, random: bool, count: int, rng: torch.Generator) -> torch.Tensor:
    """Return `most` for each of `count` pictures, or, if `random`, evenly drawn from [0, most)."""
    return most * (torch.rand(count, generator=rng) if random else torch.ones(count))
