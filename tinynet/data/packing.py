"""Pack a source: decode its images once into the arrays of a packed copy.

Images that all are squares of one size, not larger than the packed side or 128 pixels, are packed
as they are. Of others, the centre square is packed, resized to one side. An interrupted packing
continues where it stopped.
"""

import glob
import hashlib
import os
import shutil
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinynet.console import log, option, progress
from tinynet.data.decode import Decoded, image_size
from tinynet.data.decode import decode as decode_any
from tinynet.data.packed import (
    FORMAT,
    Packed,
    file_digest,
    read_manifest,
    small_files,
)
from tinynet.data.places import expand_user, locate
from tinynet.data.source import SPLITS, Source, Subset
from tinynet.data.sources import open_source
from tinynet.data.workers import CHUNK, ReadFile, in_child, in_workers
from tinynet.distributed import get_world
from tinynet.errors import InputError
from tinynet.files import (
    atomic_file,
    can_write,
    clear_leftovers,
    locked,
    map_array,
    new_array,
    read_json,
    resumable_folder,
    write_json,
)
from tinynet.records import Json
from tinynet.values import as_integer

DEFAULT_SIZE = 258  # pixels: 1.15 times 224, the usual size of ImageNet networks
MAX_SIZE = 2048
_SMALL = 128  # squares of one size up to this, or to the packed side, are packed as they are
_SAMPLE = 256  # images whose sizes are read to see whether they have one
RESIZED_CHUNK = 32  # images per job, where they are large
_DIGEST, _CHECK = 32, 4  # bytes: of what identifies a chunk, and of the check of its pixels
_UNFINISHED = "chunks.npy"  # digest and check of the finished chunks


