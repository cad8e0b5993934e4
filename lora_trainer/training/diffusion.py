"""Diffusion mathematics as pure functions: the forward process, what the UNet should predict,
noise, losses and their weights.

Notation of DDPM (arXiv 2006.11239): x_t = sqrt(ā_t) x_0 + sqrt(1 - ā_t) ε, with ā =
`alphas_cumprod` of shape (1000,), and SNR = ā / (1 - ā).
"""

import math

import torch
import torch.nn.functional as F

LARGEST_SNR = 1000.0  # where weights divide by it; at timestep 0 it is 1175 with SD's schedule


def add_noise(
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    alphas_cumprod: torch.Tensor,
) -> torch.Tensor:
    """Return x_t for x_0 and ε `(batch, 4, h, w)` and int64 timesteps `(batch,)`; DDPM, equation
    4.
    """
    alpha_bar = _per_sample(alphas_cumprod, timesteps, latents)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def target(
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """Return what the UNet should predict: ε, or v = sqrt(ā) ε - sqrt(1 - ā) x_0 (arXiv 2202.00512,
    appendix D).
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        alpha_bar = _per_sample(alphas_cumprod, timesteps, latents)
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    raise ValueError(
        f"prediction_type is {prediction_type!r}; expected 'epsilon' or 'v_prediction'"
    )


def rescale_zero_terminal_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(ā) so that the last is 0 and the first stays; arXiv 2305.08891,
    algorithm 1.
    """
    root = alphas_cumprod.double().sqrt()
    return (((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2).to(alphas_cumprod.dtype)


def signal_to_noise(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Return ā / (1 - ā) at timesteps `(batch,)`."""
    alpha_bar = alphas_cumprod.to(timesteps.device)[timesteps]
    return alpha_bar / (1 - alpha_bar)


# --- Noise ----------------------------------------------------------------------------------------


def offset_noise(
    noise: torch.Tensor, strengths: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    """Add one number to each channel of ε, of standard deviation `strengths` `(batch,)`;
    Guttenberg, "Diffusion with Offset Noise", 2023.
    """
    shifts = torch.randn(*noise.shape[:2], 1, 1, generator=rng)
    return noise + strengths.view(-1, 1, 1, 1) * shifts


def multires_noise(
    noise: torch.Tensor, *, iterations: int, discount: float, rng: torch.Generator
) -> torch.Tensor:
    """Add coarser noise to ε, level i at 1/r^i of the size with r drawn from [2, 4) and weight
    discount^i, and scale to unit variance.

    Whitaker, "Multi-Resolution Noise for Diffusion Model Training", 2023. A batch shares its
    levels' sizes.
    """
    height, width = noise.shape[-2:]
    total = noise
    for level in range(iterations):
        shrink = (2 + 2 * torch.rand((), generator=rng).item()) ** level
        size = max(1, int(height / shrink)), max(1, int(width / shrink))
        coarse = torch.randn(*noise.shape[:2], *size, generator=rng)
        enlarged = F.interpolate(coarse, size=(height, width), mode="bilinear")
        total = total + discount**level * enlarged
        if 1 in size:
            break
    return total / total.std()


def draw_timesteps(
    count: int,
    rng: torch.Generator,
    *,
    lowest: int = 0,
    below: int = 1000,
    sampling: str = "uniform",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
) -> torch.Tensor:
    """Draw int64 timesteps `(count,)` in [lowest, below), evenly or as sigmoid(N(mean, std)) (arXiv
    2403.03206, section 3.1).
    """
    if sampling == "uniform":
        return torch.randint(lowest, below, (count,), generator=rng)
    normal = torch.randn(count, generator=rng, dtype=torch.float64)
    fractions = torch.sigmoid(logit_mean + logit_std * normal)
    return (lowest + (fractions * (below - lowest)).long()).clamp(max=below - 1)


# --- Losses ---------------------------------------------------------------------------------------


def distance(
    predicted: torch.Tensor, target: torch.Tensor, kind: str, borders: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the elementwise loss of the difference d, float32, of `kind` "l2" or "l1", or with
    `borders` c `(batch,)` a pseudo-Huber loss: "huber" 2c (sqrt(d² + c²) - c), which is d² for
    small d, or "smooth_l1" 2 (sqrt(d² + c²) - c), which is 2|d| for large d.
    """
    difference = predicted.float() - target.float()
    if kind == "l2":
        return difference**2
    if kind == "l1":
        return difference.abs()
    if borders is None:
        raise ValueError(f"the loss {kind!r} needs borders")
    c = borders.to(difference).view(-1, *[1] * (difference.dim() - 1))
    # Equal to 2 (sqrt(d² + c²) - c), without a difference of nearly equal numbers.
    smooth = 2 * difference**2 / ((difference**2 + c**2).sqrt() + c)
    return c * smooth if kind == "huber" else smooth


def huber_borders(
    timesteps: torch.Tensor, alphas_cumprod: torch.Tensor, *, c: float, schedule: str
) -> torch.Tensor:
    """Return the pseudo-Huber border at timesteps `(batch,)`: constant c, c^(t/1000), or (1 - c) /
    (1 + σ)² + c with σ² = 1/SNR (arXiv 2403.16728, section 4).
    """
    if schedule == "constant":
        return torch.full(timesteps.shape, c)
    if schedule == "exponential":
        return torch.exp(math.log(c) * timesteps.cpu() / len(alphas_cumprod))
    sigmas = signal_to_noise(alphas_cumprod, timesteps.cpu()) ** -0.5
    return (1 - c) / (1 + sigmas) ** 2 + c


def min_snr_weights(snr: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Return min(SNR, γ) / SNR for a model that predicts ε, min(SNR, γ) / (SNR + 1) for v; arXiv
    2303.09556, section 3.4.
    """
    return snr.clamp(max=gamma) / (snr if prediction_type == "epsilon" else snr + 1)


def debiased_weights(snr: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """Return 1 / sqrt(SNR) for ε (arXiv 2310.08442, equation 13), 1 / (SNR + 1) for v."""
    snr = snr.clamp(max=LARGEST_SNR)
    return snr**-0.5 if prediction_type == "epsilon" else 1 / (snr + 1)


def noise_like_weights(snr: torch.Tensor) -> torch.Tensor:
    """Return SNR / (SNR + 1), which turns a loss on v into the one on the ε that it implies."""
    snr = snr.clamp(max=LARGEST_SNR)
    return snr / (snr + 1)


def _per_sample(
    alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, like: torch.Tensor
) -> torch.Tensor:
    """Return ā at timesteps `(batch,)`, shaped to multiply `like` and of its dtype."""
    alpha_bar = alphas_cumprod.to(like.device)[timesteps]
    return alpha_bar.view(-1, *[1] * (like.dim() - 1)).to(like.dtype)
