"""Decode every image of a source in worker processes, and keep only its properties."""

import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinynet.console import progress
from tinynet.data.decode import PLAIN_MODES, decode
from tinynet.data.source import SPLITS, Source
from tinynet.data.workers import ReadFile, Work, chunks, in_workers
from tinynet.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

COLOUR_GRID = 8  # cells on a side, whose mean colours tell near duplicates
_CHUNK = 32  # images per job, which may be large
_DIGEST = 16  # bytes
# Larger images are reduced before they are hashed to 32x32 pixels: a photo then takes no longer
# than its decoding, and its hash hardly changes.
_REDUCED_SIDE = 256
_ORIENTATION, _TURNED = 0x0112, range(2, 9)  # the EXIF tag; 1 is upright


@dataclass(frozen=True, slots=True)
class Properties:
    """The properties of one image; only `fault` if the image cannot be decoded.

    `digest`: of its bytes. `width`, `height`: in pixels, as its file says. `mode`, `kind`: Pillow's
    mode and format. `turned`: whether it has an EXIF orientation. `word`: its perceptual hash of 64
    bits. `colours`: the mean RGB colours of an 8x8 grid. Both are empty if they were not asked for.
    """

    digest: bytes = b""
    width: int = 0
    height: int = 0
    mode: str = ""
    kind: str = ""
    turned: bool = False
    word: int = 0
    colours: bytes = b""
    fault: str = ""


def inspect(source: Source, looks: bool) -> dict[str, list[Properties]]:
    """Return the properties of all images: subset -> properties in the order of its files.

    `looks`: whether to compute `word` and `colours`, which needs the package imagehash.
    """
    return in_subsets(source, partial(_inspect, looks=looks), _CHUNK)


def in_subsets(source: Source, work: Work, chunk: int) -> dict[str, list[Any]]:
    """Apply `work` to jobs of `chunk` files: subset -> a result for each of its files, in order.

    `work` gets a job (subset, files), and returns a list. Shows the progress.
    """
    jobs = [(name, files) for name, _, files in chunks(source, chunk)]
    results: dict[str, list[Any]] = {name: [] for name in SPLITS}
    total = sum(len(files) for _, files in jobs)
    with progress(total=total, label=f"verifying {source.path}", unit="images") as bar:
        for (name, _), part in zip(jobs, in_workers(work, jobs, source), strict=True):
            results[name] += part
            bar.update(len(part))
    return results


def fault_text(error: InputError, file: str) -> str:
    """What is wrong with an image, without its name."""
    return str(error).removeprefix(f"{file}: ")[:120]


def other_modes(modes: Iterable[str]) -> str:
    """The number of images in each mode other than RGB and L, as text."""
    counts = Counter(mode for mode in modes if mode and mode not in PLAIN_MODES)
    return counts_text(counts)


def counts_text(counts: Counter[str]) -> str:
    """For instance `12 PNG, 3 JPEG`."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


def _inspect(read_file: ReadFile, job: tuple[str, Sequence[str]], looks: bool) -> list[Properties]:
    return [_properties(read_file, file, looks) for file in job[1]]


def _properties(read_file: ReadFile, file: str, looks: bool) -> Properties:
    try:
        data = read_file(file)
        # As for packing: upright, and a large JPEG at a part of its size, which takes less time.
        decoded = decode(data, file, upright=True, least_side=_REDUCED_SIDE)
    except InputError as error:
        return Properties(fault=fault_text(error, file))
    header = _read_header(data) or _Header(*decoded.image.size, "unknown", False)
    return Properties(
        hashlib.blake2b(data, digest_size=_DIGEST).digest(),
        header.width,
        header.height,
        decoded.mode,
        header.kind,
        header.turned,
        *(_look(decoded.image) if looks else ()),
    )


class _Header(NamedTuple):
    width: int
    height: int
    kind: str
    turned: bool


def _read_header(data: bytes) -> _Header | None:
    """Read what `decode` does not tell; None if the header alone cannot be read."""
    from PIL import Image

    header = None
    # The image is intact, but its EXIF data may be broken.
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            header = _Header(*image.size, str(image.format), False)
            # A PNG's own `getexif` would decode the pixels once more.
            turned = Image.Image.getexif(image).get(_ORIENTATION) in _TURNED
            header = header._replace(turned=turned)
    return header


def _look(image: "Image.Image") -> tuple[int, bytes]:
    """The perceptual hash of 64 bits, and the mean colours of the cells of a grid."""
    import imagehash
    from PIL import Image

    image.info = {}  # Pillow would warn of a transparency that the RGB image no longer has
    if (factor := min(image.size) // _REDUCED_SIDE) > 1:
        image = image.reduce(factor)
    bits = np.packbits(imagehash.phash(image).hash)
    colours = image.resize((COLOUR_GRID, COLOUR_GRID), Image.Resampling.BOX)
    return int.from_bytes(bits.tobytes(), "big"), colours.tobytes()
