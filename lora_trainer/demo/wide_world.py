"""The pictures that the embedded VAE is trained on, more varied than those of `world`, so that it
also encodes what users bring: solid areas, halves, gradients, coarse patterns, soft textures, and
overlapping shapes in any colour.
"""

import numpy as np

from .world import PICTURE_PX, SHAPES, blend, coverage, paint, random_scene

SOLID, HALVES, GRADIENT, PATTERN, TEXTURE = range(5)
SHARES = (0.35, 0.2, 0.15, 0.1, 0.2)  # of these backgrounds


def random_picture(rng: np.random.RandomState) -> np.ndarray:
    """Paint one picture, float32 `(64, 64, 3)` in [0, 1]; every third is of the narrow world."""
    if rng.rand() < 1 / 3:
        scene = random_scene(rng, held_out=bool(rng.rand() < 0.2))
        return paint(scene, rng).astype(np.float32) / 255
    canvas = _background(rng)
    for _ in range(rng.randint(0, 4)):
        centre, radius = rng.uniform(6, 58, 2), rng.uniform(6, 26)
        cover = coverage(SHAPES[rng.randint(len(SHAPES))], tuple(centre), radius)
        filling = _background(rng) if rng.rand() < 0.2 else np.float32(rng.rand(3))
        canvas = blend(canvas, filling, cover)
    return np.clip(canvas, 0, 1).astype(np.float32)


def _background(rng: np.random.RandomState) -> np.ndarray:
    kind = rng.choice(5, p=SHARES)
    first, second = np.float32(rng.rand(3)), np.float32(rng.rand(3))
    if kind == SOLID:
        return np.broadcast_to(first, (PICTURE_PX, PICTURE_PX, 3)).copy()
    if kind == TEXTURE:
        return _texture(rng, first, second)
    y, x = np.mgrid[0:PICTURE_PX, 0:PICTURE_PX].astype(np.float32) / PICTURE_PX
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == HALVES:
        share = np.clip((along - rng.uniform(-0.3, 0.9)) * PICTURE_PX, 0, 1)
    elif kind == GRADIENT:
        share = (along - along.min()) / (np.ptp(along) + 1e-6)
    else:  # PATTERN: bars or a chequerboard, 10 to 20 pixels wide
        period = rng.uniform(10, 20) / PICTURE_PX
        wave = np.sin(np.pi * along / period)
        if rng.rand() < 0.5:
            wave = wave * np.sin(np.pi * (x * -np.sin(angle) + y * np.cos(angle)) / period)
        share = np.clip(wave * 6 + 0.5, 0, 1)
    return first + (second - first) * share[..., None].astype(np.float32)


def _texture(rng: np.random.RandomState, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Smooth noise: a grid of 4 to 6 random values a side, enlarged linearly."""
    cells = rng.randint(4, 7)
    grid = rng.rand(cells + 1, cells + 1).astype(np.float32)
    at = np.linspace(0, cells, PICTURE_PX, endpoint=False)
    low, part = at.astype(int), (at % 1).astype(np.float32)
    rows = grid[low] * (1 - part[:, None]) + grid[low + 1] * part[:, None]
    share = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return first + (second - first) * share[..., None]
