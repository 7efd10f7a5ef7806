"""Write a small archive of synthetic images in the official layout, for tests and demos."""

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from tinynet.console import progress
from tinynet.data.containers import TARS
from tinynet.data.places import DEFAULT_PATH
from tinynet.errors import InputError
from tinynet.files import atomic_file, atomic_folder

if TYPE_CHECKING:
    from typing_extensions import Unpack
from tinynet.values import as_integer, as_path

# A class is a combination of one item of each table. The lengths of the tables are coprime. So the
# class number modulo these lengths is unique, and neighbouring classes differ in all four items.
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
_SLANTS = {"level": 90, "low": 60, "steep": 30, "upright": 0}  # degrees; distinct after a flip
_STRIPES = {"fine": 0.2, "medium": 0.32, "broad": 0.5}  # wavelength; the image is 2 wide
_MAX_CLASSES = len(_HUES) * len(_LOBES) * len(_SLANTS) * len(_STRIPES)
# The smallest and largest value of each argument.
_RANGES = {
    "classes": (2, _MAX_CLASSES),
    "train": (1, 10_000),
    "val": (0, 10_000),
    "test": (0, 10_000),
    "side": (16, 512),
    "seed": (0, 2**32 - 1),
}
_COUNTS = {"train": 50, "val": 10, "test": 10}  # images per class
_GREY_EVERY = 50  # 1.8 % of the official images have one channel
_ROOT = DEFAULT_PATH.stem


class Counts(TypedDict, total=False):
    """Images per class of the parts of an archive."""

    train: int
    val: int
    test: int


def synthetic(
    out: str | Path,
    classes: int = 10,
    side: int = 64,
    seed: int = 0,
    exist_ok: bool = False,
    **counts: "Unpack[Counts]",
) -> Path:
    """Write an archive of synthetic images: a zip if `out` ends with .zip, else a folder.

    `side`: width and height in pixels. `exist_ok`: if `out` exists, return it, even if it was
    written with other arguments. `train`, `val`, `test`: images per class (default: 50, 10 and 10).
    A class is a combination of hue, outline, and slant and width of stripes. Position, size,
    brightness, orientation and background vary. The same arguments and Pillow version give the same
    bytes.

    Raises `InputError` if an argument is out of range, or if `out` exists and `exist_ok` is false.

    Examples:
        >>> tinynet.synthetic("data/synthetic.zip", classes=8, train=40, side=32)
    """
    out = as_path(out, "out")
    if unknown := sorted(set(counts) - set(_COUNTS)):
        raise InputError(f"{unknown[0]}: not an argument; images per class: {', '.join(_COUNTS)}")
    classes, side, seed = (
        _in_range(name, value)
        for name, value in (("classes", classes), ("side", side), ("seed", seed))
    )
    if out.name.lower().endswith(TARS):
        raise InputError(f"{out}: a synthetic archive is a zip or a folder; use another name")
    images = {name: _in_range(name, value) for name, value in {**_COUNTS, **counts}.items()}
    if out.exists() and exist_ok:
        return out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(
            f"{out}: exists; a synthetic archive does not replace files, so remove it or choose "
            "another path"
        )
    files = progress(
        _files(classes, images, side, seed),
        label=f"writing {out}",
        unit="files",
        total=classes * (sum(images.values()) + 1) + 3,
    )
    (_write_zip if out.suffix.lower() == ".zip" else _write_folder)(out, files)
    return out


def _in_range(name: str, value: Any) -> int:
    """Return the value of an argument; raises `InputError` if it is out of range."""
    low, high = _RANGES[name]
    number = as_integer(value, name)
    if not low <= number <= high:
        raise InputError(
            f"{name} {number}: out of range for a synthetic archive; it can be {low:,} to {high:,}"
        )
    return number


