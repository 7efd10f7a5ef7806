"""Pictures decoded once into memory-mapped uint8 arrays, with a manifest that says of what
source.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tinynet.console import log, progress
from tinynet.data.decode import Decoded
from tinynet.data.decode import decode as decode_any
from tinynet.data.places import home, locate
from tinynet.data.tiny_imagenet import SPLITS, Archive
from tinynet.data.workers import CHUNK, Read, in_child, in_workers
from tinynet.errors import InputError
from tinynet.files import (
    atomic_file,
    atomic_folder,
    can_write,
    clear_leftovers,
    locked,
    map_array,
    new_array,
    read_json,
    write_json,
)

FORMAT = 4  # 3 had images of more than 8 bits as white
# What a manifest must hold, by type.
_MANIFEST = {
    "counts": dict,
    "side": int,
    "wnids": list,
    "names": list,
    "contents": str,
    "source": str,
    "digests": dict,
}
# dtype and dimensions
_KINDS = {"pictures": (np.uint8, 4), "labels": (np.int64, 1), "boxes": (np.int16, 2)}


@dataclass(frozen=True, eq=False)  # compared and hashed as itself: arrays have no hash
class PackedPart:
    """One part of the archive as arrays; row i of each belongs to picture i.

    `pictures`: (N, side, side, 3) uint8, RGB. `labels`: (N,) int64, or None where there are none.
    `boxes`: (N, 4) int16, x0, y0, x1, y1 inclusive, -1 where none is given.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    boxes: np.ndarray
    _folder: Path

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def files(self) -> list[str]:
        """The pictures' file names inside the archive."""
        path = self._folder / f"{self.name}.files.txt"
        return path.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]


