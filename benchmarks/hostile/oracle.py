"""What an image file is to a network, by the rules that tinynet has to follow, without tinynet.

16 bits become 8 by dividing by 257, floats in [0, 1] are scaled by 255, transparent pixels lie on
white. Other floats have no one meaning, and are refused, as are more than 110 megapixels.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.hostile.world import SIDE

MOST = 110_000_000  # pixels
_PHOTOMETRIC = 262  # a tag of TIFF
_ROUNDED = 1e-4  # beyond 0 and 1, which rounding may have left
# programs that draw, and foreign containers
_NO_IMAGES = ("EPS", "WMF", "PDF", "MPEG", "HDF5", "BUFR", "GRIB", "FITS")


@dataclass(frozen=True)
class Meaning:
    """The pixels of an image, (H, W, 3) float from 0 to 255; None where it is to be refused.

    `doubtful`: whether it may be refused all the same.
    """

    pixels: np.ndarray | None
    doubtful: bool = False


REFUSED = Meaning(None)


def meaning(data: bytes, upright: bool = False) -> Meaning:
    """Of the bytes of a file; `upright`: turned as its EXIF data say."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            if image.format in _NO_IMAGES or image.size[0] * image.size[1] > MOST:
                return REFUSED
            if max(image.size) > 50 * min(image.size):
                return REFUSED
            image.load()
            turned, doubtful = _upright(image) if upright else (image, False)
            turned.tag_v2 = getattr(image, "tag_v2", {})  # which a turned image has lost
            known = of(turned)
            return Meaning(known.pixels, known.doubtful or doubtful)
    except Exception:  # a decoder may raise anything
        return REFUSED


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image turned as its EXIF data say; as it is where those are broken, which may be refused
    too.
    """
    try:
        return ImageOps.exif_transpose(image), False
    except Exception:  # a reader of EXIF data may raise anything
        return image, True


def of(image: Image.Image) -> Meaning:
    """Of an image that is decoded."""
    inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0  # white is zero
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64) / 257
        return Meaning(_grey(255 - grey if inverted else grey))
    if image.mode == "I":
        # 32 bits usually hold 16; whoever refuses them is right too.
        values = np.asarray(image)
        return (
            Meaning(_grey(values / 257), doubtful=True)
            if 0 <= values.min() <= values.max() <= 65535
            else REFUSED
        )
    if image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        if not (values.min() >= -_ROUNDED and values.max() <= 1 + _ROUNDED):
            return REFUSED
        grey = values.clip(0, 1) * 255
        return Meaning(_grey(255 - grey if inverted else grey))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return Meaning(_on_white(image))
    return Meaning(np.asarray(image.convert("RGB"), np.float64))


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, 2)


def _on_white(image: Image.Image) -> np.ndarray:
    if image.mode == "La":
        image = image.convert("LA")
    colours = np.asarray(image.convert("RGBA"), np.float64)
    cover = colours[..., 3:] / 255
    return colours[..., :3] * cover + 255 * (1 - cover)


def quarters(pixels: np.ndarray) -> list[list[float]]:
    """Means over the four quarters of the square of `SIDE` pixels that a network sees of an
    image.
    """
    height, width = pixels.shape[:2]
    if min(height, width) != SIDE:
        scale = SIDE / min(height, width)
        sides = max(SIDE, int(width * scale)), max(SIDE, int(height * scale))
        whole = Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8)).resize(
            sides, Image.Resampling.BILINEAR
        )
        pixels = np.asarray(whole, np.float64)
    top, left = round((pixels.shape[0] - SIDE) / 2), round((pixels.shape[1] - SIDE) / 2)
    square = pixels[top : top + SIDE, left : left + SIDE]
    half = SIDE // 2
    cells = square.reshape(2, half, 2, half, 3).mean((1, 3)).reshape(4, 3)
    return cells.tolist()


def truth(data: bytes, upright: bool = True) -> dict[str, Any]:
    """What the maker of a case hands on: the quarters, or None, and whether it may be refused."""
    known = meaning(data, upright)
    return {
        "quarters": None if known.pixels is None else quarters(known.pixels),
        "doubtful": known.doubtful,
    }
