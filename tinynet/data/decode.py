"""Decode images to 8-bit RGB; used for archives, folders and predictions.

Every mode that Pillow opens is converted as it looks, or refused by name:

    1, L, P, RGB, CMYK, YCbCr, LAB, HSV   as Pillow converts them; grey becomes three equal channels
    with transparency                     shown over white
    integers of 16 bits (I;16)            by their range: 0 is black, 65,535 is white (in a TIFF of
                                          12 bits 4,095)
    integers of 32 bits (I)               refused: files do not agree on what is white
    floats (F)                            0 is black, 1 is white; anything beyond is refused
"""

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from tinynet.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

# Pillow opens these too, but they are programs that draw, or containers of other data.
_NO_IMAGES = {"EPS", "WMF", "PDF", "MPEG", "HDF5", "BUFR", "GRIB", "FITS", "IPTC"}
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what is wrong is told in one line
PLAIN_MODES = ("L", "RGB")  # modes that need no rule
LARGEST = 110_000_000  # pixels: a phone's photo has 108 million, which take 0.4 GB in RGB
# the sides of an image of more pixels are divided by this, to save memory
_MUCH, _SHRINK = 2**26, 4
# of a progressive JPEG; encoders write about ten, and each goes over the whole image
_MOST_SCANS = 500
_THINNEST = 50  # a longer side by more than this is no image, and resizing it would fill memory
_TOLERANCE = 1e-4  # beyond 0 and 1 that rounding may have left in floats
_STRIP = 2**22  # numbers that are converted at once
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@dataclass(frozen=True)
class Decoded:
    """An RGB image, and the `mode` of its file by Pillow's name (`I;16`, `RGBA`)."""

    image: "Image.Image"
    mode: str

    @property
    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return np.asarray(self.image)


def decode(source: bytes | Path, name: str, upright: bool = False) -> Decoded:
    """Decode `source`, bytes or a path, to RGB; `upright` applies the EXIF orientation.

    `name`: what an error calls it. Raises `InputError` where it cannot be read, is too large, or
    has a mode or values that cannot be shown in 8 bits.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), _long_texts():
            # of bombs, which are looked at here, and of harmless oddities in files
            warnings.simplefilter("ignore")
            stream = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
            with stream, Image.open(stream, formats=_formats()) as image:
                _refuse_many_scans(image, stream)
                with _mute(image):
                    return Decoded(_in_rgb(image, upright), image.mode)
    except UnidentifiedImageError:
        raise InputError(f"{name}: is not an image{_size(source)}") from None
    except _Unfit as error:
        raise InputError(f"{name}: {error}") from None
    except MemoryError:
        raise InputError(f"{name}: out of memory while decoding") from None
    except Exception as error:  # a broken or hostile file raises nearly anything
        reason = (
            getattr(error, "strerror", None)
            or " ".join(str(error).split())[:80]
            or type(error).__name__
        )
        raise InputError(f"{name}: cannot be read as an image ({reason})") from None


@cache
def image_endings() -> frozenset[str]:
    """The endings of file names that images have, such as `.jpeg`, in lower case."""
    from PIL import Image

    Image.init()
    return frozenset(
        ending
        for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NO_IMAGES
    )


@contextmanager
def _long_texts() -> Iterator[None]:
    """Let a PNG have texts and colour profiles of more than a megabyte; Pillow refuses such images
    whole.
    """
    from PIL import PngImagePlugin

    most, PngImagePlugin.MAX_TEXT_CHUNK = (
        PngImagePlugin.MAX_TEXT_CHUNK,
        PngImagePlugin.MAX_TEXT_MEMORY,
    )
    try:
        yield
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK = most


class _Unfit(ValueError):
    """An image that can be read and not be used."""


@cache
def _formats() -> tuple[str, ...]:
    """The formats that may be opened, whatever a file is called: an EPS file would start another
    program.
    """
    from PIL import Image

    Image.init()
    return tuple(kind for kind in Image.ID if kind not in _NO_IMAGES)


def _size(source: bytes | Path) -> str:
    return f" ({len(source):,} bytes)" if isinstance(source, bytes) else ""


def _in_rgb(image: "Image.Image", upright: bool) -> "Image.Image":
    from PIL import ImageOps

    width, height = image.size
    if not min(width, height):
        raise _Unfit(f"has no pixels ({width}x{height})")
    if max(width, height) > _THINNEST * min(width, height):
        raise _Unfit(
            f"is {width}x{height} pixels; the long side may be at most {_THINNEST} times the short "
            "side, so crop it"
        )
    if width * height > LARGEST:
        raise _Unfit(f"is {width}x{height} pixels; at most {LARGEST:,} are allowed, so resize it")
    rgb = _reduced(image) if width * height > _MUCH else _visible(image)
    if upright:
        rgb.info = dict(image.info)
        with suppress(Exception):  # EXIF data that are broken say nothing of the image
            ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _reduced(image: "Image.Image") -> "Image.Image":
    """The image as it looks at a quarter of its sides, in RGB; a JPEG is never decoded in full."""
    from PIL import Image

    image.draft(image.mode, tuple(side // _SHRINK for side in image.size))
    if image.width * image.height <= _MUCH:
        return _visible(image)
    width, height = image.size
    whole, tags = (
        Image.new("RGB", (-(-width // _SHRINK), -(-height // _SHRINK))),
        getattr(image, "tag_v2", None),
    )
    rows = max(1, _STRIP // width // _SHRINK) * _SHRINK
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(height, top + rows)))
        if tags is not None:
            strip.tag_v2 = tags  # say what is white
        whole.paste(_visible(strip).reduce(_SHRINK), (0, top // _SHRINK))
    return whole


def _refuse_many_scans(image: "Image.Image", stream: BinaryIO) -> None:
    """Raise `_Unfit` for a JPEG that would take minutes: libjpeg's own tools stop at a number of
    scans too.
    """
    if image.info.get("progressive"):
        at = stream.tell()
        stream.seek(0)
        scans = stream.read().count(b"\xff\xda")  # within a scan 0xFF is followed by 0
        stream.seek(at)
        if scans > _MOST_SCANS:
            raise _Unfit(
                f"has {scans:,} progressive scans; at most {_MOST_SCANS} are allowed, so save it "
                "again"
            )


@contextmanager
def _mute(image: "Image.Image") -> Iterator[None]:
    """Keep what libtiff writes to standard error from the user: what is wrong is told in one
    line.
    """
    if image.format != "TIFF":
        yield
        return
    try:
        stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no standard error
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _visible(image: "Image.Image") -> "Image.Image":
    """The image as it looks, in RGB."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        to_bytes = _floats if image.mode == "F" else _integers
        grey = to_bytes(image)
        tags = getattr(image, "tag_v2", {})
        if _first(tags.get(_TIFF_PHOTOMETRIC, 1)) == _WHITE_IS_ZERO:
            np.subtract(255, grey, out=grey)
        # this number stands for nothing, and white shows
        if isinstance(key := image.info.get("transparency"), int):
            grey[np.asarray(image) == key] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        with_alpha = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        opaque = Image.new("RGB", image.size, "white")
        opaque.paste(with_alpha, mask=with_alpha)
        return opaque
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


