"""Image files: all modes and formats that Pillow writes, and files that no program would write."""

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from benchmarks.hostile.drawing import GOOD, quartered
from benchmarks.hostile.world import SIDE

# A name, and the bytes of a file or a function that returns them.
Named = Iterator[tuple[str, bytes | Callable[[], bytes]]]

# The values of the four quarters in each mode.
_VALUES: dict[str, tuple[Sequence[Any], type]] = {
    "1": ((0, 255, 255, 0), np.uint8),
    "L": ((10, 90, 170, 250), np.uint8),
    "LA": (((10, 255), (90, 128), (170, 0), (250, 64)), np.uint8),
    "P": ((0, 1, 2, 3), np.uint8),
    "PA": (((0, 255), (1, 128), (2, 0), (3, 64)), np.uint8),
    "RGB": (GOOD, np.uint8),
    "RGBA": (
        tuple((*colour, alpha) for colour, alpha in zip(GOOD, (255, 128, 0, 64), strict=True)),
        np.uint8,
    ),
    "CMYK": (((10, 200, 30, 0), (0, 0, 0, 128), (255, 20, 20, 20), (90, 0, 160, 60)), np.uint8),
    "YCbCr": (((80, 90, 200), (200, 100, 100), (120, 200, 60), (30, 128, 128)), np.uint8),
    "LAB": (((80, 10, 20), (200, 100, 100), (120, 20, 60), (30, 128, 128)), np.uint8),
    "I": ((0, 10_000, 30_000, 65_535), np.int32),
    "F": ((0.0, 0.25, 0.5, 1.0), np.float32),
    "I;16": ((0, 10_000, 30_000, 65_535), np.dtype("<u2")),
    "I;16B": ((0, 10_000, 30_000, 65_535), np.dtype(">u2")),
}

WRITTEN = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"),
    "TIFF": (
        "1",
        "L",
        "LA",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "CMYK",
        "YCbCr",
        "LAB",
        "I",
        "F",
        "I;16",
        "I;16B",
    ),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "GIF": ("1", "L", "P", "RGBA"),
    "WEBP": ("L", "LA", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I", "F", "I;16"),
    "TGA": ("L", "LA", "P", "RGB", "RGBA"),
    "ICO": ("RGBA", "I;16"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "CMYK", "I;16"),
    "AVIF": ("L", "RGB", "RGBA"),
    "DDS": ("LA", "RGBA"),
    "PCX": ("P", "RGB"),
    "SGI": ("RGB", "RGBA"),
    "QOI": ("RGBA",),
    "MSP": ("1",),
    "XBM": ("1",),
    "SPIDER": ("F",),
}


def image_of(mode: str, values: Sequence[Any] | None = None) -> Image.Image:
    """An image in this mode with four quarters."""
    usual, dtype = _VALUES[mode]
    pixels = quartered(usual if values is None else values, SIDE, dtype)
    if mode == "1":
        return Image.fromarray(pixels[..., 0]).convert("1", dither=Image.Dither.NONE)
    if mode == "PA":
        image = image_of("P").convert("PA")
        image.putalpha(Image.fromarray(np.ascontiguousarray(pixels[..., 1])))
        return image
    image = Image.frombytes(mode, (SIDE, SIDE), pixels.tobytes())
    if mode == "P":
        image.putpalette([number for colour in GOOD for number in colour])
    return image


def one_colour(mode: str) -> Sequence[Any]:
    """The values of an image in one colour in this mode."""
    return [_VALUES[mode][0][1]] * 4


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    """The image as the bytes of a file."""
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def transparent() -> Named:
    """Files with transparency outside an alpha channel."""
    yield "png-p-one-index", partial(saved, image_of("P"), "PNG", transparency=2)
    yield (
        "png-p-all-indices",
        partial(saved, image_of("P"), "PNG", transparency=bytes((255, 128, 0, 64))),
    )
    yield "png-l-one-value", partial(saved, image_of("L"), "PNG", transparency=90)
    yield "png-rgb-one-colour", partial(saved, image_of("RGB"), "PNG", transparency=GOOD[1])
    yield "png-1-one-value", partial(saved, image_of("1"), "PNG", transparency=0)
    yield "gif-p-one-index", partial(saved, image_of("P"), "GIF", transparency=2)
    yield "webp-lossless", partial(saved, image_of("RGBA"), "WEBP", lossless=True)
    yield "tiff-premultiplied", partial(saved, image_of("RGBA"), "TIFF", tiffinfo={338: 1})
    yield "tiff-unspecified", partial(saved, image_of("RGBA"), "TIFF", tiffinfo={338: 0})


