"""Decode images to 8-bit RGB: those of archives, of folders and of predictions.

Every mode of Pillow is converted as the image looks, or refused:

    1, L, P, RGB, CMYK, YCbCr, LAB, HSV   converted by Pillow; grey becomes three equal channels
    with transparency                     blended over white
    16-bit integers (I;16)                0 is black, 65,535 is white (4,095 in a 12-bit TIFF)
    32-bit integers (I)                   refused: files use different values for white
    floats (F)                            0 is black, 1 is white; other values are refused
"""

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from tinynet.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

# Formats that Pillow opens, but that are programs which draw, or containers of other data.
_REFUSED_FORMATS = {"EPS", "WMF", "PDF", "MPEG", "HDF5", "BUFR", "GRIB", "FITS", "IPTC"}
_SEVERAL_JPEGS = "MPO"  # photos of phones; Pillow opens them as JPEG
logging.getLogger("PIL").addHandler(logging.NullHandler())  # `InputError` reports the problem
PLAIN_MODES = ("L", "RGB")  # modes of ordinary images
MAX_PIXELS = 110_000_000  # a phone's photo has 108 million pixels, which take 0.4 GB in RGB
# To save memory, larger images are decoded at 1 / _REDUCTION of their width and height.
REDUCE_ABOVE, _REDUCTION = 2**26, 4  # pixels
_MAX_SCANS = 500  # of a progressive JPEG; encoders write about ten, and each covers the whole image
_MAX_ASPECT_RATIO = 50  # resizing a thinner image would fill the memory
_TOLERANCE = 1e-4  # rounding errors of float pixels beyond 0 and 1
STRIP = 2**22  # pixel values to convert at once
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@dataclass(frozen=True)
class Decoded:
    """An RGB image, and the `mode` of its file in Pillow's terms, such as `I;16` or `RGBA`."""

    image: "Image.Image"
    mode: str

    @property
    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return np.asarray(self.image)


def decode(
    source: bytes | Path, name: str, upright: bool = False, least_side: int | None = None
) -> Decoded:
    """Decode an image, bytes or a path, to RGB.

    `name`: the name of the image in errors. `upright`: apply the EXIF orientation. `least_side`:
    a large JPEG may be decoded at a half, a quarter or an eighth of its size, if both sides then
    have at least so many pixels. Raises `InputError` if the image cannot be read, is too large, or
    has a mode or pixel values that have no equivalent in 8 bits.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), _long_texts():
            # Pillow warns of large images, which are checked here, and of harmless irregularities.
            warnings.simplefilter("ignore")
            stream = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
            with stream, Image.open(stream, formats=_formats()) as image:
                _refuse_many_scans(image, stream)
                with muted() if image.format == "TIFF" else nullcontext():
                    mode = image.mode
                    if least_side is not None:
                        image.draft(None, (least_side, least_side))
                    return Decoded(_to_rgb(image, upright), mode)
    except UnidentifiedImageError:
        raise InputError(f"{name}: is not an image{_size_note(source)}") from None
    except _Refused as error:
        raise InputError(f"{name}: {error}") from None
    except MemoryError:
        raise InputError(f"{name}: out of memory while decoding") from None
    except Exception as error:  # a broken or malicious file raises almost any exception
        reason = (
            getattr(error, "strerror", None)
            or " ".join(str(error).split())[:80]
            or type(error).__name__
        )
        raise InputError(f"{name}: cannot be read as an image ({reason})") from None


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Return width and height of an image, from its header; raises `InputError` as `decode`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                return image.size
    except Exception:  # the line is that of decoding
        return decode(data, name).image.size


def is_plain_jpeg(data: bytes, below: int) -> bool:
    """Whether the bytes start as a JPEG in RGB that any decoder reads as Pillow does.

    `below`: its shorter side must have fewer pixels. Photographs with an orientation, of several
    images, or of unusual form are none.
    """
    from PIL import ExifTags, Image

    if not data.startswith(b"\xff\xd8\xff"):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                small, large = sorted(image.size)
                exif = image.getexif() if {"exif", "xmp"} & image.info.keys() else {}
                return (
                    image.format == "JPEG"
                    and image.mode == "RGB"
                    and not image.info.get("progressive")
                    and exif.get(ExifTags.Base.Orientation, 1) == 1
                    and 0 < small < below
                    and large <= _MAX_ASPECT_RATIO * small
                )
    except Exception:  # Pillow's decoder will say what is wrong
        return False


@cache
def image_endings() -> frozenset[str]:
    """The file name extensions of images, such as `.jpeg`, in lower case."""
    from PIL import Image

    Image.init()
    return frozenset(
        extension
        for extension, kind in Image.registered_extensions().items()
        if (kind in Image.OPEN or kind == _SEVERAL_JPEGS) and kind not in _REFUSED_FORMATS
    )


@contextmanager
def _long_texts() -> Iterator[None]:
    """Allow PNG texts and colour profiles above a megabyte, which Pillow otherwise refuses."""
    from PIL import PngImagePlugin

    limit, PngImagePlugin.MAX_TEXT_CHUNK = (
        PngImagePlugin.MAX_TEXT_CHUNK,
        PngImagePlugin.MAX_TEXT_MEMORY,
    )
    try:
        yield
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK = limit


class _Refused(ValueError):
    """An image that Pillow can read, but that is refused; the message is without its name."""


@cache
def _formats() -> tuple[str, ...]:
    """The formats to open, whatever the extension: opening an EPS file would start a program."""
    from PIL import Image

    Image.init()
    return tuple(kind for kind in Image.ID if kind not in _REFUSED_FORMATS)


def _size_note(source: bytes | Path) -> str:
    return f" ({len(source):,} bytes)" if isinstance(source, bytes) else ""


def _to_rgb(image: "Image.Image", upright: bool) -> "Image.Image":
    from PIL import ImageOps

    width, height = image.size
    if not min(width, height):
        raise _Refused(f"has no pixels ({width}x{height})")
    if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
        raise _Refused(
            f"is {width}x{height} pixels; the long side may be at most {_MAX_ASPECT_RATIO} times "
            "the short side, so crop it"
        )
    if width * height > MAX_PIXELS:
        raise _Refused(
            f"is {width}x{height} pixels; at most {MAX_PIXELS:,} are allowed, so resize it"
        )
    rgb = _reduced(image) if width * height > REDUCE_ABOVE else _as_displayed(image)
    if upright:
        rgb.info = dict(image.info)
        with suppress(Exception):  # broken EXIF data are ignored
            ImageOps.exif_transpose(rgb, in_place=True)
        rgb.info.pop("transparency", None)  # the image is opaque now
    return rgb


def _reduced(image: "Image.Image") -> "Image.Image":
    """Decode a large image at reduced size; a JPEG is never decoded at full size."""
    from PIL import Image

    image.draft(image.mode, (image.width // _REDUCTION, image.height // _REDUCTION))
    if image.width * image.height <= REDUCE_ABOVE:
        return _as_displayed(image)
    width, height = image.size
    reduced = Image.new("RGB", (-(-width // _REDUCTION), -(-height // _REDUCTION)))
    tags = getattr(image, "tag_v2", None)
    rows = max(1, STRIP // width // _REDUCTION) * _REDUCTION
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(height, top + rows)))
        if tags is not None:
            strip.tag_v2 = tags  # type: ignore[attr-defined]  # TIFF: the tags define white
        reduced.paste(_as_displayed(strip).reduce(_REDUCTION), (0, top // _REDUCTION))
    return reduced


def _refuse_many_scans(image: "Image.Image", stream: BinaryIO) -> None:
    """Raise `_Refused` for a JPEG that would take minutes; libjpeg's tools limit the scans too."""
    if image.info.get("progressive"):
        position = stream.tell()
        stream.seek(0)
        scans = stream.read().count(b"\xff\xda")  # in the data of a scan, 0 follows 0xFF
        stream.seek(position)
        if scans > _MAX_SCANS:
            raise _Refused(
                f"has {scans:,} progressive scans; at most {_MAX_SCANS} are allowed, so save it "
                "again"
            )