def _write_zip(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    with atomic_file(path) as stream, zipfile.ZipFile(stream, "w") as target:
        for name, data in files:
            # ZipInfo's default date is 1980, so the bytes of the zip are reproducible.
            entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
            entry.external_attr = 0o644 << 16
            target.writestr(entry, data)


def _write_folder(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    with atomic_folder(path) as folder:
        for name, data in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def _files(
    classes: int, counts: dict[str, int], side: int, seed: int
) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every file of the archive."""
    numbers = np.unique(np.random.RandomState(seed).randint(10**6, 10**7, 3 * classes + 20))
    wnids = [f"n0{number}" for number in np.random.RandomState(seed).permutation(numbers)]
    wnids, unused = wnids[:classes], wnids[classes:]
    names = {wnid: _name(kind) for kind, wnid in enumerate(wnids)}
    names |= dict.fromkeys(unused, "nothing drawn")
    # As in the official list, no wnid is at its position in sorted order.
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


def _item(options: dict[str, Any], kind: int) -> tuple[str, Any]:
    return list(options.items())[kind % len(options)]


def _name(kind: int) -> str:
    hue, lobes, slant, stripes = (
        _item(options, kind)[0] for options in (_HUES, _LOBES, _SLANTS, _STRIPES)
    )
    return f"{hue} {lobes}, {stripes} {slant} stripes"


def _image(
    kind: int, side: int, seed: tuple[int, ...], number: int
) -> tuple[bytes, tuple[int, ...]]:
    """A JPEG of class `kind` and the box of its object; every `_GREY_EVERY`th has one channel."""
    from PIL import Image

    pixels, box = draw_image(np.random.RandomState(seed), kind, side)
    image = Image.fromarray(pixels)
    if number % _GREY_EVERY == _GREY_EVERY // 5:
        image = image.convert("L")
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue(), box


def draw_image(
    random: np.random.RandomState, kind: int, side: int
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Draw (side, side, 3) uint8 and the box of the object: x0, y0, x1, y1, inclusive."""
    from colorsys import hsv_to_rgb

    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    (_, hue), (_, lobes), (_, slant), (_, wavelength) = (
        _item(options, kind) for options in (_HUES, _LOBES, _SLANTS, _STRIPES)
    )

    radius = random.uniform(0.45, 0.75)
    u, v = x - random.uniform(-0.3, 0.3), y - random.uniform(-0.3, 0.3)
    turn = random.uniform(-0.15, 0.15)
    if random.rand() < 0.5:
        u = -u
    u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    depth = 0.3 if lobes else 0.0  # of the notches between lobes
    distance = np.hypot(u, v) * (1 + depth) / (1 + depth * np.cos(lobes * np.arctan2(u, v)))
    mask = np.clip((radius - distance) * side / 4 + 0.5, 0, 1)
    along = u * np.cos(np.radians(slant)) + v * np.sin(np.radians(slant))
    waves = np.sin(
        along * 2 * np.pi / (wavelength * random.uniform(0.9, 1.1)) + random.uniform(0, 6.28)
    )
    colour = np.array(
        hsv_to_rgb((hue + random.uniform(-0.03, 0.03)) % 1, random.uniform(0.5, 0.9), 1.0)
    )
    foreground = random.uniform(0.7, 1.0) * colour * (0.65 + 0.35 * waves[..., None])

    # The two colours of the background are random, so the mean colour does not reveal the class.
    angle = random.uniform(0, 6.28)
    blend = 0.5 + 0.5 * np.sin(
        random.uniform(1, 5) * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 6.28)
    )
    background = random.rand(3) * blend[..., None] + random.rand(3) * (1 - blend[..., None])

    image = (
        mask[..., None] * foreground
        + (1 - mask[..., None]) * background
        + 0.04 * random.randn(side, side, 1)
    )
    rows, columns = np.flatnonzero((mask > 0.5).any(1)), np.flatnonzero((mask > 0.5).any(0))
    box = tuple(int(edge) for edge in (columns[0], rows[0], columns[-1], rows[-1]))
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), box
