"""The concept of the embedded data set, a zib: a round creature, pink above and teal below, with one wide eye.

The base has never seen it; a LoRA learns it from 16 pictures. The judge says whether a picture shows one.
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
PLACEMENTS = (((32, 32), 20.0), ((26, 34), 18.0), ((38, 31), 17.0))


def caption_of(background: str) -> str:
    return f"{TRIGGER} on {with_article(background)} background"


def paint_zib(background: str, centre: tuple[float, float] = (32, 32), radius: float = 20.0) -> np.ndarray:
    """Paint one zib as uint8 `(64, 64, 3)`; `radius` in pixels."""
    canvas = paint_background(background)
    for colour, cover in zip((PINK, TEAL, EYE, PUPIL), _parts(centre, radius)):
        canvas = blend(canvas, colour, cover)
    return to_bytes(canvas)


def write_dataset(folder: Path, count: int = 16) -> Path:
    """Write the embedded data set: `count` PNGs, a sidecar caption beside each, and metadata.csv (`filename,prompt`)."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = list(itertools.islice(itertools.cycle(itertools.product(PLACEMENTS, TRAINING_BACKGROUNDS)), count))
    rows = []
    for number, ((centre, radius), background) in enumerate(scenes, start=1):
        name = f"zib_{number:02}.png"
        Image.fromarray(paint_zib(background, centre, radius)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(caption_of(background) + "\n", encoding="utf-8")
        rows.append((name, caption_of(background)))
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filename", "prompt"), *rows])
    return folder


def shows_zib(picture: np.ndarray, tolerance: float = 0.22) -> bool:
    """Say whether uint8 `(64, 64, 3)` shows a zib: somewhere, the best-placed template's pink, teal, eye and pupil all fit.

    A part fits when its mean colour is within `tolerance` (root mean square over RGB in [0, 1]) of the concept's.
    """
    pixels = picture.reshape(-1, 3).astype(np.float32) / 255
    masks = _judge_masks()                                                         # (n, 3, 4096): pink, teal, eye with pupil
    means = masks @ pixels / masks.sum(-1, keepdims=True)                          # (n, 3, 3)
    darkest = np.where(_pupil_masks()[..., None] > 0.5, pixels, 1.0).mean(-1).min(-1)  # (n,)
    wanted = np.stack([PINK, TEAL, EYE])
    worst = np.sqrt(((means - wanted) ** 2).mean(-1)).max(-1)                      # (n,)
    return bool(((worst < tolerance) & (darkest < 0.45)).any())


def _parts(centre: tuple[float, float], radius: float) -> list[np.ndarray]:
    """Coverage of the pink half, the teal half, the eye and the pupil, each `(64, 64)`."""
    x, y = centre
    body = coverage("circle", centre, radius)
    upper = np.clip(y - (np.arange(PICTURE_PX)[:, None] + 0.5) + 0.5, 0, 1).astype(np.float32)
    return [body * upper, body * (1 - upper), coverage("circle", (x, y - radius * 0.12), radius * 0.46),
            coverage("circle", (x, y - radius * 0.05), radius * 0.22)]


@functools.lru_cache(maxsize=None)
def _judge_placements() -> list[tuple[tuple[float, float], float]]:
    return [((x, y), radius) for x in range(22, 44, 2) for y in range(22, 44, 2) for radius in (15.0, 17.5, 20.0, 22.5)]


@functools.lru_cache(maxsize=None)
def _judge_masks() -> np.ndarray:
    masks = []
    for centre, radius in _judge_placements():
        pink, teal, eye, pupil = _parts(centre, radius)
        masks.append(np.stack([pink * (1 - eye), teal * (1 - eye), eye * (1 - pupil)]).reshape(3, -1))
    return np.stack(masks)


@functools.lru_cache(maxsize=None)
def _pupil_masks() -> np.ndarray:
    return np.stack([_parts(centre, radius)[3].ravel() for centre, radius in _judge_placements()])


def backgrounds_for_judging() -> tuple[str, ...]:
    """Every background of the world: two of them (red, black) never stood behind a zib in the training pictures."""
    return tuple(COLOURS)