def floats() -> Named:
    """Floats within and outside [0, 1]."""
    for name, values in {
        "0-to-255": (0, 64, 128, 255),
        "negative": (-1, 0, 0.5, 1),
        "nan": (float("nan"), 0, 0.5, 1),
        "inf": (float("inf"), 0, 0.5, 1),
        "tiny": (1e-30, 0, 0.5, 1),
        "huge": (1e30, 0, 1, 1),
        "all-nan": (float("nan"),) * 4,
        "just-above": (1.001, 0, 0.5, 1),
    }.items():
        yield f"tiff-f-{name}", partial(saved, image_of("F", values), "TIFF")
    for name, values in {
        "negative": (-5, 0, 9, 99),
        "beyond-16-bits": (0, 1, 2, 2_000_000_000),
        "all-beyond": (70_000,) * 4,
    }.items():
        yield f"tiff-i-{name}", partial(saved, image_of("I", values), "TIFF")


def first_frames() -> Named:
    """Files with several images; the first one counts."""
    others = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("black", "white")]
    first = image_of("RGB")
    for form in ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"):
        yield (
            f"frames-{form.lower()}",
            partial(saved, first, form, save_all=True, append_images=others),
        )
    yield (
        "frames-many-gif",
        lambda: saved(
            image_of("P"),
            "GIF",
            save_all=True,
            append_images=[Image.new("P", (SIDE, SIDE), at % 4) for at in range(3000)],
        ),
    )
    yield (
        "frames-many-tiff",
        partial(saved, first, "TIFF", save_all=True, append_images=others * 500),
    )


def tiffs() -> Named:
    """Compressions and layouts of TIFF."""
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"):
        yield (
            f"tiff-{name.removeprefix('tiff_')}",
            partial(saved, image_of("1" if name == "group4" else "RGB"), "TIFF", compression=name),
        )
    yield "tiff-big", partial(saved, image_of("RGB"), "TIFF", big_tiff=True)
    good = saved(image_of("RGB"), "TIFF")
    first = struct.unpack("<L", good[4:8])[0]
    count = struct.unpack("<H", good[first : first + 2])[0]
    after = first + 2 + 12 * count
    yield "tiff-loop", good[:after] + struct.pack("<L", first) + good[after + 4 :]
    yield "tiff-many-tags", good[:first] + struct.pack("<H", 65535) + good[first + 2 :]
    yield "tiff-directory-behind-the-end", good[:4] + struct.pack("<L", len(good) + 10) + good[8:]
    for at in range(count):
        entry = first + 2 + 12 * at
        (tag,) = struct.unpack("<H", good[entry : entry + 2])
        yield f"tiff-tag-{tag}-count", good[: entry + 4] + b"\xff\xff\xff\x7f" + good[entry + 8 :]
        yield f"tiff-tag-{tag}-value", good[: entry + 8] + b"\xff\xff\xff\x7f" + good[entry + 12 :]


def exif(block: bytes) -> bytes:
    """A JPEG with this EXIF block."""
    jpeg = saved(image_of("RGB"), "JPEG", quality=95, subsampling=0)
    return (
        jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block + jpeg[2:]
    )


def orientation(value: int, kind: int = 3, count: int = 1, after: int = 0) -> bytes:
    """EXIF data with one entry: the orientation."""
    return b"II*\0" + struct.pack("<LH2HLLL", 8, 1, 0x112, kind, count, value, after)


