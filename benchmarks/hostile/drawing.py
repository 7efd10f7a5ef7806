"""Images for the probe and for SqueezeNet: four quarters of one colour each, or one colour."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from benchmarks.hostile.world import SIDE

Colour = tuple[int, int, int]
GOOD: tuple[Colour, ...] = ((250, 20, 90), (10, 240, 130), (60, 70, 230), (200, 190, 30))
# the colours of the classes 0, 1 and 2
HUES: tuple[Colour, ...] = ((240, 20, 10), (30, 230, 20), (15, 25, 250))


def quartered(
    colours: Sequence[Sequence[float]] = GOOD, side: int = SIDE, dtype: type = np.uint8
) -> np.ndarray:
    """(side, side, channels): top left, top right, bottom left, bottom right."""
    cells = np.array(colours, dtype).reshape(2, 2, -1)
    return cells.repeat(side // 2, 0).repeat(side // 2, 1)


def flat(colour: Sequence[int], side: int = SIDE) -> np.ndarray:
    """(side, side, 3) in one colour."""
    return np.broadcast_to(np.array(colour, np.uint8), (side, side, 3)).copy()


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    """The pixels as the bytes of an image file."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, form)
    return target.getvalue()


GOOD_FILE = encoded(quartered())
