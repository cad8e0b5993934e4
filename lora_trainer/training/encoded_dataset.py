"""Latents, masks and text embeddings, encoded once before the first step and kept on the CPU;
batches are indexed out of them.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from ..base.contracts import BaseModel, Conditioning, Size
from ..base.errors import Refused, Stopped
from ..base.rng import generator
from ..dataset.buckets import Bucket, covering_of
from ..dataset.images import jittered, load_pixels
from ..dataset.masks import find_masks, load_mask
from ..dataset.scan import Picture

PIXELS_AT_ONCE, JITTERED = 4 * 512 * 512, 4


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One picture as the UNet sees it, in `variants`: plain, or in four other colours, and each of
    them mirrored.

    latents: float32 `(variants, 4, h, w)`. With random crop they, and the masks, are of the whole
    picture, larger than the bucket. masks: float32 `(variants, 1, h, w)`, 1 where it learns; None:
    everywhere. sizes: one for each variant, what SDXL is told when nothing more is cropped.
    conditioning: of its caption, `(1, tokens, width)`, without sizes; None where captions are
    encoded while training. empty: what an empty caption is encoded to, for batches of captions of
    different lengths; None where there are none.
    """

    latents: torch.Tensor
    masks: torch.Tensor | None
    sizes: tuple[Size, ...]
    caption: str
    weight: float
    regularisation: bool
    conditioning: Conditioning | None
    bucket: Bucket
    empty: Conditioning | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a batch learns from: latents float32 `(batch, 4, h, w)`, masks `(batch, 1, h, w)` or
    None, and for each picture its size, caption, weight `(batch,)` and whether it is for
    regularisation. Conditioning as in `Encoded`, with sizes.
    """

    latents: torch.Tensor
    masks: torch.Tensor | None
    sizes: list[Size]
    captions: list[str]
    weights: torch.Tensor
    regularisation: list[bool]
    conditioning: Conditioning | None

    def __len__(self) -> int:
        return len(self.latents)


def encode(  # noqa: PLR0913
    base_model: BaseModel,
    pictures: list[Picture],
    buckets: list[Bucket],
    captions: list[str],
    roles: list[str],
    *,
    mirror: bool = False,
    random_crop: bool = False,
    color_jitter: float = 0.0,
    masked_loss: str = "off",
    masked_loss_floor: float = 0.0,
    prior_loss_weight: float = 1.0,
    with_captions: bool = True,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    between: Callable[[], bool] = lambda: True,
) -> list[Encoded]:
    """Encode every picture and, `with_captions`, every caption once, in order. Pictures for
    validation are never mirrored, cropped at random or recoloured.

    The colours of a picture depend on (seed, its file name). `between()` runs before each; False
    raises `Stopped`. Raises what the base model raises.
    """
    encoded, texts = [], {}
    mask_files = find_masks(picture.path for picture in pictures) if masked_loss == "files" else {}
    for number, (picture, bucket, caption, role) in enumerate(
        zip(pictures, buckets, captions, roles, strict=True)
    ):
        if not between():
            raise Stopped
        on_progress(number, len(pictures))
        varies = role != "validation"
        whole = random_crop and varies
        with torch.no_grad():
            latents, sizes = _latents_of(
                base_model,
                picture,
                bucket,
                mirror=mirror and varies,
                color_jitter=color_jitter if varies else 0.0,
                whole=whole,
                seed=seed,
            )
            masks = _masks_of(
                picture,
                bucket,
                masked_loss,
                mask_files.get(picture.path),
                floor=masked_loss_floor,
                whole=whole,
                variants=len(sizes),
                mirrored=mirror and varies,
            )
            if with_captions and caption not in texts:
                texts[caption] = base_model.encode_captions([caption]).to("cpu")
        regularisation = role == "regularisation"
        encoded.append(
            Encoded(
                latents,
                masks,
                sizes,
                caption,
                prior_loss_weight if regularisation else 1.0,
                regularisation,
                texts.get(caption),
                bucket,
            )
        )
    if len({text.hidden_states.shape[1] for text in texts.values()}) > 1:
        with torch.no_grad():
            empty = texts.get("") or base_model.encode_captions([""]).to("cpu")
        encoded = [dataclasses.replace(item, empty=empty) for item in encoded]
    on_progress(len(pictures), len(pictures))
    return encoded


def _latents_of(
    base_model: BaseModel,
    picture: Picture,
    bucket: Bucket,
    *,
    mirror: bool,
    color_jitter: float,
    whole: bool,
    seed: int,
) -> tuple[torch.Tensor, tuple[Size, ...]]:
    """Encode a picture's variants, a few at once, and say where each was cropped; raises `Refused`
    when the VAE gives numbers that are not finite.
    """
    pixels, size = load_pixels(picture.path, bucket, whole=whole)
    coloured = (
        [
            jittered(pixels, color_jitter, generator(seed, f"jitter {picture.path.name}", number))
            for number in range(JITTERED)
        ]
        if color_jitter
        else [pixels]
    )
    variants = torch.stack(coloured + [each.flip(-1) for each in coloured] if mirror else coloured)
    together = max(1, PIXELS_AT_ONCE // pixels[0].numel())
    latents = torch.cat(
        [
            base_model.encode_images(part.to(base_model.device)).float().cpu()
            for part in variants.split(together)
        ]
    )
    if not torch.isfinite(latents).all():
        raise Refused(
            f"The VAE gave numbers that are not finite for {picture.path.name}, as some do in fp16."
            " Start the WebUI with --no-half-vae.",
            code="vae_not_finite",
        )
    return latents, (size,) * len(coloured) + (
        (_mirrored(size, picture, bucket, pixels.shape[-1]),) * len(coloured) if mirror else ()
    )


def _mirrored(size: Size, picture: Picture, bucket: Bucket, width_px: int) -> Size:
    """Say where the crop of the mirrored picture began: as far from the left as the other's end is
    from the right.
    """
    return dataclasses.replace(
        size,
        crop_left_px=covering_of(picture.width, picture.height, bucket)[0]
        - size.crop_left_px
        - width_px,
    )


def _masks_of(
    picture: Picture,
    bucket: Bucket,
    kind: str,
    mask_file: Path | None,
    *,
    floor: float,
    whole: bool,
    variants: int,
    mirrored: bool,
) -> torch.Tensor | None:
    if kind == "off" or (kind == "files" and mask_file is None):
        return None
    mask = load_mask(picture, bucket, mask_path=mask_file, floor=floor, whole=whole)
    if mask is None:
        return None
    each = variants // 2 if mirrored else variants
    return torch.cat(
        [side.expand(each, -1, -1, -1) for side in ([mask, mask.flip(-1)] if mirrored else [mask])]
    )


def assemble(encoded: list[Encoded], numbers: list[int], *, seed: int, number: int) -> Batch:
    """Put a batch together; variant and crop of each picture are drawn from (seed, number)."""
    draws = generator(seed, "augment", number)
    chosen = [encoded[at] for at in numbers]
    latents, masks, sizes = zip(*(_shown(item, draws) for item in chosen), strict=True)
    texts = [item.conditioning for item in chosen]
    return Batch(
        torch.stack(latents),
        torch.stack(masks) if any(item.masks is not None for item in chosen) else None,
        list(sizes),
        [item.caption for item in chosen],
        torch.tensor([item.weight for item in chosen], dtype=torch.float32),
        [item.regularisation for item in chosen],
        (
            None
            if any(text is None for text in texts)
            else Conditioning.cat(texts, chosen[0].empty).of_sizes(list(sizes))
        ),
    )


def _shown(item: Encoded, draws: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, Size]:
    """Return one picture as it is this time: latents `(4, h, w)`, mask `(1, h, w)` and size of a
    variant, of that the part that fits the bucket.
    """
    variant = int(torch.randint(len(item.latents), (), generator=draws))
    height, width = item.bucket.height // 8, item.bucket.width // 8
    top, left = (
        int(torch.randint(have - want + 1, (), generator=draws))
        for have, want in zip(item.latents.shape[-2:], (height, width), strict=True)
    )
    part = (slice(None), slice(top, top + height), slice(left, left + width))
    size = item.sizes[variant]
    return (
        item.latents[variant][part],
        torch.ones(1, height, width) if item.masks is None else item.masks[variant][part],
        dataclasses.replace(
            size, crop_left_px=size.crop_left_px + 8 * left, crop_top_px=size.crop_top_px + 8 * top
        ),
    )
