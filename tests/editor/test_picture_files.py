"""Single picture files: turned, and the prompt that they hold."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_trainer.base.errors import Refused
from tests.support.edited_sets import picture


def test_a_prompt_in_a_picture_becomes_its_caption(tmp_path):
    from lora_trainer.editor.picture_files import prompt_of

    texts = PngInfo()
    texts.add_text(
        "parameters",
        "(masterpiece:1.2), a [red] cat \\(toy\\), <lora:zib:0.8>, <lyco:x:1>\nNegative prompt:"
        " bad\nSteps: 20, Sampler: Euler",
    )
    picture(tmp_path / "a.png", pnginfo=texts)
    assert prompt_of(tmp_path / "a.png") == "masterpiece, a red cat \\(toy\\)"
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"UNICODE\x00" + "猫, cat\nSteps: 20".encode("utf-16-be")}
    picture(tmp_path / "b.jpg", exif=exif)
    assert prompt_of(tmp_path / "b.jpg") == "猫, cat"
    picture(tmp_path / "c.png")
    texts = PngInfo()
    texts.add_text("parameters", "Negative prompt: bad\nSteps: 20")
    picture(tmp_path / "d.png", pnginfo=texts)
    assert prompt_of(tmp_path / "c.png") == prompt_of(tmp_path / "d.png") == ""


@pytest.mark.parametrize(
    "name, extra",
    [
        ("a.jpg", {}),
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.bmp", {}),
        ("a.gif", {}),
        ("a.tif", {}),
    ],
)
def test_every_format_can_be_turned(tmp_path, name, extra):
    from lora_trainer.editor.picture_files import rotated

    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = (250, 10, 10)
    Image.fromarray(pixels).save(tmp_path / name, **extra)
    with Image.open(io.BytesIO(rotated(tmp_path / name, 90))) as image:
        turned = np.asarray(image.convert("RGB"))
        assert (
            image.size == (40, 80) and turned[10, 20, 0] > 200 and turned[70, 20, 0] < 50
        )  # clockwise: the left side is now at the top


def test_an_upright_picture_stays_upright_when_the_camera_said_how(tmp_path):
    from lora_trainer.editor.picture_files import rotated

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "a.jpg", size=(80, 40), exif=exif)  # shown as 40 x 80
    with Image.open(io.BytesIO(rotated(tmp_path / "a.jpg", 90))) as image:
        assert image.size == (80, 40) and image.getexif().get(0x0112, 1) == 1
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    picture(tmp_path / "c.png", size=(80, 40), exif=exif)
    with Image.open(io.BytesIO(rotated(tmp_path / "c.png", 90))) as image:
        assert image.size == (40, 80) and image.getexif()[0x010F] == "a camera"
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "phone.mpo.jpg", "MPO", save_all=True, append_images=frames[1:])
    rotated(tmp_path / "phone.mpo.jpg", 180)
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(Refused, match="animated"):
        rotated(tmp_path / "b.gif", 90)
