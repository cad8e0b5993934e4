"""Data sets that are edited in tests: pictures, and what the page is shown of them."""

import numpy as np
from PIL import Image

from lora_trainer.editor.checks import CheckSettings


def picture(path, size=(64, 48), colour="red", **extra):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **extra)
    return path


def rows(editor):
    return {row["filename"]: row for row in editor.describe()["pictures"]}


def captions(editor):
    return {name: row["caption"] for name, row in rows(editor).items()}


def checked(editor, wanted=CheckSettings()):
    while not (found := editor.pictures.check(wanted))["ready"]:
        pass
    return found


def codes(found, filename):
    return {remark["code"] for remark in found["pictures"][filename]["remarks"]}


def noise(seed, size=(640, 640)):
    cells = np.random.RandomState(seed).randint(0, 255, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize(size, Image.BICUBIC)