@dataclass(frozen=True)
class PackRequest:
    """How to pack a source: the side in pixels (None: 258), and the file of labels, if any.

    Raises `InputError` for a side out of range.
    """

    size: int | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        if self.size is None:
            return
        size = as_integer(self.size, option("pack_size"))
        if not 8 <= size <= MAX_SIZE:
            raise InputError(
                f"{option('pack_size')} {size}: out of range; use 8 to {MAX_SIZE} pixels"
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
    folder = beside / "cache" if cache is None else expand_user(cache, "cache")
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
    place = locate(path)
    parent = cache_folder(place, cache)
    clear_leftovers(parent)
    if folder := _unchanged_copy(place, parent, request):
        return Packed(folder)
    gone = request.labels is not None and not Path(request.labels).is_file()
    if gone and (folder := _copy_with_labels(place, parent, request)):
        log(f"note: {request.labels}: no such file; the stored images have their labels")
        return Packed(folder)
    source = open_source(place, request.labels)
    name = f"{place.stem}-{source.digest()[:8]}"
    as_it_is, resized = parent / f"{name}.packed", parent / f"{name}-{request.side}.packed"
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
        # `_unchanged_copy` will find the copy next time.
        if manifest | _stamp(place) != manifest:
            write_json(folder / "manifest.json", manifest | _stamp(place))
        return Packed(folder)


def _unchanged_copy(place: Path, cache: Path, request: PackRequest) -> Path | None:
    """The packed copy of an unchanged zip, found without reading the zip, which takes seconds."""
    if not place.is_file() or request.labels is not None:
        return None
    for folder in cache.glob(f"{glob.escape(place.stem)}-*.packed"):
        manifest = read_manifest(folder)
        if not manifest or manifest | _stamp(place) != manifest or manifest.get("labels_file"):
            continue
        if _fits(manifest, request):
            return folder
    return None


def _fits(manifest: Json | None, request: PackRequest) -> bool:
    """Whether a packed copy is what `request` would pack now."""
    if manifest is None:
        return False
    if manifest.get("resized"):
        return bool(manifest["side"] == request.side)
    return not manifest.get("any_size") or manifest["side"] <= max(_SMALL, request.side)


def _copy_with_labels(place: Path, cache: Path, request: PackRequest) -> Path | None:
    """The packed copy of images whose file of labels is gone."""
    own = {"source": str(place.resolve()), "labels_file": request.labels}
    for folder in cache.glob(f"{glob.escape(place.stem)}-*.packed"):
        manifest = read_manifest(folder)
        if manifest and manifest | own == manifest and _fits(manifest, request):
            return folder
    return None


def _remove_outdated(cache: Path, name: str, place: Path) -> None:
    """Remove unfinished packings of what was at `place` before; `name`: of its copies now."""
    for folder in cache.glob(f"{glob.escape(place.stem)}-*.unfinished"):
        with suppress(OSError, ValueError, AttributeError):
            of_place = read_json(folder / "manifest.json").get("source") == str(place.resolve())
            if of_place and not folder.name.startswith(name):
                shutil.rmtree(folder)


def _stamp(place: Path) -> Json:
    """Path, size and modification time of a zip; no time for folders, which do not record edits."""
    stat = place.stat()
    stamp = [stat.st_size, stat.st_mtime_ns] if place.is_file() else None
    return {"source": str(place.resolve()), "stamp": stamp}


def _resized_side(source: Source, request: PackRequest) -> int | None:
    """The side to resize the images to; None: they are packed as they are.

    Images are packed as they are if a sample of them has one square size, and this is small.
    """
    if source.one_size:
        return None
    files = source.train.files
    rows = np.linspace(0, len(files) - 1, min(_SAMPLE, len(files))).astype(int)
    sizes = set()
    for row in rows:
        with suppress(InputError):  # packing says what is wrong with the image
            sizes.add(image_size(source.read(files[row]), files[row]))
    width, height = min(sizes, default=(0, 0))
    if len(sizes) == 1 and width == height <= max(_SMALL, request.side):
        return None
    size = "different sizes" if len(sizes) != 1 else f"{width}x{height} pixels"
    log(
        f"note: {source.path}: the images have {size}; the centre square of each is stored at "
        f"{request.side} px, and the rest is not used"
    )
    return request.side


def pack(source: Source, folder: Path, resized: int | None = None) -> Packed:
    """Decode every image of `source` into `folder`, which appears complete or not at all.

    `resized`: the side in pixels of the centre squares; None: the images have one size. An
    interrupted packing leaves a folder with which the next one continues.

    Raises `InputError` with the name of an image that cannot be decoded or has another size, and
    if the source changes while it is packed.
    """
    side = resized or len(decode(source.read(source.train.files[0]), source.train.files[0]))
    before = _state(source)
    with resumable_folder(folder) as partial:
        chunks = _pack_images(source, partial, side, resized is not None)
        if _state(source) != before:
            raise InputError(
                f"{source.path}: has changed while its images were stored; run the command again"
            )
        manifest = _manifest(source, partial, side, chunks, resized is not None)
        write_json(partial / "manifest.json", manifest)
    # Not before: without it, a packing that is interrupted at the end would start over.
    (folder / _UNFINISHED).unlink()
    return Packed(folder)


def _manifest(
    source: Source, folder: Path, side: int, chunks: Sequence[bytes], resized: bool
) -> Json:
    small = [
        file for name in SPLITS for file in small_files(name, source.part(name).labels is not None)
    ]
    return {
        "kind": "packed",
        "format": FORMAT,
        **_stamp(source.path),
        "digest": source.digest(),
        "contents": _contents(source, chunks, f"{side} px" if resized else ""),
        **({"images": _contents(source, chunks, ""), "resized": True} if resized else {}),
        **({} if source.one_size else {"any_size": True}),
        "counts": {name: len(source.part(name).files) for name in SPLITS},
        "side": side,
        **({"labels_file": source.labels_file} if source.labels_file else {}),
        "wnids": source.wnids,
        "names": source.names,
        "digests": {file: file_digest(folder / file) for file in small},
    }


def _state(source: Source) -> tuple[Json, int]:
    """What changes if the images of a source change; other files may change."""
    files = {source.root + file for name in SPLITS for file in source.part(name).files}
    rows = [row for row in source.container.table() if row[0] in files]
    return _stamp(source.path), hash(tuple(rows))


def _pack_images(source: Source, folder: Path, side: int, resized: bool) -> list[bytes]:
    """Decode the images that `folder` lacks to `side` pixels; return the digests of all chunks."""
    fitted, size = 0 if source.one_size else side, RESIZED_CHUNK if resized else CHUNK
    jobs = [
        _Job(folder / f"{name}.pictures.npy", start, files[start : start + size], fitted, resized)
        for name in SPLITS
        for files in [source.part(name).files]
        for start in range(0, len(files), size)
    ]
    digests = _finished(folder, jobs, source)
    if digests is None:
        for path in folder.iterdir():
            path.unlink()
        for name in SPLITS:
            _create_files(folder, name, source.part(name), side)
        # So that `tinynet data cache` lists it.
        about = {"kind": "unfinished", "format": FORMAT, **_stamp(source.path)}
        write_json(folder / "manifest.json", about)
        digests = new_array(folder / _UNFINISHED, (len(jobs), _DIGEST + _CHECK), np.uint8)
    pending = np.flatnonzero(~digests.any(1))
    count = sum(len(jobs[number].files) for number in pending)
    total = sum(len(job.files) for job in jobs)
    with progress(
        total=total, done=total - count, label=f"packing into {folder.stem}", unit="images"
    ) as bar:
        work = in_workers(_decode_into, [jobs[number] for number in pending], source)
        for number, (images, digest) in zip(pending, work, strict=True):
            digests[number] = np.frombuffer(digest, np.uint8)
            bar.update(images)
    return [bytes(digest[:_DIGEST]) for digest in digests]


def _finished(folder: Path, jobs: "list[_Job]", source: Source) -> np.ndarray | None:
    """Digest and check of the chunks that an earlier packing has finished; None without one.

    The pixels are read again: after a loss of power the digests may be on the disk without them.
    """
    try:
        if read_json(folder / "manifest.json").get("format") != FORMAT:
            return None
        digests = map_array(folder / _UNFINISHED, "r+")
        for target in {job.target for job in jobs}:
            map_array(target)
    except (OSError, ValueError, AttributeError):
        return None
    if digests.shape != (len(jobs), _DIGEST + _CHECK):
        return None
    done = np.flatnonzero(digests.any(1))
    checks = in_workers(_check_rows, [jobs[number] for number in done], source)
    with progress(
        total=len(done), label=f"continuing {folder.stem}: checking", unit="chunks"
    ) as bar:
        for number, check in zip(done, checks, strict=True):
            if check != bytes(digests[number][_DIGEST:]):
                digests[number] = 0
            bar.update(1)
    log(f"continuing the packing in {folder}")
    return digests


def _check_rows(read_file: ReadFile, job: "_Job") -> bytes:
    """The check of a chunk that is on the disk."""
    rows = np.load(job.target, mmap_mode="r")[job.start : job.start + len(job.files)]
    return _check(np.ascontiguousarray(rows))


def _create_files(folder: Path, name: str, part: Subset, side: int) -> None:
    """Create the files of a part, with an empty array for the images."""
    new_array(folder / f"{name}.pictures.npy", (len(part.files), side, side, 3), np.uint8)
    np.save(folder / f"{name}.boxes.npy", part.boxes)
    if part.labels is not None:
        np.save(folder / f"{name}.labels.npy", part.labels)
    with atomic_file(folder / f"{name}.files.txt") as stream:
        stream.write("".join(f + "\n" for f in part.files).encode("utf-8", "surrogateescape"))


def _contents(source: Source, chunks: Sequence[bytes], how: str) -> str:
    """SHA-256 (first 16 hex digits) of classes, file names, labels and digests of all chunks.

    `how`: what was done to the images.
    """
    sha256 = hashlib.sha256("\n".join(source.wnids).encode("utf-8", "surrogateescape"))
    for name in SPLITS:
        part = source.part(name)
        sha256.update("\n".join((f"\n{name}", *part.files)).encode("utf-8", "surrogateescape"))
        sha256.update(b"" if part.labels is None else part.labels.astype("<i8").tobytes())
    sha256.update(b"".join(chunks) + how.encode())
    return sha256.hexdigest()[:16]


def square(data: bytes, name: str) -> Decoded:
    """Decode an image of an archive; raises `InputError` if it is damaged or not square."""
    try:
        decoded = decode_any(data, name)
    except InputError as error:
        raise InputError(f"{error}; replace this image, or fetch the archive again") from None
    width, height = decoded.image.size
    if width != height:
        raise InputError(
            f"{name}: is {width}x{height} pixels; images must be square, so crop it or fetch the "
            "archive again"
        )
    return decoded


def decode(data: bytes, name: str) -> np.ndarray:
    """Decode an image of an archive to (side, side, 3) uint8; raises `InputError` like `square`."""
    return square(data, name).pixels


def _fitted(data: bytes, name: str, side: int) -> np.ndarray:
    from tinynet.data.squares import centre_square  # torch takes seconds to import

    return centre_square(data, name, side)


@dataclass(frozen=True)
class _Job:
    """A chunk of images: the array file, their first row, and their files.

    `fitted`: the side of the centre squares; 0: every image must have the side already. `resized`:
    whether most of them have another size.
    """

    target: Path
    start: int
    files: tuple[str, ...]
    fitted: int
    resized: bool


def _decode_into(read_file: ReadFile, job: _Job) -> tuple[int, bytes]:
    """Decode a chunk of images into its rows; return their number, their digest and the check.

    The digest is BLAKE2b of the pixels, or of the files where they are resized: torch may round
    differently on another processor. BLAKE2b takes half the time of SHA-256.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST)
    rows = np.load(job.target, mmap_mode="r")
    chunk = np.empty((len(job.files), *rows.shape[1:]), rows.dtype)
    for pixels, file in zip(chunk, job.files, strict=True):
        data = read_file(file)
        image = _fitted(data, file, job.fitted) if job.fitted else decode(data, file)
        if image.shape != pixels.shape:
            raise InputError(
                f"{file}: is {image.shape[1]}x{image.shape[0]} pixels, but the first image is "
                f"{rows.shape[2]}x{rows.shape[1]}; all must have one size (64x64 in Tiny "
                "ImageNet), so resize it or fetch the archive again"
            )
        pixels[:] = image
        if job.resized:
            digest.update(data)
    if not job.resized:
        digest.update(chunk.data)
    # Not through the memory map, where each page causes a page fault.
    with job.target.open("r+b") as stream:
        stream.seek(rows.offset + job.start * rows[:1].nbytes)
        stream.write(chunk.data)
    return len(job.files), digest.digest() + _check(chunk)


def _check(chunk: np.ndarray) -> bytes:
    return zlib.crc32(chunk.data).to_bytes(_CHECK, "little")
