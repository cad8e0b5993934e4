"""Latents, masks and text embeddings, encoded once before the first step and kept on the CPU;
batches are indexed out of them.

runs.plan makes samples, `encode` encodes them, and `assemble` puts together each batch of the loop.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from ..base.contracts import BaseModel, Conditioning, Size
from ..base.errors import ErrorCode, Refused, Stopped
from ..base.rng import generator
from ..dataset.buckets import size_covering
from ..dataset.images import unreadable
from ..dataset.masks import load_mask
from ..dataset.pixels import jitter_colors, load_pixels
from ..dataset.sample import Sample

PIXELS_AT_ONCE = 4 * 512 * 512
COLOR_VARIANTS = 4  # how many times colours are changed, of each picture


@dataclasses.dataclass(frozen=True)
class EncodingOptions:
    """What encoding makes of samples, as the settings say.

    `masks_from_alpha`: a picture's transparency is its mask. `mask_floor`: masks are nowhere lower.
    `with_captions`: captions are encoded now, not while training.
    """

    mirror: bool = False
    random_crop: bool = False
    color_jitter: float = 0.0
    masks_from_alpha: bool = False
    mask_floor: float = 0.0
    with_captions: bool = True
    seed: int = 0

    def for_validation(self) -> "EncodingOptions":
        """Return the options for samples whose loss must be comparable: nothing varies."""
        return dataclasses.replace(self, mirror=False, random_crop=False, color_jitter=0.0)


@dataclasses.dataclass(frozen=True)
class EncodedSample:
    """One sample as the UNet sees it, in variants: plain or recoloured, and each of them mirrored.

    latents: float32 `(variants, 4, h, w)`. With random crop they, and the masks, are of the whole
    picture, larger than the bucket.
    masks: float32 `(variants, 1, h, w)`, 1 where it is learned; None: everywhere.
    sizes: SDXL's sizes, one for each variant, when nothing more is cropped.
    conditioning: of its caption, `(1, tokens, width)`, without sizes; None where captions are
    encoded while training.
    empty: of an empty caption, to fill up shorter captions of a batch; None where all are as long.
    """

    sample: Sample
    latents: torch.Tensor
    masks: torch.Tensor | None
    sizes: tuple[Size, ...]
    conditioning: Conditioning | None
    empty: Conditioning | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a batch learns from.

    latents float32 `(batch, 4, h, w)`, masks `(batch, 1, h, w)` or None, weights `(batch,)`, and
    for each picture its size and its sample. Conditioning as in `EncodedSample`, with sizes.
    """

    samples: list[Sample]
    latents: torch.Tensor
    masks: torch.Tensor | None
    sizes: list[Size]
    weights: torch.Tensor
    conditioning: Conditioning | None

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def captions(self) -> list[str]:
        """The captions as they were planned, before they vary."""
        return [sample.caption for sample in self.samples]


def encode(
    base_model: BaseModel,
    samples: Sequence[Sample],
    options: EncodingOptions,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    between: Callable[[], bool] = lambda: True,
) -> list[EncodedSample]:
    """Encode every sample in order, and every different caption once.

    Samples for validation are never mirrored, cropped at random or recoloured. The colours of a
    picture depend on (seed, its file name). `between()` runs before each; when it returns False,
    `Stopped` is raised. Raises what the base model raises, and `Refused` for a mask that is gone.
    """
    encoded = []
    captions = _EncodedCaptions(base_model)
    for index, sample in enumerate(samples):
        if not between():
            raise Stopped
        on_progress(index, len(samples))
        own = options.for_validation() if sample.role == "validation" else options
        with torch.no_grad():
            latents, sizes = _latents_of(base_model, sample, own)
            masks = _masks_of(sample, own, variants=len(sizes))
            conditioning = captions.encode(sample.caption) if options.with_captions else None
        encoded.append(EncodedSample(sample, latents, masks, sizes, conditioning))
    if captions.differ_in_length():
        with torch.no_grad():
            empty = captions.encode("")
        encoded = [dataclasses.replace(item, empty=empty) for item in encoded]
    on_progress(len(samples), len(samples))
    return encoded


class _EncodedCaptions:
    """Encodes each caption once, and keeps it on the CPU."""

    def __init__(self, base_model: BaseModel) -> None:
        self._base_model = base_model
        self._encoded: dict[str, Conditioning] = {}

    def encode(self, caption: str) -> Conditioning:
        if caption not in self._encoded:
            self._encoded[caption] = self._base_model.encode_captions([caption]).to("cpu")
        return self._encoded[caption]

    def differ_in_length(self) -> bool:
        return len({item.hidden_states.shape[1] for item in self._encoded.values()}) > 1


