"""Image files that are larger than they look, and image files without an area."""

import struct
import zlib
from functools import partial

from PIL import Image

from benchmarks.hostile.drawing import GOOD
from benchmarks.hostile.image_files import Named, image_of, saved
from benchmarks.hostile.world import SIDE

_GIGABYTE = 1 << 30


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    *,
    node: int = 8,
    colour: int = 0,
    rows: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """A PNG with this header, these packed rows, and chunks between them."""
    header = chunk(b"IHDR", struct.pack(">2L5B", width, height, node, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """`count` zero bytes, packed for a PNG."""
    packer, block = zlib.compressobj(1), bytes(1 << 20)
    parts = [
        packer.compress(block[: min(len(block), count - at)]) for at in range(0, count, len(block))
    ]
    return b"".join([*parts, packer.flush()])


def black(width: int, height: int, bits: int = 8, colour: int = 0) -> bytes:
    """A valid black PNG."""
    channels = 3 if colour == 2 else 1
    return png(
        width,
        height,
        node=bits,
        colour=colour,
        rows=zeros(height * (1 + (width * bits * channels + 7) // 8)),
    )


def bombs() -> Named:
    """Small files that declare sizes larger than memory."""
    yield "bomb-png", partial(black, 50_000, 50_000, bits=1)
    yield "bomb-png-111-megapixels", partial(black, 11_100, 10_000, bits=1)
    yield "bomb-png-without-data", png(2**31 - 1, 2**31 - 1, rows=zeros(100))
    yield "bomb-png-rgb-16", png(60_000, 60_000, node=16, colour=6, rows=zeros(1 << 20))
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        yield f"bomb-png-{kind.decode().lower()}", partial(_beside, kind, head)
    yield (
        "bomb-png-chunks",
        lambda: png(
            SIDE, SIDE, rows=zeros(SIDE * (SIDE + 1)), more=chunk(b"tEXt", b"a\0b") * 200_000
        ),
    )
    yield (
        "bomb-png-data-behind",
        lambda: png(SIDE, SIDE, rows=zeros(SIDE * (SIDE + 1)) + zeros(_GIGABYTE)),
    )
    jpeg = saved(image_of("RGB"), "JPEG")
    at = jpeg.index(b"\xff\xc0")
    yield "bomb-jpeg", jpeg[: at + 5] + struct.pack(">2H", 65_500, 65_500) + jpeg[at + 9 :]
    yield (
        "bomb-jpeg-comments",
        lambda: jpeg[:2] + (b"\xff\xfe\xff\xff" + bytes(65533)) * 500 + jpeg[2:],
    )
    yield (
        "bomb-gif",
        b"GIF89a" + struct.pack("<2H", 65_535, 65_535) + saved(image_of("P"), "GIF")[10:],
    )
    bmp = saved(image_of("RGB"), "BMP")
    yield "bomb-bmp", bmp[:18] + struct.pack("<2l", 65_535, 65_535) + bmp[26:]
    yield "bomb-bmp-upside-down", bmp[:18] + struct.pack("<2l", 65_535, -65_535) + bmp[26:]
    yield "bomb-bmp-negative", bmp[:18] + struct.pack("<2l", -(2**31), 32) + bmp[26:]
    webp = saved(image_of("RGBA"), "WEBP", lossless=True)
    at = webp.index(b"VP8L") + 9
    yield "bomb-webp", webp[:at] + b"\xff\xff\xff\xff" + webp[at + 4 :]
    yield "bomb-ppm", b"P6 100000 100000 255\n" + bytes(1000)
    yield "bomb-ppm-value", b"P6 32 32 999999999999\n" + bytes(9000)
    yield "bomb-pfm", b"Pf 50000 50000 -1.0\n" + bytes(1000)
    yield (
        "bomb-tga",
        bytes((0, 0, 2)) + bytes(9) + struct.pack("<2H2B", 65_535, 65_535, 24, 0) + bytes(1000),
    )
    yield "bomb-qoi", b"qoif" + struct.pack(">2L2B", 100_000, 100_000, 3, 0) + bytes(1000)
    yield "bomb-scans", _many_scans


def _beside(kind: bytes, head: bytes) -> bytes:
    """A small PNG with a chunk that inflates to a gigabyte."""
    return png(SIDE, SIDE, rows=zeros(SIDE * (SIDE + 1)), more=chunk(kind, head + zeros(_GIGABYTE)))


def _many_scans() -> bytes:
    """A progressive JPEG with one scan repeated 5,000 times; each scan covers all 16 megapixels."""
    jpeg = saved(Image.new("RGB", (4000, 4000), GOOD[0]), "JPEG", progressive=True, quality=50)
    last, end = jpeg.rindex(b"\xff\xda"), jpeg.rindex(b"\xff\xd9")
    return jpeg[:end] + jpeg[last:end] * 5000 + jpeg[end:]


def sides() -> Named:
    """Images with sides of 0, and lines."""
    for width, height in ((0, 0), (0, 32), (32, 0)):
        yield f"side-{width}x{height}-png", png(width, height, rows=zeros(100))
    for width, height in (
        (1, 1),
        (1, 50),
        (50, 1),
        (2, 101),
        (1, 1000),
        (1000, 1),
        (1, 65_535),
        (65_535, 1),
        (100_000, 2),
        (31, 33),
        (64, 64),
        (500, 20),
    ):
        yield f"side-{width}x{height}-png", partial(black, width, height)
    jpeg = saved(image_of("RGB"), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    for height, width in ((0, 32), (32, 0), (0, 0), (1, 65_500), (65_500, 1)):
        yield (
            f"side-{width}x{height}-jpeg",
            jpeg[:at] + struct.pack(">2H", height, width) + jpeg[at + 4 :],
        )
    gif = saved(image_of("P"), "GIF")
    yield "side-0x0-gif", gif[:6] + bytes(4) + gif[10:]
    bmp = saved(image_of("RGB"), "BMP")
    yield "side-0x0-bmp", bmp[:18] + bytes(8) + bmp[26:]


def large() -> Named:
    """Images of the largest accepted size, in small files."""
    yield "large-108-megapixels-grey", partial(black, 12_000, 9_000)
    yield "large-108-megapixels-rgb", partial(black, 12_000, 9_000, colour=2)
    yield "large-108-megapixels-bilevel", partial(black, 9_000, 12_000, bits=1)
    yield "large-108-megapixels-16-bit", partial(black, 12_000, 9_000, bits=16)
    for name, sides in (("108", (12_000, 9_000)), ("60", (10_000, 6_000))):
        yield (
            f"large-{name}-megapixels-jpeg",
            lambda sides=sides: saved(Image.new("RGB", sides, GOOD[0]), "JPEG"),
        )
