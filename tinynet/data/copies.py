"""Open the packed copy of data, and pack the data first if necessary.

Images that all are squares of one size, not larger than the packed side or 128 pixels, are packed
as they are. Of others, the centre square is packed, resized to one side.
"""

import glob
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinynet.console import log, option
from tinynet.data.decode import image_size
from tinynet.data.own_folders import CACHE, PACKED
from tinynet.data.packed import Packed, read_manifest
from tinynet.data.packing import pack, stamp
from tinynet.data.places import expand_user, locate
from tinynet.data.source import Source
from tinynet.data.sources import open_source
from tinynet.data.workers import in_child
from tinynet.distributed import get_world
from tinynet.errors import InputError
from tinynet.files import UNFINISHED, can_write, clear_leftovers, locked, read_json, write_json
from tinynet.records import Json
from tinynet.values import as_integer

DEFAULT_SIZE = 258  # pixels: 1.15 times 224, the usual size of ImageNet networks
LEAST_SIZE, MAX_SIZE = 8, 2048
_SMALL = 128  # squares of one size up to this, or to the packed side, are packed as they are
_SAMPLE = 256  # images whose sizes are read to see whether they have one


@dataclass(frozen=True)
class PackRequest:
    """How to pack a source: the side in pixels (None: 258), and the file of labels, if any.

    `contents`: the digest of the packed copy that a run was trained on; this copy is used if the
    file of labels no longer exists. Raises `InputError` for a side out of range.
    """

    size: int | None = None
    labels: str | None = None
    contents: str = ""

    def __post_init__(self) -> None:
        if self.size is None:
            return
        size = as_integer(self.size, option("pack_size"))
        if not LEAST_SIZE <= size <= MAX_SIZE:
            raise InputError(
                f"{option('pack_size')} {size}: out of range; use {LEAST_SIZE} to {MAX_SIZE} pixels"
            )

    @property
    def side(self) -> int:
        """The side in pixels of images that are resized."""
        return self.size or DEFAULT_SIZE


def cache_folder(source: Path, cache: str | None = None) -> Path:
    """The cache folder: `cache`, or by default the folder `cache` next to `source`.

    Raises `InputError` if it is a file.
    """
    beside = Path(os.path.abspath(source)).parent  # of "." too
    folder = beside / CACHE if cache is None else expand_user(cache, "cache")
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"{folder}: is a file, but the cache is a folder; choose another place with "
            f"{option('cache')}"
        )
    return folder


def open_packed(
    path: str | Path, cache: str | None = None, request: PackRequest = PackRequest()
) -> Packed:
    """Open the packed copy of the data at `path`, and pack the data first if necessary.

    `cache`: the cache folder (default: `cache` next to the data). Raises `InputError` if the data
    is not a data set or an image cannot be used.
    """
    if in_child():
        # A worker that runs the main script again would wait for its parent.
        raise SystemExit(1)
    world = get_world()
    packed = world.main_first(lambda: _open(path, cache, request))
    world.check_equal(packed.contents, "data")
    return packed


def _open(path: str | Path, cache: str | None, request: PackRequest) -> Packed:
    place = locate(path, labels=request.labels)
    parent = cache_folder(place, cache)
    clear_leftovers(parent)
    if folder := _copy_without_reading(place, parent, request):
        return Packed(folder)
    source = open_source(place, request.labels)
    name = f"{_stem(place)}-{source.digest()[:8]}"
    as_it_is, resized = parent / f"{name}{PACKED}", parent / f"{name}-{request.side}{PACKED}"
    copies = [folder for folder in (as_it_is, resized) if _fits(read_manifest(folder), request)]
    if copies and not can_write(parent):
        return Packed(copies[0])  # a read-only cache of another user
    side = None if copies else _resized_side(source, request)
    folder = copies[0] if copies else as_it_is if side is None else resized
    with locked(folder, lambda: log(f"waiting: another process is packing {place}")):
        _remove_outdated(parent, name, place)
        manifest = read_manifest(folder)
        if manifest is None:
            return pack(source, folder, side)
        # `_copy_without_reading` will find the copy next time.
        now = stamp(place, request.labels)
        if manifest | now != manifest:
            write_json(folder / "manifest.json", manifest | now)
        return Packed(folder)


def _copy_without_reading(place: Path, cache: Path, request: PackRequest) -> Path | None:
    """The packed copy of an unchanged zip, which takes seconds to read; or of lost labels."""
    labels = request.labels
    if place.is_file() and (labels is None or Path(labels).is_file()):
        return _copy_of(stamp(place, labels), place, cache, request)
    if labels is None or os.path.lexists(labels) or not request.contents:
        return None
    about = {"source": str(place.resolve()), "contents": request.contents}
    folder = _copy_of(about, place, cache, request)
    if folder:
        log(f"note: {request.labels}: no such file; the labels stored with the images are used")
    return folder


def _copy_of(about: Json, place: Path, cache: Path, request: PackRequest) -> Path | None:
    """The packed copy of `place` whose manifest says what `about` says."""
    about = {**about, "labels_file": request.labels}
    for folder in cache.glob(f"{glob.escape(_stem(place))}-*{PACKED}"):
        manifest = {"labels_file": None, **(read_manifest(folder) or {})}
        if manifest | about == manifest and _fits(manifest, request):
            return folder
    return None


def _stem(place: Path) -> str:
    """The name of the data without its extension; also of `.` and `..`."""
    return Path(os.path.abspath(place)).stem


def _fits(manifest: Json | None, request: PackRequest) -> bool:
    """Whether a packed copy is what `request` would pack now."""
    if manifest is None:
        return False
    if manifest.get("resized"):
        return bool(manifest["side"] == request.side)
    return not manifest.get("any_size") or manifest["side"] <= max(_SMALL, request.side)


def _remove_outdated(cache: Path, name: str, place: Path) -> None:
    """Remove unfinished packings of what was at `place` before; `name`: of its copies now."""
    for folder in cache.glob(f"{glob.escape(_stem(place))}-*{UNFINISHED}"):
        with suppress(OSError, ValueError, AttributeError):
            of_place = read_json(folder / "manifest.json").get("source") == str(place.resolve())
            if of_place and not folder.name.startswith(name):
                shutil.rmtree(folder)


def _resized_side(source: Source, request: PackRequest) -> int | None:
    """The side to resize the images to; None: they are packed as they are.

    Images are packed as they are if a sample of them has one square size, and this is small.
    """
    if source.one_size:
        return None
    sizes = set(sample_sizes(source))
    width, height = min(sizes, default=(0, 0))
    if len(sizes) == 1 and width == height <= max(_SMALL, request.side):
        return None
    size = "different sizes" if len(sizes) != 1 else f"{width}x{height} pixels"
    log(
        f"note: {source.path}: the images have {size}; the centre square of each is stored at "
        f"{request.side} px, and the rest is not used"
    )
    return request.side


def sample_sizes(source: Source) -> list[tuple[int, int]]:
    """Return width and height of 256 training images at equal steps, without damaged ones."""
    files = source.train.files
    sizes = []
    for row in np.linspace(0, len(files) - 1, min(_SAMPLE, len(files))).astype(int):
        with suppress(InputError):  # packing and `verify` say what is wrong with the image
            sizes.append(image_size(source.read(files[row]), files[row]))
    return sizes
