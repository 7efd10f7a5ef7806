"""A small archive of drawn pictures in exactly the official layout, for tests and for a first
try.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tinynet.console import progress
from tinynet.data.places import DEFAULT_PATH
from tinynet.errors import InputError
from tinynet.files import atomic_file, atomic_folder

# A class is one of each. The four counts have no common factor, so the remainders of the class
# number are a different combination for every class, and neighbouring classes differ in all of
# them.
_HUES = {"red": 0.0, "yellow": 0.15, "green": 0.36, "blue": 0.6, "purple": 0.8}
_LOBES = {
    "disc": 0,
    "peanut": 2,
    "trefoil": 3,
    "quatrefoil": 4,
    "cinquefoil": 5,
    "sixfoil": 6,
    "octofoil": 8,
}
_SLANTS = {"level": 90, "low": 60, "steep": 30, "upright": 0}  # degrees; mirrored, they stay four
_STRIPES = {"fine": 0.2, "medium": 0.32, "broad": 0.5}  # wavelength, where the picture is 2 wide
_MOST = len(_HUES) * len(_LOBES) * len(_SLANTS) * len(_STRIPES)
_GREY_EVERY = 50  # the official archive has 1.8 % one-channel pictures
_ROOT = DEFAULT_PATH.stem


def synthetic(
    out: str | Path,
    classes: int = 10,
    train: int = 50,
    val: int = 10,
    test: int = 10,
    side: int = 64,
    seed: int = 0,
) -> Path:
    """Write a zip (where `out` ends with .zip) or a folder of drawn pictures laid out like Tiny
    ImageNet.

    `train`, `val` and `test` count pictures a class; `side` is in pixels. A class is a combination
    of hue, outline, and slant and width of stripes; place, size, brightness, mirroring and
    background vary. The same arguments and the same Pillow give the same bytes.

    Raises `InputError` when an argument is out of range or `out` exists.
    """
    out = Path(out)
    ranges = {
        "classes": (classes, 2, _MOST),
        "train": (train, 1, 10_000),
        "val": (val, 0, 10_000),
        "test": (test, 0, 10_000),
        "side": (side, 16, 512),
        "seed": (seed, 0, 2**32 - 1),
    }
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise InputError(
                f"{name} {value} was asked for a synthetic archive; it can be {low:,} to {high:,}"
            )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(
            f"{out}: exists; a synthetic archive replaces nothing, so remove it or name another "
            "place"
        )
    counts = {"train": train, "val": val, "test": test}
    files = progress(
        _files(classes, counts, side, seed),
        label=f"drawing {out}",
        unit="files",
        total=classes * (train + val + test + 1) + 3,
    )
    if out.suffix == ".zip":
        with atomic_file(out) as stream, zipfile.ZipFile(stream, "w") as target:
            for name, data in files:
                # dated 1980, so that the zip's bytes repeat too
                entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
                entry.external_attr = 0o644 << 16
                target.writestr(entry, data)
    else:
        with atomic_folder(out) as folder:
            for name, data in files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
    return out


def _files(
    classes: int, counts: dict[str, int], side: int, seed: int
) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file of the archive."""
    numbers = np.unique(np.random.RandomState(seed).randint(10**6, 10**7, 3 * classes + 20))
    wnids = [f"n0{number}" for number in np.random.RandomState(seed).permutation(numbers)]
    wnids, others = wnids[:classes], wnids[classes:]
    names = {wnid: _name(kind) for kind, wnid in enumerate(wnids)} | dict.fromkeys(
        others, "nothing drawn"
    )
    # The official list is not sorted either: it agrees with sorted order at no place.
    yield "wnids.txt", "".join(f"{wnid}\n" for wnid in np.roll(sorted(wnids), 1)).encode()
    yield "words.txt", "\n".join(f"{wnid}\t{name}" for wnid, name in sorted(names.items())).encode()

    for kind, wnid in enumerate(wnids):
        boxes = []
        for k in range(counts["train"]):
            data, box = _image(kind, side, (seed, 0, kind, k), kind * counts["train"] + k)
            yield f"train/{wnid}/images/{wnid}_{k}.JPEG", data
            boxes.append("\t".join(map(str, (f"{wnid}_{k}.JPEG", *box))) + "\n")
        yield f"train/{wnid}/{wnid}_boxes.txt", "".join(boxes).encode()

    annotations = []
    for k, kind in enumerate(
        np.random.RandomState(seed).permutation(np.repeat(range(classes), counts["val"]))
    ):
        data, box = _image(kind, side, (seed, 1, kind, k), k)
        yield f"val/images/val_{k}.JPEG", data
        annotations.append("\t".join(map(str, (f"val_{k}.JPEG", wnids[kind], *box))) + "\n")
    yield "val/val_annotations.txt", "".join(annotations).encode()

    for k in range(classes * counts["test"]):
        yield (
            f"test/images/test_{k}.JPEG",
            _image(k % classes, side, (seed, 2, k % classes, k), k)[0],
        )


