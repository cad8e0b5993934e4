"""Latents and text embeddings, encoded once before the first step and kept on the CPU; batches are indexed out of them."""
import dataclasses
from collections.abc import Callable

import torch

from .contracts import BaseModel, Conditioning, Size
from .dataset import Bucket, Picture, generator, load_pixels
from .errors import Refused, Stopped

PIXELS_AT_ONCE = 4 * 512 * 512


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One picture as the UNet sees it: `latents` float32 `(1 or 2, 4, h, w)` (plain, mirrored) and its caption `(1, tokens, width)`.

    With random crop the latents are of the whole picture, larger than the bucket.
    """
    latents: torch.Tensor
    conditioning: Conditioning
    bucket: Bucket


def encode(base_model: BaseModel, pictures: list[Picture], buckets: list[Bucket], captions: list[str], *, mirror: bool = False,
           random_crop: bool = False, on_progress: Callable[[int, int], None] = lambda done, total: None,
           between: Callable[[], bool] = lambda: True) -> list[Encoded]:
    """Encode every picture and caption, in order. `between()` runs before each; False raises `Stopped`. Raises what the base model raises."""
    encoded = []
    for number, (picture, bucket, caption) in enumerate(zip(pictures, buckets, captions)):
        if not between():
            raise Stopped
        on_progress(number, len(pictures))
        with torch.no_grad():
            latents, size = _latents_of(base_model, picture, bucket, mirror=mirror, whole=random_crop)
            if not torch.isfinite(latents).all():
                raise Refused(f"The VAE gave numbers that are not finite for {picture.path.name}, as some do in fp16. Start the WebUI with --no-half-vae.",
                              code="vae_not_finite")
            encoded.append(Encoded(latents, base_model.encode_captions([caption], [size]).to("cpu"), bucket))
    on_progress(len(pictures), len(pictures))
    return encoded


def _latents_of(base_model: BaseModel, picture: Picture, bucket: Bucket, *, mirror: bool, whole: bool) -> tuple[torch.Tensor, Size]:
    pixels, size = load_pixels(picture.path, bucket, whole=whole)
    variants = torch.stack([pixels, pixels.flip(-1)] if mirror else [pixels])
    together = max(1, PIXELS_AT_ONCE // pixels[0].numel())
    return torch.cat([base_model.encode_images(part.to(base_model.device)).float().cpu() for part in variants.split(together)]), size


def assemble(encoded: list[Encoded], numbers: list[int], *, seed: int, number: int) -> tuple[torch.Tensor, Conditioning]:
    """Put a batch together: latents `(batch, 4, h, w)` and conditioning; mirror and crop are drawn from (seed, number)."""
    draws = generator(seed, "augment", number)
    chosen = [encoded[at] for at in numbers]
    latents = torch.stack([_cropped(item, draws) for item in chosen])
    return latents, Conditioning.cat([item.conditioning for item in chosen])


def _cropped(item: Encoded, draws: torch.Generator) -> torch.Tensor:
    variant = item.latents[int(torch.randint(len(item.latents), (), generator=draws))]
    height, width = item.bucket.height // 8, item.bucket.width // 8
    top, left = (int(torch.randint(have - want + 1, (), generator=draws)) for have, want in zip(variant.shape[-2:], (height, width)))
    return variant[:, top:top + height, left:left + width]