@contextmanager
def muted() -> Iterator[None]:
    """Hide what libraries in C write to standard error: `InputError` reports the problem."""
    try:
        stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # standard error is closed
        yield
        return
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def _as_displayed(image: "Image.Image") -> "Image.Image":
    """Convert an image to RGB, as a viewer displays it."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        to_bytes = _floats if image.mode == "F" else _integers
        grey = to_bytes(image)
        tags = getattr(image, "tag_v2", {})
        if _first(tags.get(_TIFF_PHOTOMETRIC, 1)) == _WHITE_IS_ZERO:
            np.subtract(255, grey, out=grey)
        # Pixels with the transparent value are white, like the background.
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
    """Convert integer greys of up to 16 bits to (H, W) uint8."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None and image.mode == "I":
        raise _Refused(
            "has 32-bit or signed integer pixels, whose range is unknown; convert it to 8 or 16 "
            "bits"
        )
    values = np.asarray(image)
    bits = _first(tags.get(_TIFF_BITS, 16)) if tags is not None else 16
    white = 2 ** min(bits, 16) - 1
    if values.min() < 0 or values.max() > white:
        raise _Refused(
            f"has pixel values from {values.min():,} to {values.max():,}; 0 to {white:,} are "
            "allowed, so convert it to 8 bits"
        )
    return _in_strips(values, lambda strip: (strip.astype(np.uint32) * 255 + white // 2) // white)


def _floats(image: "Image.Image") -> np.ndarray:
    """Convert float greys from 0 to 1 to (H, W) uint8."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # also refuses NaN
        raise _Refused(
            f"has float pixels from {low:.4g} to {high:.4g}; 0 to 1 is allowed, so convert it to "
            "8 bits"
        )
    return _in_strips(values, lambda strip: (strip.clip(0, 1) * 255).round())


def _first(value: int | tuple[int, ...]) -> int:
    return value[0] if isinstance(value, tuple) else value


def _in_strips(values: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `convert` to strips of rows, to save memory: its intermediate values are wider."""
    pixels = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // values.shape[1])
    for first in range(0, len(values), rows):
        pixels[first : first + rows] = convert(values[first : first + rows])
    return pixels
