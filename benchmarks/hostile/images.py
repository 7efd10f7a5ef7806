"""Hostile images: predicted by the probe, evaluated in a folder, and inside an archive."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np

from benchmarks.hostile import archives, image_bombs, image_files, oracle, right, zipping
from benchmarks.hostile.archives import IMAGE, NAME, ZIP
from benchmarks.hostile.case import Case, Ended, Place
from benchmarks.hostile.commands import evaluate_folder, predict
from benchmarks.hostile.damage import damaged
from benchmarks.hostile.drawing import GOOD, GOOD_FILE, HUES, encoded, flat
from benchmarks.hostile.image_files import WRITTEN, image_of, one_colour, saved
from benchmarks.hostile.world import SHARPNESS
from benchmarks.hostile.zipping import entry, zip_bytes
from tinynet.data.image_folder import imagenet_wnids

KIND = "images"
_TOLERANCE = 3.0  # of 255: JPEG decoders round differently
Bytes = Callable[[Place, Random], bytes]
# The good files for random damage.
_DAMAGED: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(image_of("RGB"), "JPEG", quality=95),
    "png": lambda: saved(image_of("RGB"), "PNG"),
    "gif": lambda: saved(image_of("P"), "GIF"),
    "tiff": lambda: saved(image_of("RGB"), "TIFF"),
    "webp": lambda: saved(image_of("RGB"), "WEBP"),
    "bmp": lambda: saved(image_of("RGB"), "BMP"),
    "jpeg-progressive": lambda: saved(image_of("CMYK"), "JPEG", progressive=True),
    "png-palette": lambda: saved(image_of("P"), "PNG", transparency=bytes((255, 128, 0, 64))),
    "gif-frames": lambda: dict(image_files.first_frames())["frames-gif"](),
    "tiff-lzw": lambda: saved(image_of("RGB"), "TIFF", compression="tiff_lzw"),
    "webp-lossless": lambda: saved(image_of("RGBA"), "WEBP", lossless=True),
    "bmp-palette": lambda: saved(image_of("P"), "BMP"),
    "jpeg-exif": lambda: image_files.exif(image_files.orientation(6)),
    "png-16": lambda: saved(image_of("I;16"), "PNG"),
    "tiff-jpeg": lambda: saved(image_of("RGB"), "TIFF", compression="jpeg"),
    "tiff-f": lambda: saved(image_of("F"), "TIFF"),
    "jpeg2000": lambda: saved(image_of("RGB"), "JPEG2000"),
    "avif": lambda: saved(image_of("RGB"), "AVIF"),
    "tga": lambda: saved(image_of("RGBA"), "TGA"),
    "ico": lambda: saved(image_of("RGBA"), "ICO"),
}
_FILES = (
    image_files.transparent,
    image_files.floats,
    image_files.first_frames,
    image_files.tiffs,
    image_files.exifs,
    image_files.foreign,
    image_bombs.sides,
    image_bombs.bombs,
    image_bombs.large,
)
_ENDINGS = (
    ("png", ".jpg"),
    ("jpeg", ".gif"),
    ("webp", ".png"),
    ("gif", ".txt"),
    ("png", ""),
    ("bmp", ".exe"),
    ("png", ".PNG"),
    ("tiff", ".eps"),
)
_EVERYWHERE = (
    "postscript",
    "text",
    "empty",
    "postscript-dos",
    "bomb-png",
    "bomb-png-135-megapixels",
    "bomb-png-ztxt",
)


def _slow_truth(name: str) -> dict[str, Any] | None:
    """The truth of a file for which the oracle would take too long."""
    if name == "bomb-scans":
        return {"quarters": [GOOD[0]] * 4, "doubtful": True}
    if name.startswith("large-"):
        return {
            "quarters": [GOOD[0] if name.endswith("jpeg") else (0, 0, 0)] * 4,
            "doubtful": False,
        }
    return None


def designed() -> Iterator[Case]:
    """Yield a case for each idea."""
    for form, modes in WRITTEN.items():
        for mode in modes:
            data = _lazily(lambda form=form, mode=mode: saved(image_of(mode), form))
            yield _predicted(f"mode-{form}-{mode.replace(';', '')}".lower(), data)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield from _elsewhere(mode, "PNG")
    for mode in ("F", "LAB", "CMYK"):
        yield from _elsewhere(mode, "TIFF")
    for files in _FILES:
        for name, data in files():
            yield _predicted(name, _lazily(data), truth=_slow_truth(name))
            if name in _EVERYWHERE:
                yield _packed(name, _lazily(data))
                yield _scored(name, _lazily(data))
    for name, ending in _ENDINGS:
        yield _predicted(
            f"ending-{name}{ending.replace('.', '-called-') or '-without'}",
            _lazily(_DAMAGED[name]),
            f"strange{ending}",
        )


def _elsewhere(mode: str, form: str) -> Iterator[Case]:
    """An image in this mode in an archive, and one in a single colour in an evaluated folder."""
    name = f"mode-{mode.replace(';', '')}".lower()
    yield _packed(name, _lazily(lambda: saved(image_of(mode), form)))
    yield _scored(name, _lazily(lambda: saved(image_of(mode, one_colour(mode)), form)))


def random(number: int) -> Case:
    """A case with random damage, most of it near the start of the file."""
    names = list(_DAMAGED)
    name = names[number % len(names)]

    def make(place: Place, draw: Random) -> bytes:
        good = _DAMAGED[name]()
        return damaged(good, [(0, 40), (0, 200), (0, len(good))], draw)

    build = (_predicted, _predicted, _packed, _predicted, _scored)[number // len(names) % 5]
    return build(f"damaged-{name}-{number:04d}", make)


def _lazily(data: bytes | Callable[[], bytes]) -> Bytes:
    return lambda place, draw: data() if callable(data) else data


def _trapped(place: Place, data: bytes) -> None:
    """Put a trap in the place of Ghostscript, which Pillow could start for a PostScript file."""
    if b"%!PS" in data:
        program = place.inputs / "bin/gs"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ntouch {place.trap}\nexit 1\n")
        program.chmod(0o755)


def _predicted(name: str, data: Bytes, file: str = "strange.png", truth: Any = None) -> Case:
    """A case of `predict` with this image and a good one; `truth`: if the oracle would take too
    long.
    """

    def make(place: Place, draw: Random) -> Any:
        content = data(place, draw)
        (place.inputs / file).write_bytes(content)
        (place.inputs / "good.png").write_bytes(GOOD_FILE)
        _trapped(place, content)
        return truth or oracle.truth(content)

    def expected(ended: Ended) -> str:
        named = right.names(right.colours({"good.png": GOOD}), file)
        if ended.truth["quarters"] is None:
            return named(ended)
        both = right.gives(
            right.colours({file: ended.truth["quarters"], "good.png": GOOD}, _TOLERANCE)
        )
        may_refuse = ended.truth["doubtful"] or name.startswith("damaged")
        return (right.any_of(named, both) if may_refuse else both)(ended)

    return Case(
        KIND,
        f"{name}-predict",
        "tinynet.predict",
        predict(f"in/{file}", "in/good.png"),
        make,
        expected,
    )


def _packed(name: str, data: Bytes) -> Case:
    """A case of `data pack` with this image in val."""

    def make(place: Place, draw: Random) -> Any:
        content = data(place, draw)
        members = {**zipping.members(place.world / "drawn.zip"), IMAGE: content}
        (place.inputs / "archive.zip").write_bytes(
            zip_bytes(entry(*member) for member in members.items())
        )
        _trapped(place, content)
        image = oracle.meaning(content)
        square = image.pixels is not None and image.pixels.shape == (32, 32, 3)
        return {
            "quarters": oracle.quarters(image.pixels) if square else None,
            "doubtful": image.doubtful,
        }

    def expected(ended: Ended) -> str:
        if ended.truth["quarters"] is None:
            return right.refused(NAME)(ended)
        may_refuse = ended.truth["doubtful"] or name.startswith("damaged")
        return (right.either(_image_packed, NAME) if may_refuse else right.gives(_image_packed))(
            ended
        )

    return archives.pack(KIND, name, make, archives.Way(expected, expected), ZIP)


def _image_packed(ended: Ended) -> None:
    (folder,) = (ended.place.out / "cache").glob("*.packed")
    place = (folder / "val.files.txt").read_text().splitlines().index(IMAGE.split("/", 1)[1])
    colours = oracle.quarters(np.load(folder / "val.pictures.npy")[place].astype(float))
    difference = np.abs(np.array(colours) - np.array(ended.truth["quarters"])).max()
    right.need(
        difference <= _TOLERANCE,
        f"the quarters are {np.round(colours).tolist()}, not "
        f"{np.round(ended.truth['quarters']).tolist()}",
    )


def _scored(name: str, data: Bytes) -> Case:
    """A case of `tinynet folder` with this image as the last one."""

    def make(place: Place, draw: Random) -> Any:
        content = data(place, draw)
        for wnid, hue in zip(imagenet_wnids(), HUES, strict=False):
            (place.inputs / "tree" / wnid).mkdir(parents=True)
            (place.inputs / "tree" / wnid / "a.png").write_bytes(encoded(flat(hue)))
        (place.inputs / "tree" / imagenet_wnids()[2] / "strange.png").write_bytes(content)
        _trapped(place, content)
        image = oracle.meaning(content)
        readable = image.pixels is not None
        even = readable and np.ptp(image.pixels, (0, 1)).max() < 1
        return {
            "readable": readable,
            "doubtful": image.doubtful,
            "colour": image.pixels[0, 0].tolist() if even else None,
        }

    def expected(ended: Ended) -> str:
        if not ended.truth["readable"]:
            return right.refused("strange.png")(ended)
        may_refuse = ended.truth["doubtful"] or name.startswith("damaged")
        return (
            right.either(_image_scored, "strange.png") if may_refuse else right.gives(_image_scored)
        )(ended)

    return Case(
        KIND, f"{name}-imagefolder", "tinynet.folder", evaluate_folder("in/tree"), make, expected
    )


def _image_scored(ended: Ended) -> None:
    """The result has four images. The colour is checked only if the image has one: SqueezeNet
    cannot tell several.
    """
    (row,) = right.rows(ended)
    right.need(row["n"] == 4, f"{row['n']} images, not 4")
    hues = [*HUES, *([ended.truth["colour"]] if ended.truth["colour"] else [])]
    with np.load(ended.place.out / "saved.npz") as saved_file:
        labels, logs = (
            saved_file["labels"].tolist(),
            saved_file["log_probabilities"][0, : len(hues)],
        )
    right.need(labels == [0, 1, 2, 2], f"labels {labels}")
    colours = (logs[:, :3] - logs[:, 999:]) / SHARPNESS * 255
    right.need(
        np.abs(colours - np.array(hues)).max() <= _TOLERANCE,
        f"colours {np.round(colours).tolist()}, not {np.round(hues).tolist()}",
    )