def _integers(image: "Image.Image") -> np.ndarray:
    """(H, W) uint8 of greys of up to 16 bits."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None and image.mode == "I":
        raise _Unfit(
            "has 32-bit or signed integer pixels, whose range is unknown; convert it to 8 or 16 "
            "bits"
        )
    values = np.asarray(image)
    bits = _first(tags.get(_TIFF_BITS, 16)) if tags is not None else 16
    white = 2 ** min(bits, 16) - 1
    if values.min() < 0 or values.max() > white:
        raise _Unfit(
            f"has pixel values from {values.min():,} to {values.max():,}; 0 to {white:,} are "
            "allowed, so convert it to 8 bits"
        )
    return _in_strips(values, lambda some: (some.astype(np.uint32) * 255 + white // 2) // white)


def _floats(image: "Image.Image") -> np.ndarray:
    """(H, W) uint8 of greys from 0 to 1."""
    values = np.asarray(image)
    least, most = float(values.min()), float(values.max())
    if not (least >= -_TOLERANCE and most <= 1 + _TOLERANCE):  # NaN neither
        raise _Unfit(
            f"has float pixels from {least:.4g} to {most:.4g}; 0 to 1 is allowed, so convert it to "
            "8 bits"
        )
    return _in_strips(values, lambda some: (some.clip(0, 1) * 255).round())


def _first(value: int | tuple[int, ...]) -> int:
    return value[0] if isinstance(value, tuple) else value


def _in_strips(values: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`convert` of all rows as uint8, some at a time: intermediate numbers are wider."""
    converted = np.empty(values.shape, np.uint8)
    rows = max(1, _STRIP // values.shape[1])
    for first in range(0, len(values), rows):
        converted[first : first + rows] = convert(values[first : first + rows])
    return converted
