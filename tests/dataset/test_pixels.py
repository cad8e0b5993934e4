"""Pixels in place, and in other colours."""

import colorsys

import numpy as np
import torch
from PIL import Image

from lora_trainer.base.rng import generator
from lora_trainer.dataset.buckets import Bucket, assign_bucket
from lora_trainer.dataset.pixels import LUMA, jitter_colors, load_pixels


def test_without_enlarging_pixels_stay_as_they_are(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (90, 110, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels, size = load_pixels(
        tmp_path / "a.png", assign_bucket(110, 90, resolution=512, no_upscale=True)
    )
    assert torch.equal(
        pixels,
        torch.from_numpy(values[13:77, 23:87].astype(np.float32) / 127.5 - 1).permute(2, 0, 1),
    )
    assert size.numbers() == [90, 110, 13, 23, 64, 64]


def test_a_bucket_without_its_covering_size_is_covered(tmp_path):
    Image.new("RGB", (110, 90)).save(tmp_path / "a.png")
    assert load_pixels(tmp_path / "a.png", Bucket(64, 64), whole=True)[0].shape == (
        3,
        64,
        72,
    )  # 78 wide, of which 72 make latents


def by_hand(colours, strength, draws):
    """The same on `(n, 3)` colours in [0, 1], with Python's own colour conversion for one colour
    after the other.
    """
    bright, contrast, saturation = [
        1 + strength * (2 * number - 1) for number in torch.rand(3, generator=draws).tolist()
    ]
    turn = 2 * np.pi * strength / 4 * (2 * torch.rand((), generator=draws).item() - 1)
    colours = np.clip(colours * bright, 0, 1)
    mean = (colours @ np.array(LUMA)).mean()
    colours = np.clip(mean + contrast * (colours - mean), 0, 1)
    yiq = np.array([colorsys.rgb_to_yiq(*colour) for colour in colours])
    chroma = (yiq[:, 1] + 1j * yiq[:, 2]) * saturation * np.exp(1j * turn)
    turned = np.stack([yiq[:, 0], chroma.real, chroma.imag], axis=1)
    return np.array([colorsys.yiq_to_rgb(*colour) for colour in turned])  # which clips at 0 and 1


def test_jitter_is_brightness_contrast_saturation_and_hue():
    colours = np.random.default_rng(3).random((64, 3))
    pixels = torch.from_numpy(colours * 2 - 1).float().T.reshape(3, 8, 8)
    for number in range(6):
        found = jitter_colors(pixels, 0.3, generator(1, "x", number))
        expected = (
            torch.from_numpy(by_hand(colours, 0.3, generator(1, "x", number)) * 2 - 1)
            .float()
            .T.reshape(3, 8, 8)
        )
        assert torch.allclose(found, expected, atol=2e-5) and not torch.allclose(
            found, pixels, atol=0.01
        )


def test_jitter_keeps_grey_grey_and_its_strength():
    grey = torch.linspace(-1, 1, 64).expand(3, 8, 64).contiguous()
    for number in range(20):
        found = jitter_colors(grey, 0.1, generator(1, "x", number))
        assert (
            torch.allclose(found[0], found[1], atol=1e-5)
            and (found - grey).abs().max() < 0.1 * 2 * 2.5
            and found.abs().max() <= 1
        )
    assert torch.allclose(jitter_colors(grey, 0.0, generator(1, "x")), grey, atol=1e-6)


def test_pixels_cover_the_bucket_from_the_middle(tmp_path):
    values = np.zeros((64, 192, 3), np.uint8)
    values[:, 64:128] = 255  # a white middle third
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels, size = load_pixels(tmp_path / "a.png", Bucket(64, 64))
    assert pixels.shape == (3, 64, 64) and pixels.min() == 1.0
    assert (size.original_width_px, size.crop_left_px, size.target_width_px) == (192, 64, 64)
    assert load_pixels(tmp_path / "a.png", Bucket(64, 64), whole=True)[0].shape == (3, 64, 192)
