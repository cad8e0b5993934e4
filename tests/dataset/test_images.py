"""Image files as people have them: opened by their content, decoded upright and in 8-bit RGB."""

import numpy as np
import pytest
from PIL import Image

from lora_trainer.dataset import images
from lora_trainer.dataset.images import decode_thumbnail, read_rgb
from lora_trainer.dataset.sample import Picture
from lora_trainer.dataset.scan import examine, scan


def test_exif_rotation(tmp_path):
    image = Image.new("RGB", (100, 50), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert (examine(tmp_path / "a.jpg").width, read_rgb(tmp_path / "a.jpg").size) == (50, (50, 100))


def test_cmyk_16_bit_palette_and_transparency(tmp_path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((32, 32), 65535, np.uint16)).save(tmp_path / "grey16.png")
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(read_rgb(tmp_path / "cmyk.jpg"))[0, 0, 0] > 180
    assert np.asarray(read_rgb(tmp_path / "grey16.png")).min() == 255
    assert np.asarray(read_rgb(tmp_path / "clear.png")).min() == 255
    assert "transparent parts become white" in examine(tmp_path / "clear.png").warnings


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_first_page_of_a_tiff_is_used(tmp_path, compression, thorough):
    path = tmp_path / "a.tif"
    Image.new("RGB", (64, 48), "red").save(
        path,
        save_all=True,
        append_images=[Image.new("RGB", (32, 32), "blue")],
        compression=compression,
    )
    found = examine(path, thorough=thorough)
    assert (
        isinstance(found, Picture)
        and (found.width, found.height) == (64, 48)
        and found.warnings == ("several pages: only the first is used", "no caption")
    )
    assert (
        decode_thumbnail(path, 32)[1].getpixel((0, 0))
        == read_rgb(path).getpixel((0, 0))
        == (255, 0, 0)
    )


def test_animated_gif_uses_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = examine(tmp_path / "a.gif")
    assert isinstance(found, Picture) and "animated: only the first frame is used" in found.warnings
    assert np.asarray(read_rgb(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


def test_bomb_is_refused_without_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 1000)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert "million pixels" in scan(tmp_path)[1][0].reason


def test_a_small_view_is_the_same_however_large_the_picture(tmp_path):
    """It is scaled down before its colours are converted; edges keep their colour, transparency
    becomes white.
    """
    image = Image.new("RGBA", (3000, 2000), (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (1500, 0, 3000, 2000))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    facts, small = images.decode_thumbnail(tmp_path / "a.png", 300)
    assert (
        (facts.width, facts.height) == (2000, 3000)
        and small.size == (200, 300)
        and small.mode == "RGB"
    )
    assert small.getpixel((100, 50)) == (200, 30, 30) and small.getpixel((100, 250)) == (
        255,
        255,
        255,
    )
