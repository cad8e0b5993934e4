"""What the page shows of pictures: previews, and what training sees."""

import io

import numpy as np
from PIL import Image

from lora_trainer.editor.checks import CheckSettings


def test_crop_shows_what_the_trainer_gets(editor, folder):
    gradient = np.zeros((300, 900, 3), np.uint8)
    gradient[:, :, 0] = np.linspace(0, 255, 900).astype(np.uint8)
    Image.fromarray(gradient).save(folder / "wide.png")
    wanted = CheckSettings(resolution=256, enable_bucket=False)
    crop = editor.pictures.check(wanted)["pictures"]["wide.png"]["crop"]
    assert crop == {
        "bucket": [256, 256],
        "left": 300.0,
        "top": 0.0,
        "width": 300.0,
        "height": 300.0,
    }
    with Image.open(io.BytesIO(editor.pictures.training_crop("wide.png", wanted))) as image:
        pixels = np.asarray(image)
        assert (
            image.size == (256, 256)
            and abs(int(pixels[128, 2, 0]) - 85) < 8
            and abs(int(pixels[128, 253, 0]) - 170) < 8
        )
    with Image.open(io.BytesIO(editor.pictures.preview("wide.png"))) as image:
        assert image.size == (900, 300)
