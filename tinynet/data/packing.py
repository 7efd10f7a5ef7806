"""Pack a source: decode its images once into the arrays of a packed copy.

An interrupted packing continues where it stopped.
"""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinynet.console import log, progress
from tinynet.data.decode import Decoded
from tinynet.data.decode import decode as decode_any
from tinynet.data.packed import FORMAT, Packed, file_digest, read_manifest, small_files
from tinynet.data.source import SPLITS, Source, Subset
from tinynet.data.walk import file_mark
from tinynet.data.workers import CHUNK, ReadFile, chunks, in_workers
from tinynet.errors import InputError
from tinynet.files import (
    atomic_file,
    map_array,
    new_array,
    read_json,
    resumable_folder,
    sync_files,
    write_json,
)
from tinynet.records import Json

RESIZED_CHUNK = 32  # images per job, where they are large
_DIGEST, _CHECK = 32, 4  # bytes: of what identifies a chunk, and of the check of its pixels
_UNFINISHED = "chunks.npy"  # digest and check of the finished chunks


def pack(source: Source, folder: Path, resized: int | None = None) -> Packed:
    """Decode every image of `source` into `folder`, which appears complete or not at all.

    `resized`: the side in pixels of the centre squares; None: the images have one size. An
    interrupted packing leaves a folder with which the next one continues.

    Raises `InputError` with the name of an image that cannot be decoded or has another size, and
    if the source changes while it is packed.
    """
    with resumable_folder(folder) as partial:
        # An earlier packing may have been interrupted after its last file.
        if read_manifest(partial) is None:
            _pack_into(partial, source, resized)
        (partial / _UNFINISHED).unlink(missing_ok=True)
    return Packed(folder)


def _pack_into(folder: Path, source: Source, resized: int | None) -> None:
    """Write all files of a packed copy, the manifest last."""
    side = resized or len(decode(source.read(source.train.files[0]), source.train.files[0]))
    before = _state(source)
    digests = _pack_images(source, folder, side, resized is not None)
    if _state(source) != before:
        raise InputError(
            f"{source.path}: has changed while its images were stored; run the command again"
        )
    manifest = _manifest(source, folder, side, digests, resized is not None)
    sync_files(folder)  # the manifest says that they are there, even after a loss of power
    write_json(folder / "manifest.json", manifest)


def _manifest(
    source: Source, folder: Path, side: int, digests: Sequence[bytes], resized: bool
) -> Json:
    small = [
        file for name in SPLITS for file in small_files(name, source.part(name).labels is not None)
    ]
    return {
        "kind": "packed",
        "format": FORMAT,
        **stamp(source.path, source.labels_file),
        "digest": source.digest(),
        "contents": _contents(source, digests, f"{side} px" if resized else ""),
        **({"images": _contents(source, digests, ""), "resized": True} if resized else {}),
        **({} if source.one_size else {"any_size": True}),
        "counts": {name: len(source.part(name).files) for name in SPLITS},
        "side": side,
        **({"labels_file": source.labels_file} if source.labels_file else {}),
        "wnids": source.wnids,
        "names": source.names,
        "digests": {file: file_digest(folder / file) for file in small},
    }


def stamp(place: Path, labels: str | None = None) -> Json:
    """Return the path of the data and, for a file, its size, its time and its `file_mark`.

    A folder has only the path, because its time does not show edits. `labels`: the file of labels,
    whose digest is returned, too.
    """
    stat = place.stat()
    about: Json = {"source": str(place.resolve()), "stamp": None}
    if place.is_file():
        about |= {"stamp": [stat.st_size, stat.st_mtime_ns], "mark": file_mark(stat)}
    return about | ({"labels_digest": file_digest(Path(labels))} if labels else {})


def _state(source: Source) -> tuple[Json, int]:
    """What changes if the images of a source change; other files may change."""
    files = {source.root + file for name in SPLITS for file in source.part(name).files}
    rows = [row for row in source.container.table() if row[0] in files]
    return stamp(source.path), hash(tuple(rows))


def _pack_images(source: Source, folder: Path, side: int, resized: bool) -> list[bytes]:
    """Decode the images that `folder` lacks to `side` pixels; return the digests of all chunks."""
    fitted, size = 0 if source.one_size else side, RESIZED_CHUNK if resized else CHUNK
    jobs = [
        _Job(folder / f"{name}.pictures.npy", start, files, fitted, resized)
        for name, start, files in chunks(source, size)
    ]
    digests = _finished(folder, jobs, source)
    if digests is None:
        for path in folder.iterdir():
            path.unlink()
        for name in SPLITS:
            _create_files(folder, name, source.part(name), side)
        # So that `tinynet data cache` lists it.
        about = {"kind": "unfinished", "format": FORMAT, **stamp(source.path)}
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


def _contents(source: Source, digests: Sequence[bytes], how: str) -> str:
    """SHA-256 (first 16 hex digits) of classes, file names, labels and digests of all chunks.

    `how`: what was done to the images.
    """
    sha256 = hashlib.sha256("\n".join(source.wnids).encode("utf-8", "surrogateescape"))
    for name in SPLITS:
        part = source.part(name)
        sha256.update("\n".join((f"\n{name}", *part.files)).encode("utf-8", "surrogateescape"))
        sha256.update(b"" if part.labels is None else part.labels.astype("<i8").tobytes())
    sha256.update(b"".join(digests) + how.encode())
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
