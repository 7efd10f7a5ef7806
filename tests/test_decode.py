"""What an image's bytes become: every mode as it looks, in archives, in folders and in
predictions.
"""

import io
import struct
import sys
import warnings

import numpy as np
import PIL
import pytest
from PIL import Image, PngImagePlugin
from support import complaint

from tinynet.data import decode as module
from tinynet.data.copies import open_packed
from tinynet.data.image_folder import open_image
from tinynet.data.tiny_imagenet import Archive
from tinynet.data.verify import verify

GREY = np.tile(np.linspace(10, 245, 64).astype(np.uint8), (64, 1))
COLOURS = np.stack([GREY, GREY.T, 255 - GREY], -1)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def pixels(path):
    return np.asarray(open_image(path))


@pytest.mark.parametrize(
    "name, image",
    [
        ("8.png", Image.fromarray(GREY)),
        ("16.png", Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("16.tif", Image.fromarray(GREY.astype(np.uint16) * 257)),
        (
            "big-endian.tif",
            Image.frombytes("I;16B", (64, 64), (GREY.astype(">u2") * 257).tobytes()),
        ),
        ("16.pgm", Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("16.jp2", Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("float.tif", Image.fromarray((GREY / 255).astype(np.float32))),
        ("float.pfm", Image.fromarray((GREY / 255).astype(np.float32))),
        ("opaque.png", Image.fromarray(GREY).convert("LA")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grey_of_any_depth_is_the_grey_of_8_bits(tmp_path, name, image):
    assert np.array_equal(pixels(saved(tmp_path / name, image)), np.stack([GREY] * 3, -1))


@pytest.mark.parametrize(
    "mode, ending, apart",
    [
        ("RGB", "png", 0),
        ("RGBA", "png", 0),
        ("CMYK", "tif", 0),
        ("YCbCr", "tif", 3),
        ("LAB", "tif", 3),
    ],
)
def test_colours_of_any_mode_are_the_same_colours(tmp_path, mode, ending, apart):
    # some strong colours have no place in LAB of 8 bits
    colours = COLOURS // 3 + 90 if mode == "LAB" else COLOURS
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("older Pillows cannot read the YCbCr that they write")
    difference = (
        pixels(saved(tmp_path / f"a.{ending}", Image.fromarray(colours).convert(mode))).astype(int)
        - colours
    )
    assert np.abs(difference).max() <= apart


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.putpixel((0, 0), (200, 200, 200, 255))
    options = {}
    if mode == "P":
        image = Image.new("P", (4, 2), 1)
        image.putpalette([200, 200, 200, 0, 0, 0])
        image.putpixel((0, 0), 0)
        options = {"transparency": 1}
    visible = pixels(
        saved(tmp_path / "a.png", image if mode == "P" else image.convert(mode), **options)
    )
    assert (visible[0, 0] == 200).all() and (visible[1] == 255).all()


def test_half_transparent_is_half_white(tmp_path):
    path = saved(tmp_path / "half.png", Image.new("RGBA", (3, 3), (10, 20, 30, 128)))
    assert np.abs(pixels(path)[1, 1].astype(int) - [132, 137, 142]).max() <= 1


def test_transparent_gray_value_becomes_white(tmp_path):
    image = Image.fromarray(GREY.astype(np.uint16) * 257)
    visible = pixels(saved(tmp_path / "key.png", image, transparency=int(GREY[0, 0]) * 257))
    assert (visible[:, 0] == 255).all() and (visible[:, 1] == GREY[0, 1]).all()


def test_12_bit_and_inverted_16_bit_are_scaled(tmp_path):
    image = Image.fromarray(GREY.astype(np.uint16) * 257)
    path = saved(tmp_path / "negative.tif", image, tiffinfo={262: 0})  # white is zero
    assert (pixels(path)[..., 0] == 255 - GREY).all()
    floats = Image.fromarray((GREY / 255).astype(np.float32))
    assert (
        pixels(saved(tmp_path / "floats.tif", floats, tiffinfo={262: 0}))[..., 0] == 255 - GREY
    ).all()
    # Pillow reads TIFFs of 12 bits and writes none: 4 x 2 pixels, 12 bits each, in one strip.
    numbers = [0, 4095, 2048, 1024, 4095, 0, 16, 4000]
    packed = bytes(
        byte
        for a, b in zip(numbers[::2], numbers[1::2], strict=True)
        for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255)
    )
    tags = [
        (256, 3, 1, 4),
        (257, 3, 1, 2),
        (258, 3, 1, 12),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8 + 2 + 12 * 8 + 4),
        (278, 3, 1, 2),
        (279, 4, 1, len(packed)),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    (tmp_path / "12.tif").write_bytes(
        b"II*\0" + struct.pack("<IH", 8, 8) + entries + struct.pack("<I", 0) + packed
    )
    wanted = [round(number * 255 / 4095) for number in numbers]
    assert pixels(tmp_path / "12.tif")[..., 0].flatten().tolist() == wanted


@pytest.mark.parametrize(
    "image, words",
    [
        (
            Image.fromarray(GREY.astype(np.float32)),
            ["float pixels from 10 to 245", "0 to 1", "8 bits"],
        ),
        (Image.fromarray(np.full((9, 9), np.nan, np.float32)), ["float pixels from nan", "0 to 1"]),
        (
            Image.fromarray(GREY.astype(np.float32) / 255 - 0.5),
            ["float pixels from -0.46", "0 to 1"],
        ),
        (Image.fromarray(GREY.astype(np.int32) * 1000), ["32-bit", "convert it to 8"]),
    ],
)
def test_ambiguous_ranges_are_rejected(tmp_path, image, words):
    complaint(lambda: open_image(saved(tmp_path / "a.tif", image)), "a.tif", *words)


def test_sizes_beyond_reason_are_refused_and_large_photos_are_read(tmp_path, monkeypatch):
    line = saved(tmp_path / "line.png", Image.new("L", (5000, 2)))
    complaint(lambda: open_image(line), "5000x2", "at most 50 times")
    bomb = bytearray(saved(tmp_path / "bomb.png", Image.new("1", (16, 16))).read_bytes())
    bomb[16:24] = struct.pack(">II", 50_000, 50_000)
    (tmp_path / "bomb.png").write_bytes(bomb)
    complaint(lambda: open_image(tmp_path / "bomb.png"), "bomb.png")
    large = saved(tmp_path / "large.png", Image.new("1", (12_000, 9_000), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(large).size == (3_000, 2_250)  # 108 megapixels, a quarter of the sides
    monkeypatch.setattr(module, "REDUCE_ABOVE", 6000)
    monkeypatch.setattr(module, "STRIP", 1000)
    # several strips, and an odd last row
    ramp = np.linspace(20, 220, 91 * 120).reshape(91, 120).astype(np.uint8)
    for mode, name in (
        ("RGB", "a.jpg"),
        ("RGBA", "a.png"),
        ("P", "a.gif"),
        ("I;16", "b.png"),
        ("F", "a.tif"),
    ):
        wide = {"I;16": ramp.astype(np.uint16) * 257, "F": ramp.astype(np.float32) / 255}
        image = (
            Image.fromarray(wide[mode])
            if mode in wide
            else Image.fromarray(ramp).convert("RGB").convert(mode)
        )
        visible = pixels(saved(tmp_path / name, image))
        assert visible.shape == (23, 30, 3)
        tolerance = 60 if mode == "P" else 2  # of a palette for all colours
        assert (
            np.abs(visible[..., 0] - np.asarray(Image.fromarray(ramp).reduce(4), int)).max()
            <= tolerance
        )


def test_an_image_that_is_drawn_thousands_of_times_is_refused(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(COLOURS).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    (tmp_path / "a.jpg").write_bytes(data[:end] + data[last:end] * 5000 + data[end:])
    complaint(
        lambda: open_image(tmp_path / "a.jpg"), "a.jpg", "5,0", "progressive scans", "at most 500"
    )
    (tmp_path / "b.jpg").write_bytes(data)
    assert open_image(tmp_path / "b.jpg").size == (64, 64)


@pytest.mark.parametrize("damage", ["pixels", "tag"])
def test_libraries_write_nothing_of_their_own(tmp_path, capfd, damage):
    file = saved(tmp_path / "a.tif", Image.fromarray(COLOURS), compression="tiff_lzw")
    data = bytearray(file.read_bytes())
    if damage == "pixels":
        data[8:200] = bytes(range(192))
    else:
        at = data.rindex(struct.pack("<HH", 277, 3))  # samples a pixel
        data[at + 8 : at + 10] = b"\xff\xff"
    file.write_bytes(data)
    complaint(lambda: open_image(file), "a.tif")
    assert capfd.readouterr().err == ""
    print("still here", file=sys.stderr)
    assert capfd.readouterr().err == "still here\n"


def test_a_photo_with_broken_exif_is_read(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(COLOURS).save(stream, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    assert open_image(tmp_path / "a.jpg", upright=True).size == (64, 64)


def test_an_image_with_long_texts_is_read(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("made by", "x" * 3_000_000, zip=True)
    path = saved(
        tmp_path / "a.png", Image.fromarray(GREY), pnginfo=texts, icc_profile=bytes(3_000_000)
    )
    most = PngImagePlugin.MAX_TEXT_CHUNK
    assert np.array_equal(pixels(path)[..., 0], GREY) and most == PngImagePlugin.MAX_TEXT_CHUNK


def test_eps_does_not_start_ghostscript(tmp_path):
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    complaint(lambda: open_image(tmp_path / "a.jpg"), "a.jpg", "is not an image")


def test_an_archive_of_16_bits_is_that_of_8(folder, packed):
    for path in [*folder.rglob("*.JPEG")]:
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 257).save(path.with_suffix(".png"))
        path.unlink()
    again = open_packed(folder)
    rows = {row.check: row for row in verify(Archive(folder)).rows}
    assert rows["images in other modes than RGB and L"].found == "114 I;16"
    for name in ("train", "val", "test"):
        before, after = packed.part(name), again.part(name)
        assert [file.replace("JPEG", "png") for file in before.files] == after.files
        assert before.labels is None or np.array_equal(before.labels, after.labels)
        assert np.array_equal(before.boxes, after.boxes)
        wanted = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in before.images])
        assert np.array_equal(after.images, np.stack([wanted] * 3, -1))