class Packed:
    """The packed copy of an archive: `train`, `val` and `test`; `wnids`, their `names`, and `side`
    in pixels.

    `contents` is the digest of classes, file names, labels and decoded pixels: the same for a zip,
    its extracted folder and a repacked copy, another for changed pictures.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if self.manifest is None:
            raise InputError(
                f"{folder}: no packed pictures of format {FORMAT}; "
                "`python -m tinynet.data pack` makes them"
            )
        self.wnids: tuple[str, ...] = tuple(self.manifest["wnids"])
        self.names: tuple[str, ...] = tuple(self.manifest["names"])
        self.side: int = self.manifest["side"]
        self.contents: str = self.manifest["contents"]
        self.train, self.val, self.test = (self._part(name) for name in SPLITS)

    @property
    def cache(self) -> Path:
        """The folder for whatever else is derived from this source."""
        return self.folder.parent

    def part(self, name: str) -> PackedPart:
        """The part called `name`: `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def _part(self, name: str) -> PackedPart:
        for file in _small_files(name):
            path, digest = self.folder / file, str(self.manifest["digests"].get(file))
            size = path.stat().st_size if path.is_file() else "no"
            # what is too large is not read
            if not digest.startswith(f"{size} ") or digest != _digest(path):
                raise _spoiled(path, "is not as it was written" if path.exists() else "is missing")
        labels = None if name == "test" else np.asarray(self._array(name, "labels"))
        return PackedPart(
            name,
            self._array(name, "pictures"),
            labels,
            np.asarray(self._array(name, "boxes")),
            self.folder,
        )

    def _array(self, name: str, kind: str) -> np.ndarray:
        """An array of a part; raises `InputError` where it is not what the manifest says."""
        path, count = self.folder / f"{name}.{kind}.npy", self.manifest["counts"][name]
        dtype, dimensions = _KINDS[kind]
        try:
            array = map_array(path, "r" if count else None)  # an empty file cannot be mapped
            sides = (self.side, self.side, 3) if kind == "pictures" else array.shape[1:]
            if (array.dtype, array.ndim, array.shape) != (dtype, dimensions, (count, *sides)):
                raise ValueError(f"{array.dtype} of shape {array.shape}, not as manifest.json says")
        except (FileNotFoundError, ValueError) as error:
            raise _spoiled(path, f"cannot be read ({' '.join(str(error).split())[:80]})") from None
        return array


def _spoiled(path: Path, what: str) -> InputError:
    """What says that a file of a packed copy is not as it was written."""
    return InputError(
        f"{path}: {what}; delete {path.parent} and run the command again to rebuild it"
    )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in `folder`, or None where there is none of this format."""
    try:
        manifest = read_json(folder / "manifest.json")
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None
    whole = all(isinstance(manifest.get(name), kind) for name, kind in _MANIFEST.items())
    return manifest if whole and _fits(manifest) else None


def _fits(manifest: dict[str, Any]) -> bool:
    """Whether the values of a manifest can be those of a packed copy."""
    texts = all(isinstance(text, str) for text in (*manifest["wnids"], *manifest["names"]))
    counts = [manifest["counts"].get(name) for name in SPLITS]
    return (
        texts
        and len(set(manifest["wnids"])) == len(manifest["names"]) > 0 < manifest["side"]
        and all(isinstance(count, int) and count >= 0 for count in counts)
    )


def _small_files(name: str) -> list[str]:
    """The files of a part that are compared with their digests whenever they are opened."""
    return [
        f"{name}.files.txt",
        f"{name}.boxes.npy",
        *([f"{name}.labels.npy"] if name != "test" else []),
    ]


def _digest(path: Path) -> str:
    """The size of a file in bytes and the SHA-256 (first 16 hex digits) of its content."""
    data = path.read_bytes()
    return f"{len(data)} {hashlib.sha256(data).hexdigest()[:16]}"


def cache_folder(source: Path, cache: str | None = None) -> Path:
    """Where what is derived from `source` is kept: `cache` if given, else the folder `cache` beside
    it.
    """
    return home(cache) if cache else source.parent / "cache"


def open_packed(path: str | Path, cache: str | None = None) -> Packed:
    """The packed copy of the source at `path`, made first if there is none that fits.

    Raises `InputError` when the source is not Tiny ImageNet or a picture cannot be used.
    """
    if in_child():
        # a worker that runs the main script again would wait for its own parent
        raise SystemExit(1)
    source = locate(path)
    place = cache_folder(source, cache)
    clear_leftovers(place)
    if folder := _untouched(source, place):
        return Packed(folder)
    archive = Archive(source)
    folder = place / f"{source.stem}-{archive.digest()[:8]}.packed"
    if read_manifest(folder) and not can_write(place):
        return Packed(folder)  # prepared by somebody else
    with locked(folder, lambda: log(f"waiting: another process is packing {source}")):
        manifest = read_manifest(folder)
        if manifest is None:
            return pack(archive, folder)
        # next time it is known at sight
        write_json(folder / "manifest.json", manifest | _place(source))
        return Packed(folder)


def _untouched(source: Path, cache: Path) -> Path | None:
    """The packed copy of a zip that has not changed since: reading its table of contents takes
    seconds.
    """
    for folder in cache.glob(f"{source.stem}-*.packed") if source.is_file() else ():
        manifest = read_manifest(folder)
        if manifest and manifest | _place(source) == manifest:
            return folder
    return None


def _place(source: Path) -> dict[str, Any]:
    """Where a zip is, its size and modification time; a folder has no stamp that would notice a
    changed file.
    """
    stat = source.stat()
    stamp = [stat.st_size, stat.st_mtime_ns] if source.is_file() else None
    return {"source": str(source.resolve()), "stamp": stamp}


def pack(archive: Archive, folder: Path) -> Packed:
    """Decode every picture of `archive` into `folder`, which appears whole or not at all.

    Raises `InputError` with the name of the first picture that cannot be decoded or differs in
    size.
    """
    side = len(decode(archive.read(archive.train.files[0]), archive.train.files[0]))
    counts = {name: len(archive.part(name).files) for name in SPLITS}
    with atomic_folder(folder) as partial:
        jobs = []
        for name in SPLITS:
            part = archive.part(name)
            new_array(partial / f"{name}.pictures.npy", (counts[name], side, side, 3), np.uint8)
            np.save(partial / f"{name}.boxes.npy", part.boxes)
            if part.labels is not None:
                np.save(partial / f"{name}.labels.npy", part.labels)
            with atomic_file(partial / f"{name}.files.txt") as stream:
                stream.write(
                    "".join(f + "\n" for f in part.files).encode("utf-8", "surrogateescape")
                )
            jobs += [
                (partial / f"{name}.pictures.npy", start, part.files[start : start + CHUNK])
                for start in range(0, counts[name], CHUNK)
            ]
        with progress(
            total=sum(counts.values()), label=f"packing into {folder}", unit="pictures"
        ) as bar:
            chunks = []
            for number, digest in in_workers(_decode_into, jobs, archive):
                chunks.append(digest)
                bar.update(number)
        write_json(
            partial / "manifest.json",
            {
                "kind": "packed",
                "format": FORMAT,
                **_place(archive.source.path),
                "digest": archive.digest(),
                "contents": _contents(archive, chunks),
                "counts": counts,
                "side": side,
                "wnids": archive.wnids,
                "names": archive.names,
                "digests": {
                    file: _digest(partial / file) for name in SPLITS for file in _small_files(name)
                },
            },
        )
    return Packed(folder)


def _contents(archive: Archive, chunks: list[bytes]) -> str:
    """SHA-256 (first 16 hex digits) of classes, file names, labels and the digests of all chunks of
    pictures.
    """
    whole = hashlib.sha256("\n".join(archive.wnids).encode())
    for name in SPLITS:
        part = archive.part(name)
        whole.update("\n".join((f"\n{name}", *part.files)).encode("utf-8", "surrogateescape"))
        whole.update(b"" if part.labels is None else part.labels.astype("<i8").tobytes())
    whole.update(b"".join(chunks))
    return whole.hexdigest()[:16]


def square(data: bytes, name: str) -> Decoded:
    """The image in an archive's bytes, which must be square; raises `InputError` with its name and
    a way out.
    """
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
    """(side, side, 3) uint8: `square` as pixels."""
    return square(data, name).pixels


def _decode_into(read: Read, job: tuple[Path, int, tuple[str, ...]]) -> tuple[int, bytes]:
    """Write a chunk of pictures to its rows; the number of them and the BLAKE2b digest of their
    pixels.

    BLAKE2b takes about half of SHA-256's time, which was a tenth of packing.
    """
    target, start, files = job
    rows = np.load(target, mmap_mode="r")
    decoded = np.empty((len(files), *rows.shape[1:]), rows.dtype)
    for pixels, file in zip(decoded, files, strict=True):
        image = decode(read(file), file)
        if image.shape != pixels.shape:
            raise InputError(
                f"{file}: is {image.shape[1]}x{image.shape[0]} pixels, and the first image is "
                f"{rows.shape[2]}x{rows.shape[1]}; all must have one size (64x64 in Tiny "
                "ImageNet), so resize it or fetch the archive again"
            )
        pixels[:] = image
    # not through the map, where every page would be a fault of its own
    with target.open("r+b") as stream:
        stream.seek(rows.offset + start * rows[:1].nbytes)
        stream.write(decoded)
    return len(files), hashlib.blake2b(decoded, digest_size=32).digest()
