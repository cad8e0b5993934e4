"""Masks: which file is whose, where the mask lies over the latents, and what is said of those that
are missing or spoiled.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.dataset.buckets import Bucket, assign_bucket
from lora_trainer.dataset.masks import check_mask, find_masks, is_opaque, load_mask
from lora_trainer.dataset.pixels import load_pixels
from lora_trainer.dataset.sample import Picture
from lora_trainer.dataset.scan import examine, scan


def picture(folder, name="a.png", size=(128, 64), **kwargs):
    Image.new(kwargs.pop("mode", "RGB"), size, **kwargs).save(folder / name)
    return examine(folder / name)


def half_white(size=(128, 64), mode="L"):
    """Black on the left, white on the right."""
    image = Image.new(mode, size, 0)
    image.paste(1 if mode == "1" else 255, (size[0] // 2, 0, *size))
    return image


def test_both_ways_to_name_masks_and_neither_is_a_picture(tmp_path):
    (tmp_path / "mask").mkdir()
    for name in (
        "a.jpg",
        "b.png",
        "c.png",
        "d e.webp",
        "a-masklabel.png",
        "mask/b.png",
        "mask/a.png",
        "mask/d e.jpg",
    ):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    pictures, problems = scan(tmp_path)
    assert [each.path.name for each in pictures] == [
        "a.jpg",
        "b.png",
        "c.png",
        "d e.webp",
    ] and not problems
    found = find_masks(each.path for each in pictures)
    assert {path.name: mask.relative_to(tmp_path).as_posix() for path, mask in found.items()} == {
        "a.jpg": "a-masklabel.png",
        "b.png": "mask/b.png",
        "d e.webp": "mask/d e.jpg",
    }


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "I;16"])
def test_white_is_learned_in_any_kind_of_picture(tmp_path, mode):
    base = picture(tmp_path)
    mask = half_white()
    (
        Image.fromarray(np.asarray(mask, np.uint16) * 257) if mode == "I;16" else mask.convert(mode)
    ).save(tmp_path / "m.png")
    found = load_mask(base, Bucket(128, 64), mask_path=tmp_path / "m.png")
    assert found.shape == (1, 8, 16) and found.dtype == torch.float32
    assert torch.equal(found, torch.cat([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], -1))


def test_transparent_parts_of_a_mask_are_black(tmp_path):
    mask = Image.new("RGBA", (128, 64), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (64, 0, 128, 64))
    mask.save(tmp_path / "m.png")
    assert (
        load_mask(picture(tmp_path), Bucket(128, 64), mask_path=tmp_path / "m.png")[0, 0].tolist()
        == [0.0] * 8 + [1.0] * 8
    )


def test_area_is_averaged_and_the_floor_is_the_least(tmp_path):
    base, values = (
        picture(tmp_path, size=(64, 64)),
        np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8),
    )
    Image.fromarray(values).save(tmp_path / "m.png")
    expected = np.stack(
        [
            [values[y : y + 8, x : x + 8].mean() / 255 for x in range(0, 64, 8)]
            for y in range(0, 64, 8)
        ]
    )
    found = load_mask(base, Bucket(64, 64), mask_path=tmp_path / "m.png")
    assert np.allclose(found[0].numpy(), expected, atol=1e-6)
    floor = float(np.median(expected))
    assert np.allclose(
        load_mask(base, Bucket(64, 64), mask_path=tmp_path / "m.png", floor=floor)[0].numpy(),
        np.maximum(expected, floor),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "size, bucket, whole",
    [
        ((512, 256), Bucket(64, 64), False),
        ((512, 256), Bucket(64, 64), True),
        ((100, 180), Bucket(64, 64), False),
        ((150, 70), None, False),
        ((150, 70), None, True),
    ],
)
def test_a_mask_lies_where_its_picture_lies(tmp_path, size, bucket, whole):
    """A picture that is its own mask: the latents' places have the mean of the pixels that the VAE
    gets there.
    """
    noise = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (size[1] // 10, size[0] // 10), np.uint8)
    ).resize(size, Image.BICUBIC)
    noise.save(tmp_path / "a.png")
    noise.resize((size[0] // 2, size[1] // 2), Image.BOX).save(tmp_path / "half.png")
    base, bucket = (
        examine(tmp_path / "a.png"),
        bucket or assign_bucket(*size, resolution=512, no_upscale=True),
    )
    pixels, _ = load_pixels(tmp_path / "a.png", bucket, whole=whole)
    expected = torch.nn.functional.avg_pool2d((pixels.mean(0, keepdim=True) + 1) / 2, 8)
    for name, near in (("a.png", 0.01), ("half.png", 0.03)):
        found = load_mask(base, bucket, mask_path=tmp_path / name, whole=whole)
        assert found.shape == expected.shape and (found - expected).abs().max() < near
    assert expected.std() > 0.05


def test_a_mask_of_another_shape_is_stretched_over_its_picture(tmp_path):
    half_white((100, 100)).save(tmp_path / "m.png")
    base = picture(tmp_path, size=(256, 64))
    found = load_mask(base, Bucket(128, 64), mask_path=tmp_path / "m.png", whole=True)
    assert (
        found.shape == (1, 8, 32)
        and (found[0, :, :15] == 0).all()
        and (found[0, :, 17:] == 1).all()
    )


def test_transparency_turned_as_the_camera_says(tmp_path):
    image, exif = Image.new("RGBA", (64, 128), (200, 0, 0, 255)), Image.Exif()
    image.paste((0, 0, 0, 0), (0, 0, 64, 32))  # a transparent top; upright it is on the right
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    base = examine(tmp_path / "a.png")
    assert (base.width, base.height) == (128, 64) and not is_opaque(base)
    found = load_mask(base, Bucket(128, 64), mask_path=None)
    assert torch.equal(found, torch.cat([torch.ones(1, 8, 12), torch.zeros(1, 8, 4)], -1))


def test_a_picture_without_transparency_is_learned_everywhere(tmp_path):
    base = picture(tmp_path)
    assert is_opaque(base) and load_mask(base, Bucket(128, 64), mask_path=None, floor=0.5) is None


def test_what_is_said_of_masks(tmp_path):
    base = picture(tmp_path)
    Image.new("L", (256, 128), 255).save(tmp_path / "good.png")
    Image.new("L", (128, 64), 1).save(tmp_path / "dark.png")
    Image.new("L", (100, 100), 255).save(tmp_path / "square.png")
    (tmp_path / "bad.png").write_text("no picture")
    assert check_mask(tmp_path / "good.png", base) == ""
    assert (
        "black all over: nothing of a.png is learned" in check_mask(tmp_path / "dark.png", base)
        and check_mask(tmp_path / "dark.png", base, thorough=False) == ""
    )
    assert "is 100x100, its picture 128x64" in check_mask(
        tmp_path / "square.png", base, thorough=False
    )
    for file, sentence in (("bad.png", "is not a picture"), ("none.png", "cannot be read")):
        with pytest.raises(Refused, match=sentence):
            check_mask(tmp_path / file, base)
    with pytest.raises(Refused, match="none.png is gone"):
        load_mask(base, Bucket(128, 64), mask_path=tmp_path / "none.png")


def test_a_quick_look_decodes_no_mask(tmp_path, monkeypatch):
    base = picture(tmp_path)
    Image.linear_gradient("L").resize((128, 64)).save(tmp_path / "m.png")
    monkeypatch.setattr(Image.Image, "load", lambda *args: pytest.fail("decoded"))
    assert check_mask(tmp_path / "m.png", base, thorough=False) == "" and isinstance(base, Picture)
