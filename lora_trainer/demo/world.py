"""The world of the embedded models: scenes of one shape on a background, their captions and
pictures, and a judge that recognises the scene from the pixels.

Pictures are computed with numpy from signed distances, so a scene gives the same picture with every
library version. `pretrain` trains the embedded checkpoint on this world; `concept` adds the one
thing that the checkpoint has never seen.
"""

import dataclasses
import functools
import itertools
import zlib

import numpy as np

PICTURE_PX = 64
COLOURS = {
    "red": (214, 40, 40),
    "orange": (243, 140, 30),
    "yellow": (247, 222, 60),
    "green": (46, 160, 67),
    "blue": (45, 90, 215),
    "purple": (140, 60, 180),
    "black": (24, 24, 28),
    "white": (246, 246, 246),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES_PX = {"small": 9.5, "": 15.0, "large": 22.0}
POSITIONS = {"": (32, 32), "left": (18, 32), "right": (46, 32), "top": (32, 18), "bottom": (32, 46)}
STRIPE_PX = 16


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a picture shows; `size` and `position` are "" for the usual ones, which captions leave
    out.
    """

    shape: str
    colour: str
    background: str
    size: str = ""
    position: str = ""
    striped: bool = False

    @property
    def caption(self) -> str:
        words = [self.size, self.colour, self.shape]
        if self.position in ("left", "right"):
            words += ["on", "the", self.position]
        elif self.position:
            words += ["at", "the", self.position]
        ground = f"{self.background} background"
        if self.striped:
            ground = f"striped {ground}"
        return f"{with_article(' '.join(word for word in words if word))} on {with_article(ground)}"

    @property
    def held_out(self) -> bool:
        """Whether this combination of shape, colour and background is kept from pretraining, to be
        asked for by the judge.
        """
        return zlib.crc32(f"{self.shape}/{self.colour}/{self.background}".encode()) % 5 == 0


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def combinations(*, held_out: bool) -> list[Scene]:
    """Return every plain scene whose combination is, or is not, kept from pretraining."""
    scenes = (
        Scene(shape, colour, background)
        for shape, colour, background in itertools.product(SHAPES, COLOURS, COLOURS)
        if colour != background
    )
    return [scene for scene in scenes if scene.held_out == held_out]


def random_scene(rng: np.random.RandomState, *, held_out: bool = False) -> Scene:
    """Choose a scene: five in seven of usual size, three in four in the middle, one in ten striped,
    colours and shapes evenly.

    A large shape is always in the middle, where it fits.
    """
    possible = combinations_of(held_out)
    plain = possible[rng.randint(len(possible))]
    size = (*[""] * 5, "small", "large")[rng.randint(7)]
    position = ""
    if size != "large" and rng.rand() >= 0.75:
        position = ("left", "right", "top", "bottom")[rng.randint(4)]
    return dataclasses.replace(plain, size=size, position=position, striped=bool(rng.rand() < 0.1))


@functools.cache
def combinations_of(held_out: bool) -> tuple[Scene, ...]:
    return tuple(combinations(held_out=held_out))


def paint(scene: Scene, rng: np.random.RandomState | None = None) -> np.ndarray:
    """Paint a scene as uint8 `(64, 64, 3)` in [0, 255]; `rng` moves and scales the shape by a few
    pixels.
    """
    centre, radius = _placement(scene, rng)
    canvas = paint_background(scene.background, striped=scene.striped)
    return to_bytes(blend(canvas, colour_of(scene.colour), coverage(scene.shape, centre, radius)))


def paint_background(colour: str, *, striped: bool = False) -> np.ndarray:
    """Return a background as float32 `(64, 64, 3)` in [0, 1]; stripes alternate with a paler shade
    (a darker one of white).
    """
    shape = (PICTURE_PX, PICTURE_PX, 3)
    canvas = np.broadcast_to(colour_of(colour), shape).astype(np.float32).copy()
    if striped:
        shade = 0.25 if colour == "white" else 0.5
        canvas[_pale_rows()] = canvas[_pale_rows()] * 0.5 + shade
    return canvas


def coverage(
    shape: str, centre: tuple[float, float], radius: float, size_px: int = PICTURE_PX
) -> np.ndarray:
    """Return how much of each pixel a shape covers: float32 `(size_px, size_px)` in [0, 1], edges
    one pixel soft.
    """
    y, x = np.mgrid[0:size_px, 0:size_px].astype(np.float32) + 0.5
    distance = _distance(shape, x - centre[0], y - centre[1], radius)
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def colour_of(name: str) -> np.ndarray:
    return np.asarray(COLOURS[name], np.float32) / 255


def blend(canvas: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return canvas + (colour - canvas) * cover[..., None]


def to_bytes(canvas: np.ndarray) -> np.ndarray:
    return np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def _placement(
    scene: Scene, rng: np.random.RandomState | None
) -> tuple[tuple[float, float], float]:
    x, y = POSITIONS[scene.position]
    radius = SIZES_PX[scene.size]
    if rng is None:
        return (x, y), radius
    dx, dy = rng.uniform(-2.5, 2.5, 2)
    return (x + dx, y + dy), radius * rng.uniform(0.92, 1.08)


def _pale_rows() -> np.ndarray:
    return (np.arange(PICTURE_PX) // STRIPE_PX) % 2 == 1


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Return the signed distance in pixels, negative inside, to a shape around the origin.

    Shapes of one radius have nearly the same area.
    """
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - radius * 0.9
    if shape == "triangle":
        down, slanted = y - radius * 0.8, abs(x) * 0.866 - (y + radius * 1.1) * 0.5
        return np.maximum(down, slanted)
    bar, arm = radius * 0.36, radius * 1.08
    upright = np.maximum(abs(x) - bar, abs(y) - arm)
    level = np.maximum(abs(x) - arm, abs(y) - bar)
    return np.minimum(upright, level)


# --- The judge ------------------------------------------------------------------------------------


@functools.cache
def _templates() -> tuple[list[tuple[str, str, str]], np.ndarray]:
    """Return names and masks `(n, 4096)` of every shape, size and position, each in nine places a
    few pixels apart and in two sizes.
    """
    names, masks = [], []
    for shape, size, position in itertools.product(SHAPES, SIZES_PX, POSITIONS):
        if size == "large" and position:
            continue
        x, y = POSITIONS[position]
        for dx, dy, scale in itertools.product((-3, 0, 3), (-3, 0, 3), (0.93, 1.07)):
            names.append((shape, size, position))
            masks.append(coverage(shape, (x + dx, y + dy), SIZES_PX[size] * scale).ravel())
    return names, np.stack(masks)


def see(picture: np.ndarray) -> Scene:
    """Say what a picture shows, from its pixels alone: uint8 `(64, 64, 3)` to a `Scene`.

    Each template splits the picture into shape, even rows and odd rows of the background; the one
    that leaves the least variance within the three parts wins, and the parts' mean colours give the
    names.
    """
    names, masks = _templates()
    pixels = picture.reshape(-1, 3).astype(np.float32) / 255
    pale = np.repeat(_pale_rows(), PICTURE_PX).astype(np.float32)
    regions = np.stack([masks, (1 - masks) * (1 - pale), (1 - masks) * pale])  # (3, n, 4096)
    weight = regions.sum(-1) + 1e-6
    means = regions @ pixels / weight[..., None]  # (3, n, 3)
    explained = (weight[..., None] * means**2).sum((0, 2))
    best = int(explained.argmax())
    shape, size, position = names[best]
    inside, even, odd = means[:, best]
    return Scene(
        shape,
        nearest_colour(inside),
        nearest_colour(even),
        size,
        position,
        bool(np.abs(even - odd).mean() > 0.08),
    )


def nearest_colour(rgb: np.ndarray) -> str:
    """Name the colour of the world nearest to float `(3,)` in [0, 1]."""
    return min(COLOURS, key=lambda name: float(((colour_of(name) - rgb) ** 2).sum()))
