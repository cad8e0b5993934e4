"""Diffusion mathematics as pure functions: the forward process, what the UNet should predict, and the loss.

Notation of DDPM (arXiv 2006.11239): x_t = sqrt(ā_t) x_0 + sqrt(1 - ā_t) ε, with ā = `alphas_cumprod` of shape (1000,).
"""
import torch
import torch.nn.functional as F


def add_noise(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Return x_t for x_0 and ε `(batch, 4, h, w)` and int64 timesteps `(batch,)`; DDPM, equation 4."""
    alpha_bar = _per_sample(alphas_cumprod, timesteps, latents)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def target(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """Return what the UNet should say: ε, or v = sqrt(ā) ε - sqrt(1 - ā) x_0 (arXiv 2202.00512, appendix D)."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        alpha_bar = _per_sample(alphas_cumprod, timesteps, latents)
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    raise ValueError(f"prediction_type is {prediction_type!r}; expected 'epsilon' or 'v_prediction'")


def loss(predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared error in float32 over everything, a scalar; DDPM, equation 14."""
    return F.mse_loss(predicted.float(), wanted.float())


def _per_sample(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return alphas_cumprod.to(like.device)[timesteps].view(-1, *[1] * (like.dim() - 1)).to(like.dtype)
