"""Finds pictures of a data set that look nearly the same, by a perceptual hash and by colours."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

HASH_PX = 32
FREQUENCIES = 8
MOSAIC_PX = 8
MOST_DUPLICATES = 12  # listed for a picture; the frames of a video would all be alike
MOST_DIFFERENT_BITS = 12  # of 63; docs/log.md has what these two limits catch
MOST_COLOUR_DISTANCE = 20.0  # mean absolute difference, of 255
ROWS = 256  # of the matrix of pictures by pictures that are compared at once


class Looks(NamedTuple):
    """How a picture looks: its `perceptual_hash`, 63 bits in 8 bytes, and its `mosaic`, the bytes
    of uint8 `(8, 8, 3)`.
    """

    hash: bytes
    mosaic: bytes


def perceptual_hash(image: Image.Image) -> bytes:
    """Return 63 bits of an RGB image: which of its lowest frequencies lie above their median.

    "pHash", as Zauner describes it (Implementation and Benchmarking of Perceptual Image Hash
    Functions, 2010, section 3.2.1), without the constant term.
    """
    resized = image.convert("L").resize((HASH_PX, HASH_PX), Image.Resampling.LANCZOS)
    grey = np.asarray(resized, dtype=np.float64)
    at = np.arange(HASH_PX)
    cosines = np.cos(np.pi / HASH_PX * (at[None, :] + 0.5) * at[:FREQUENCIES, None])
    lowest = (cosines @ grey @ cosines.T).ravel()[1:]
    return np.packbits(lowest > np.median(lowest)).tobytes()


def mosaic(image: Image.Image) -> bytes:
    """Return an RGB image as 8 x 8 colours, the bytes of uint8 `(8, 8, 3)`."""
    small = image.resize((MOSAIC_PX, MOSAIC_PX), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.uint8).tobytes()


class DuplicateFinder:
    """Finds near-duplicates, and compares again only when the pictures have changed."""

    def __init__(self) -> None:
        self._newest: tuple[dict[str, Looks], dict[str, list[str]]] = {}, {}

    def find(self, looks: Mapping[str, Looks]) -> dict[str, list[str]]:
        """As `near_duplicates`."""
        compared, duplicates = self._newest
        if list(compared.items()) != list(looks.items()):
            duplicates = near_duplicates(looks)
            self._newest = dict(looks), duplicates
        return duplicates


def near_duplicates(looks: Mapping[str, Looks]) -> dict[str, list[str]]:
    """Return, for each picture that has any, the first others that look nearly the same.

    Compares all with all, `ROWS` at a time: 20,000 pictures take seconds, and memory for
    `ROWS` x 20,000 numbers. Pictures without a hash are left out.
    """
    names = [name for name, of_picture in looks.items() if of_picture.hash]
    if len(names) < 2:
        return {}
    bits = _rows_of([looks[name].hash for name in names])
    bits = np.unpackbits(bits, axis=1).astype(np.float32)
    colours = _rows_of([looks[name].mosaic for name in names]).astype(np.int16)
    ones = bits.sum(axis=1)
    found = {}
    for start in range(0, len(names), ROWS):
        block = slice(start, start + ROWS)
        different = ones[block, None] + ones[None, :] - 2 * (bits[block] @ bits.T)
        for row, alike in enumerate(different <= MOST_DIFFERENT_BITS, start=start):
            duplicates = _with_alike_colours(colours, row, np.flatnonzero(alike))
            if duplicates:
                found[names[row]] = [names[other] for other in duplicates]
    return found


def _rows_of(values: list[bytes]) -> np.ndarray:
    """Return byte strings of one length as uint8 `(strings, length)`."""
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)


def _with_alike_colours(colours: np.ndarray, row: int, others: np.ndarray) -> list[int]:
    """Return the first `MOST_DUPLICATES` of the rows `others` whose colours are nearly those of a
    row; colours are int16 `(pictures, 192)`.
    """
    found: list[int] = []
    for start in range(0, len(others), ROWS):
        some = others[start : start + ROWS]
        distance = np.abs(colours[some] - colours[row]).mean(axis=1)
        found += [int(other) for other in some[distance <= MOST_COLOUR_DISTANCE] if other != row]
        if len(found) >= MOST_DUPLICATES:
            break
    return found[:MOST_DUPLICATES]
