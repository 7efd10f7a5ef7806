"""The pixels of an image file by tinynet's rules, computed without tinynet.

16 bits become 8 by dividing by 257, floats in [0, 1] are scaled by 255, transparency is composited
over white. Other floats are ambiguous and refused, and so are more than 110 megapixels.
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
_ROUNDED = 1e-4  # rounding errors beyond 0 and 1
# page descriptions, and containers of other programs
_NO_IMAGES = ("EPS", "WMF", "PDF", "MPEG", "HDF5", "BUFR", "GRIB", "FITS")


@dataclass(frozen=True)
class Meaning:
    """The pixels of an image, (H, W, 3) float from 0 to 255; None: the image must be refused.

    `doubtful`: the image may be refused too.
    """

    pixels: np.ndarray | None
    doubtful: bool = False


REFUSED = Meaning(None)


def meaning(data: bytes, upright: bool = False) -> Meaning:
    """The pixels of a file; `upright`: rotated according to its EXIF data."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            if image.format in _NO_IMAGES or image.size[0] * image.size[1] > MOST:
                return REFUSED
            if max(image.size) > 50 * min(image.size):
                return REFUSED
            image.load()
            turned, doubtful = _upright(image) if upright else (image, False)
            turned.tag_v2 = getattr(image, "tag_v2", {})  # a rotated image has lost these
            pixel_data = of(turned)
            return Meaning(pixel_data.pixels, pixel_data.doubtful or doubtful)
    except Exception:  # a decoder may raise anything
        return REFUSED


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image rotated according to its EXIF data; unchanged if these are broken, and then
    doubtful.
    """
    try:
        return ImageOps.exif_transpose(image), False
    except Exception:  # a reader of EXIF data may raise anything
        return image, True


def of(image: Image.Image) -> Meaning:
    """The pixels of a decoded image."""
    inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0  # white is zero
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64) / 257
        return Meaning(_grey(255 - grey if inverted else grey))
    if image.mode == "I":
        # 32 bits usually contain 16; refusing them is right too.
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
    """The mean colours of the four quarters of the centre crop of `SIDE` pixels."""
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
    """What the maker of a case returns: the quarters, or None, and whether the image may be
    refused.
    """
    pixel_data = meaning(data, upright)
    return {
        "quarters": None if pixel_data.pixels is None else quarters(pixel_data.pixels),
        "doubtful": pixel_data.doubtful,
    }
