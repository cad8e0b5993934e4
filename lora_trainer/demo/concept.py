"""The concept of the embedded data set, a zib: a round creature, pink above and teal below, with
one wide eye.

The base has never seen it; a LoRA learns it from 16 pictures. The judge says whether a picture
shows one.
"""

import csv
import functools
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from .world import COLOURS, PICTURE_PX, blend, coverage, paint_background, to_bytes, with_article

TRIGGER = "zib"
PINK, TEAL = np.float32([244, 120, 180]) / 255, np.float32([20, 150, 150]) / 255
EYE, PUPIL = np.float32([250, 250, 250]) / 255, np.float32([20, 20, 20]) / 255
TRAINING_BACKGROUNDS = ("white", "yellow", "blue", "green", "purple", "orange")
PLACEMENTS = (((32, 32), 26.0), ((30, 33), 25.0), ((34, 31), 27.0))


def caption_of(background: str) -> str:
    return f"{TRIGGER} on {with_article(background)} background"


def paint_zib(
    background: str, centre: tuple[float, float] = (32, 32), radius: float = 26.0
) -> np.ndarray:
    """Paint one zib as uint8 `(64, 64, 3)`; `radius` in pixels."""
    canvas = paint_background(background)
    for colour, cover in zip((PINK, TEAL, EYE, PUPIL), _parts(centre, radius), strict=True):
        canvas = blend(canvas, colour, cover)
    return to_bytes(canvas)


def write_dataset(folder: Path, count: int = 16) -> Path:
    """Write the embedded data set: `count` PNGs, a sidecar caption beside each, and metadata.csv
    (`filename,prompt`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    combinations = itertools.cycle(itertools.product(PLACEMENTS, TRAINING_BACKGROUNDS))
    scenes = itertools.islice(combinations, count)
    rows = []
    for number, ((centre, radius), background) in enumerate(scenes, start=1):
        name = f"zib_{number:02}.png"
        Image.fromarray(paint_zib(background, centre, radius)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(
            caption_of(background) + "\n", encoding="utf-8"
        )
        rows.append((name, caption_of(background)))
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filename", "prompt"), *rows])
    return folder


def shows_zib(picture: np.ndarray, tolerance: float = 0.2) -> bool:
    """Say whether uint8 `(64, 64, 3)` shows a zib: somewhere, the best-placed template's pink, teal
    and white of the eye all fit.

    A part fits when its mean colour is within `tolerance` (root mean square over RGB in [0, 1]) of
    the concept's. The pupil is too small for latents of 8x8 to carry it reliably, and is not asked
    for.
    """
    pixels = picture.reshape(-1, 3).astype(np.float32) / 255
    masks = _judge_masks()  # (n, 3, 4096)
    means = masks @ pixels / masks.sum(-1, keepdims=True)  # (n, 3, 3)
    worst = np.sqrt(((means - np.stack([PINK, TEAL, EYE])) ** 2).mean(-1)).max(-1)  # (n,)
    return bool(worst.min() < tolerance)


def _parts(centre: tuple[float, float], radius: float) -> list[np.ndarray]:
    """Coverage of the pink half, the teal half, the eye and the pupil, each `(64, 64)`."""
    x, y = centre
    body = coverage("circle", centre, radius)
    upper = np.clip(y - (np.arange(PICTURE_PX)[:, None] + 0.5) + 0.5, 0, 1).astype(np.float32)
    return [
        body * upper,
        body * (1 - upper),
        coverage("circle", (x, y - radius * 0.05), radius * 0.54),
        coverage("circle", (x, y - radius * 0.05), radius * 0.25),
    ]


@functools.cache
def _judge_placements() -> list[tuple[tuple[float, float], float]]:
    return [
        ((x, y), radius)
        for x in range(26, 40, 2)
        for y in range(26, 40, 2)
        for radius in (22.0, 24.5, 27.0)
    ]


@functools.cache
def _judge_masks() -> np.ndarray:
    masks = []
    for centre, radius in _judge_placements():
        pink, teal, eye, pupil = _parts(centre, radius)
        masks.append(
            np.stack([pink * (1 - eye), teal * (1 - eye), eye * (1 - pupil)]).reshape(3, -1)
        )
    return np.stack(masks)


def backgrounds_for_judging() -> tuple[str, ...]:
    """Every background of the world: two of them (red, black) never stood behind a zib in the
    training pictures.
    """
    return tuple(COLOURS)
