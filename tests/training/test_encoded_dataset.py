"""What is encoded of each picture, and how batches are put together of it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.base.contracts import Conditioning
from lora_trainer.base.errors import Refused, Stopped
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.masks import find_masks
from lora_trainer.dataset.pixels import load_pixels
from lora_trainer.dataset.scan import examine
from lora_trainer.training.encoded_dataset import (
    COLOR_VARIANTS,
    EncodedSample,
    EncodingOptions,
    assemble,
    encode,
)
from tests.support.samples import sample_of


class Model:
    """Latents are the means of 8x8 pixels, and their red again, so that one sees what was encoded;
    captions have a chunk for every 20 letters.
    """

    device = torch.device("cpu")

    def __init__(self):
        self.captions, self.images = [], 0

    def encode_images(self, pixels):
        assert not torch.is_grad_enabled() or not pixels.requires_grad
        self.images += len(pixels)
        means = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([means, means[:, :1]], 1)

    def encode_captions(self, captions):
        self.captions += captions
        chunks = max(1, -(-max(len(caption) for caption in captions) // 20))
        return Conditioning(
            torch.stack(
                [torch.full((77 * chunks, 4), float(len(caption))) for caption in captions]
            ),
            torch.ones(len(captions), 6),
        )


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, size in enumerate([(128, 64), (128, 64), (200, 64)]):
        Image.fromarray(
            np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        ).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(
            "one" if number < 2 else "a caption of more than twenty letters"
        )
    return tmp_path


def encoded(
    folder,
    model=None,
    *,
    buckets=(Bucket(128, 64),) * 3,
    roles=("train", "regularisation", "validation"),
    numbers=(0, 1, 2),
    masks=None,
    weights=(1.0, 1.0, 1.0),
    between=lambda: True,
    on_progress=lambda done, total: None,
    **settings,
):
    pictures = [examine(folder / f"{number}.png") for number in numbers]
    masks = masks or {}
    samples = [
        sample_of(
            picture.caption,
            picture=picture,
            bucket=bucket,
            role=role,
            loss_weight=weight,
            mask=masks.get(picture.path),
        )
        for picture, bucket, role, weight in zip(pictures, buckets, roles, weights)
    ]
    return encode(
        model or Model(),
        samples,
        EncodingOptions(**settings),
        between=between,
        on_progress=on_progress,
    )


def test_plain(folder):
    model = Model()
    items = encoded(folder, model, weights=(1.0, 0.5, 1.0))
    pixels, size = load_pixels(folder / "0.png", Bucket(128, 64))
    assert (
        torch.equal(items[0].latents, model.encode_images(pixels[None]))
        and items[0].sizes == (size,)
        and items[0].masks is None
    )
    samples = [item.sample for item in items]
    assert [(sample.loss_weight, sample.role, sample.caption) for sample in samples[:2]] == [
        (1.0, "train", "one"),
        (0.5, "regularisation", "one"),
    ]
    assert samples[2].loss_weight == 1.0 and samples[2].role == "validation"


def test_each_caption_is_encoded_once_and_the_empty_one_where_lengths_differ(folder):
    model = Model()
    items = encoded(folder, model)
    assert model.captions == ["one", "a caption of more than twenty letters", ""]
    assert (
        items[0].conditioning is items[1].conditioning
        and items[0].empty is items[2].empty is not None
    )
    batch = assemble(items, [0, 2], seed=0, number=0)
    states = batch.conditioning.hidden_states
    assert (
        states.shape == (2, 154, 4)
        and set(states[0, :77].flatten().tolist()) == {3.0}
        and set(states[0, 77:].flatten().tolist()) == {0.0}
    )
    assert assemble(items, [0, 1], seed=0, number=0).conditioning.hidden_states.shape == (
        2,
        77,
        4,
    )  # a batch of short ones stays short
    assert batch.conditioning.sizes.tolist() == [
        [64, 128, 0, 0, 64, 128],
        [64, 200, 0, 36, 64, 128],
    ]


def test_captions_that_are_encoded_while_training_are_left_alone(folder):
    model = Model()
    batch = assemble(encoded(folder, model, with_captions=False), [0, 1], seed=0, number=0)
    assert (
        not model.captions
        and batch.conditioning is None
        and batch.captions == ["one", "one"]
        and len(batch.sizes) == 2
    )


def test_mirror_and_colours_make_variants_but_not_for_validation(folder):
    items = encoded(folder, mirror=True, color_jitter=0.2, seed=3)
    assert (
        [len(item.latents) for item in items]
        == [2 * COLOR_VARIANTS, 2 * COLOR_VARIANTS, 1]
        == [len(item.sizes) for item in items]
    )
    plain, mirrored = items[0].latents.split(COLOR_VARIANTS)
    assert (
        torch.allclose(plain, mirrored.flip(-1), atol=1e-6)
        and len({variant.sum().item() for variant in plain}) == COLOR_VARIANTS
    )
    again, other_seed, same = (
        encoded(folder, mirror=True, color_jitter=0.2, seed=seed)[0].latents for seed in (3, 4, 3)
    )
    assert (
        torch.equal(items[0].latents, again)
        and torch.equal(again, same)
        and not torch.allclose(again, other_seed)
    )
    assert torch.equal(items[2].latents, encoded(folder)[2].latents)


def test_colours_depend_on_the_picture_not_on_its_place(folder):
    turned = encoded(folder, numbers=(1, 0), roles=["train"] * 2, color_jitter=0.2, seed=3)
    items = encoded(folder, roles=["train"] * 3, color_jitter=0.2, seed=3)
    assert torch.equal(turned[1].latents, items[0].latents) and torch.equal(
        turned[0].latents, items[1].latents
    )


def test_a_mirrored_picture_is_told_where_its_own_crop_began(folder):
    values = np.zeros((64, 203, 3), np.uint8)
    Image.fromarray(values).save(folder / "0.png")
    item = encoded(folder, mirror=True)[0]  # 75 too many: 37 are cut on the left, 38 on the right
    assert [size.crop_left_px for size in item.sizes] == [37, 38]


@pytest.mark.parametrize(
    "width, bucket, at_first",
    [
        (200, Bucket(160, 32), 0),
        (202, Bucket(128, 32, covering=(202, 32)), 1),
        (205, Bucket(128, 32, covering=(205, 32)), 2),
    ],
)
def test_a_random_crop_tells_where_it_is(folder, width, bucket, at_first):
    """Every latent of a picture has its own value, so the crop that is told can be compared with
    the one that is shown.
    """
    values = np.zeros((32, width), np.uint8)
    values[:, at_first : at_first + 200] = np.repeat(np.arange(25, dtype=np.uint8) * 8, 8)
    Image.fromarray(np.stack([values] * 3, -1)).save(folder / "0.png")
    items = encoded(folder, buckets=[bucket] + [Bucket(128, 64)] * 2, mirror=True, random_crop=True)
    seen = set()
    for number in range(300):
        batch = assemble(items, [0], seed=5, number=number)
        shown = ((batch.latents[0, 0, 0] + 1) * 127.5).round().int().tolist()
        mirrored = shown[0] > shown[1]
        first = at_first + (
            shown[-1] if mirrored else shown[0]
        )  # in pixels of the picture that is not mirrored
        assert (
            batch.sizes[0].crop_left_px == (width - first - bucket.width if mirrored else first)
            and batch.sizes[0].crop_top_px == 0
        )
        seen.add((mirrored, first))
    assert seen == {
        (mirrored, at_first + 8 * left)
        for mirrored in (False, True)
        for left in range((200 - bucket.width) // 8 + 1)
    }


def test_validation_is_cropped_evenly(folder):
    item = encoded(folder, random_crop=True)[2]
    assert item.latents.shape[-2:] == (8, 16) and item.sizes[0].crop_left_px == 36


def test_masks_go_with_their_variants_and_crops(folder):
    for number, width in enumerate(
        (128, 128, 200)
    ):  # pictures that are their own masks: bright where they are learned
        mask = Image.new("L", (width, 64), 0)
        mask.paste(255, (0, 0, 48, 64))
        mask.convert("RGB").save(folder / f"{number}.png")
        if number != 1:
            mask.save(folder / f"{number}-masklabel.png")
    items = encoded(
        folder,
        roles=["train"] * 3,
        mirror=True,
        color_jitter=0.01,
        random_crop=True,
        masks=find_masks(folder / f"{number}.png" for number in range(3)),
        mask_floor=0.25,
        seed=1,
    )
    assert (
        items[0].masks.shape == (2 * COLOR_VARIANTS, 1, 8, 16)
        and items[1].masks is None
        and items[2].masks.shape == (2 * COLOR_VARIANTS, 1, 8, 25)
    )
    for number in range(20):
        batch = assemble(items, [0, 1, 2], seed=1, number=number)
        assert batch.masks.shape == (3, 1, 8, 16) and bool((batch.masks[1] == 1).all())
        for at in (0, 2):
            assert torch.equal(
                batch.latents[at, 0] > 0.95, batch.masks[at, 0] == 1
            ) and torch.equal(batch.latents[at, 0] < -0.9, batch.masks[at, 0] == 0.25)
    assert assemble(items, [1], seed=1, number=0).masks is None


def test_masks_from_transparency(folder):
    image = Image.new("RGBA", (128, 64), (10, 20, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 64, 64))
    image.save(folder / "1.png")
    items = encoded(folder, masks_from_alpha=True)
    assert items[0].masks is None and items[1].masks[0, 0, 0].tolist() == [0.0] * 8 + [1.0] * 8
    assert all(item.masks is None for item in encoded(folder))


def test_a_batch_has_weights_and_draws_from_its_number_alone(folder):
    items = encoded(folder, mirror=True, color_jitter=0.1, weights=(1.0, 0.25, 1.0))
    batch = assemble(items, [1, 0, 1], seed=0, number=4)
    assert (
        batch.weights.tolist() == [0.25, 1.0, 0.25]
        and batch.weights.dtype == torch.float32
        and [sample.role for sample in batch.samples]
        == ["regularisation", "train", "regularisation"]
        and len(batch) == 3
    )
    assert torch.equal(batch.latents, assemble(items, [1, 0, 1], seed=0, number=4).latents)
    assert (
        len(
            {
                assemble(items, [0], seed=0, number=number).latents[0, 0, 0, 0].item()
                for number in range(60)
            }
        )
        == 2 * COLOR_VARIANTS
    )


def test_stopping_and_a_vae_that_fails(folder, monkeypatch):
    with pytest.raises(Stopped):
        encoded(folder, between=lambda: False)
    model = Model()
    monkeypatch.setattr(model, "encode_images", lambda pixels: torch.full((1, 4, 8, 16), torch.nan))
    with pytest.raises(Refused, match="not finite for 0.png"):
        encoded(folder, model)


def test_progress_and_fields(folder):
    seen = []
    item = encoded(folder, on_progress=lambda done, total: seen.append((done, total)))[0]
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)] and [
        field.name for field in dataclasses.fields(EncodedSample)
    ] == [
        "sample",
        "latents",
        "masks",
        "sizes",
        "conditioning",
        "empty",
    ]
    assert item.latents.dtype == torch.float32 and not item.latents.requires_grad


def test_masks_are_those_of_the_plan_not_those_on_disk_by_now(folder):
    """A training state knows the masks that were planned; others must not be trained with."""
    for number in (0, 1):
        Image.new("L", (128, 64), 0).save(folder / f"{number}-masklabel.png")
    planned = {folder / "0.png": folder / "0-masklabel.png"}
    items = encoded(folder, masks=planned)
    assert not items[0].masks.any() and items[1].masks is None
    (folder / "0-masklabel.png").unlink()
    with pytest.raises(Refused, match="0-masklabel.png is gone"):
        encoded(folder, masks=planned)