def _latents_of(
    base_model: BaseModel, sample: Sample, options: EncodingOptions
) -> tuple[torch.Tensor, tuple[Size, ...]]:
    """Encode a picture's variants, a few at once: `(variants, 4, h, w)`, and each one's size.

    Raises `Refused` when the VAE gives numbers that are not finite, and for a picture that cannot
    be read any more.
    """
    name = sample.picture.path.name
    try:
        pixels, size = load_pixels(sample.picture.path, sample.bucket, whole=options.random_crop)
    except OSError as error:
        raise unreadable(sample.picture.path, error) from error
    coloured = [pixels]
    if options.color_jitter:
        coloured = [
            jitter_colors(
                pixels, options.color_jitter, generator(options.seed, f"jitter {name}", at)
            )
            for at in range(COLOR_VARIANTS)
        ]
    sizes = (size,) * len(coloured)
    variants = torch.stack(coloured)
    if options.mirror:
        variants = torch.cat([variants, variants.flip(-1)])
        sizes += (_mirrored(size, sample, pixels.shape[-1]),) * len(coloured)
    micro_batch_size = max(1, PIXELS_AT_ONCE // pixels[0].numel())
    parts = [
        base_model.encode_images(part.to(base_model.device)).float().cpu()
        for part in variants.split(micro_batch_size)
    ]
    latents = torch.cat(parts)
    if not torch.isfinite(latents).all():
        raise Refused(
            f"The VAE gave numbers that are not finite for {name}, as some do in fp16."
            " Start the WebUI with --no-half-vae.",
            code=ErrorCode.VAE_NOT_FINITE,
        )
    return latents, sizes


def _mirrored(size: Size, sample: Sample, width_px: int) -> Size:
    """Return the size of the mirrored picture, `width_px` wide: its crop begins at the other
    end.
    """
    covering_px, _ = size_covering(sample.picture.width, sample.picture.height, sample.bucket)
    return dataclasses.replace(size, crop_left_px=covering_px - size.crop_left_px - width_px)


def _masks_of(sample: Sample, options: EncodingOptions, *, variants: int) -> torch.Tensor | None:
    """Return the masks of a sample's variants, `(variants, 1, h, w)`; None where it has none."""
    if sample.mask is None and not options.masks_from_alpha:
        return None
    mask = load_mask(
        sample.picture,
        sample.bucket,
        mask_path=sample.mask,
        floor=options.mask_floor,
        whole=options.random_crop,
    )
    if mask is None:
        return None
    if not options.mirror:
        return mask.expand(variants, -1, -1, -1)
    half = variants // 2
    return torch.cat([mask.expand(half, -1, -1, -1), mask.flip(-1).expand(half, -1, -1, -1)])


def assemble(
    encoded: Sequence[EncodedSample], indices: Sequence[int], *, seed: int, number: int
) -> Batch:
    """Put a batch together; variant and crop of each sample are drawn from (seed, number)."""
    rng = generator(seed, "augment", number)
    chosen = [encoded[index] for index in indices]
    crops = [_crop(item, rng) for item in chosen]
    sizes = [crop.size for crop in crops]
    masks = None
    if any(item.masks is not None for item in chosen):
        masks = torch.stack([crop.mask for crop in crops])
    return Batch(
        [item.sample for item in chosen],
        torch.stack([crop.latents for crop in crops]),
        masks,
        sizes,
        torch.tensor([item.sample.loss_weight for item in chosen], dtype=torch.float32),
        _conditioning_of(chosen, sizes),
    )


def _conditioning_of(chosen: Sequence[EncodedSample], sizes: list[Size]) -> Conditioning | None:
    found = [item.conditioning for item in chosen if item.conditioning is not None]
    if len(found) < len(chosen):  # captions are encoded while training
        return None
    return Conditioning.cat(found, chosen[0].empty).of_sizes(sizes)


@dataclasses.dataclass(frozen=True)
class _Crop:
    """A sample as one batch sees it: latents `(4, h, w)`, mask `(1, h, w)`, SDXL's size."""

    latents: torch.Tensor
    mask: torch.Tensor
    size: Size


def _crop(item: EncodedSample, rng: torch.Generator) -> _Crop:
    """Draw a variant, and of that a part that fits the bucket."""
    variant = int(torch.randint(len(item.latents), (), generator=rng))
    height, width = item.sample.bucket.height // 8, item.sample.bucket.width // 8
    have_height, have_width = item.latents.shape[-2:]
    top = int(torch.randint(have_height - height + 1, (), generator=rng))
    left = int(torch.randint(have_width - width + 1, (), generator=rng))
    part = (slice(None), slice(top, top + height), slice(left, left + width))
    mask = torch.ones(1, height, width) if item.masks is None else item.masks[variant][part]
    size = item.sizes[variant]
    size = dataclasses.replace(
        size,
        crop_left_px=size.crop_left_px + 8 * left,
        crop_top_px=size.crop_top_px + 8 * top,
    )
    return _Crop(item.latents[variant][part], mask, size)