def _pick(options: dict, kind: int) -> tuple:
    return list(options.items())[kind % len(options)]


def _name(kind: int) -> str:
    hue, lobes, slant, stripes = (
        _pick(options, kind)[0] for options in (_HUES, _LOBES, _SLANTS, _STRIPES)
    )
    return f"{hue} {lobes}, {stripes} {slant} stripes"


def _image(
    kind: int, side: int, seed: tuple[int, ...], number: int
) -> tuple[bytes, tuple[int, ...]]:
    """One JPEG of class `kind` and its object's box; every `_GREY_EVERY`-th has one channel."""
    from PIL import Image

    pixels, box = _draw(np.random.RandomState(seed), kind, side)
    image = Image.fromarray(pixels)
    if number % _GREY_EVERY == _GREY_EVERY // 5:
        image = image.convert("L")
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue(), box


def _draw(draw: np.random.RandomState, kind: int, side: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """(side, side, 3) uint8 and the box of the object: x0, y0, x1, y1, inclusive."""
    from colorsys import hsv_to_rgb

    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    (_, hue), (_, lobes), (_, slant), (_, wavelength) = (
        _pick(options, kind) for options in (_HUES, _LOBES, _SLANTS, _STRIPES)
    )

    radius = draw.uniform(0.45, 0.75)
    u, v = x - draw.uniform(-0.3, 0.3), y - draw.uniform(-0.3, 0.3)
    turn = draw.uniform(-0.15, 0.15)
    if draw.rand() < 0.5:
        u = -u
    u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    node = 0.3 if lobes else 0.0
    reach = np.hypot(u, v) * (1 + node) / (1 + node * np.cos(lobes * np.arctan2(u, v)))
    cover = np.clip((radius - reach) * side / 4 + 0.5, 0, 1)
    along = u * np.cos(np.radians(slant)) + v * np.sin(np.radians(slant))
    waves = np.sin(
        along * 2 * np.pi / (wavelength * draw.uniform(0.9, 1.1)) + draw.uniform(0, 6.28)
    )
    colour = np.array(
        hsv_to_rgb((hue + draw.uniform(-0.03, 0.03)) % 1, draw.uniform(0.5, 0.9), 1.0)
    )
    thing = draw.uniform(0.7, 1.0) * colour * (0.65 + 0.35 * waves[..., None])

    # The background's two colours are drawn freely, so that the mean colour says little of the
    # class.
    angle = draw.uniform(0, 6.28)
    blend = 0.5 + 0.5 * np.sin(
        draw.uniform(1, 5) * (x * np.cos(angle) + y * np.sin(angle)) + draw.uniform(0, 6.28)
    )
    ground = draw.rand(3) * blend[..., None] + draw.rand(3) * (1 - blend[..., None])

    image = (
        cover[..., None] * thing
        + (1 - cover[..., None]) * ground
        + 0.04 * draw.randn(side, side, 1)
    )
    rows, columns = np.flatnonzero((cover > 0.5).any(1)), np.flatnonzero((cover > 0.5).any(0))
    box = tuple(int(edge) for edge in (columns[0], rows[0], columns[-1], rows[-1]))
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), box