def exifs() -> Named:
    """JPEGs and other files with valid and broken EXIF data."""
    for value in (*range(10), 65_535):
        yield f"exif-turned-{value}", partial(exif, orientation(value))
    broken = {
        "garbage": b"garbage" * 100,
        "no-bytes": b"",
        "header-alone": b"II*\0",
        "loop": orientation(1, after=8),
        "beyond": b"II*\0\xff\xff\xff\x7f",
        "kind-0": orientation(6, kind=0),
        "kind-99": orientation(6, kind=99),
        "many": orientation(6, count=2**31 - 1),
        "text": orientation(6, kind=2, count=4),
        "fraction": orientation(0, kind=5),
        "none": orientation(6, count=0),
        "two": orientation(6, count=2),
        "big-endian": b"MM\0*" + struct.pack(">LH2HLLL", 8, 1, 0x112, 3, 1, 6 << 16, 0),
        "half": orientation(6)[:15],
        "many-entries": b"II*\0" + struct.pack("<LH", 8, 65_535) + bytes(600),
    }
    for name, block in broken.items():
        yield f"exif-{name}", partial(exif, block)
    tagged = Image.Exif()
    tagged[0x112] = 6
    for form in ("PNG", "WEBP", "TIFF"):
        yield f"exif-turned-6-{form.lower()}", partial(saved, image_of("RGB"), form, exif=tagged)
    yield "exif-garbage-png", partial(saved, image_of("RGB"), "PNG", exif=b"Exif\0\0garbage")
    yield "exif-xmp", partial(saved, image_of("RGB"), "PNG", pnginfo=_xmp())


def _xmp() -> PngImagePlugin.PngInfo:
    """XMP data with nested entities (ten to the ninth of them), next to the orientation."""
    entities = "".join(f'<!ENTITY l{at} "{f"&l{at - 1};" * 10}">' for at in range(1, 10))
    more = PngImagePlugin.PngInfo()
    more.add_itxt(
        "XML:com.adobe.xmp",
        f'<!DOCTYPE x [<!ENTITY l0 "l">{entities}]><x tiff:Orientation="6">&l9;</x>',
    )
    return more


def foreign() -> Named:
    """Files that are not images, or that nobody would call images."""
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    )
    yield "postscript", postscript
    yield (
        "postscript-dos",
        b"\xc5\xd0\xd3\xc6" + struct.pack("<2L", 30, len(postscript)) + bytes(18) + postscript,
    )
    yield "text", b"no image\n"
    yield "empty", b""
    yield "html", b"<!DOCTYPE html><html><img src=x onerror=alert(1)></html>"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "pdf", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"
    yield "pickle", b"cos\nsystem\n(S'true'\ntR."
    yield "zip", b"PK\3\4" + bytes(100)
    yield "elf", b"\x7fELF" + bytes(100)
    yield "metafile", b"\xd7\xcd\xc6\x9a" + bytes(200)
    yield (
        "fits",
        b"SIMPLE  =                    T"
        + b" " * 50
        + b"NAXIS   =                    2"
        + b" " * 3000,
    )
    yield "hdf5", b"\x89HDF\r\n\x1a\n" + bytes(500)
    yield "grib", b"GRIB\0\0\0\1" + bytes(100)
    yield "bufr", b"BUFR\0\0\0\4" + bytes(100)
    yield "mpeg", b"\0\0\1\xb3\x02\x00\x20\x13" + bytes(100)
    yield "xpm", b'/* XPM */\nstatic char *x[] = {"2 2 1 1", "a c #ff0000", "aa", "aa"};\n'
    yield "signature-png", b"\x89PNG\r\n\x1a\n"
    yield "signature-jpeg", b"\xff\xd8\xff"
    yield "jpeg-without-an-end", saved(image_of("RGB"), "JPEG")[:-2]
    yield "png-without-an-end", saved(image_of("RGB"), "PNG")[:-12]
    yield "jpeg-behind-garbage", b"garbage" + saved(image_of("RGB"), "JPEG")
    yield "png-before-garbage", saved(image_of("RGB"), "PNG") + b"garbage" * 1000
    yield "two-jpegs", saved(image_of("RGB"), "JPEG") * 2
