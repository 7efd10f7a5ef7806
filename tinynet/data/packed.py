"""Pack an archive: decode its images once into memory-mapped uint8 arrays with a manifest."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tinynet.console import log, option, progress
from tinynet.data.decode import Decoded
from tinynet.data.decode import decode as decode_any
from tinynet.data.places import expand_user, locate
from tinynet.data.tiny_imagenet import SPLITS, Archive, Part
from tinynet.data.workers import CHUNK, ReadFile, in_child, in_workers
from tinynet.distributed import get_world
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
from tinynet.records import Json

FORMAT = 4  # format 3 had white instead of images of more than 8 bits
# The required keys of a manifest, and the types of their values.
_MANIFEST_TYPES = {
    "counts": dict,
    "side": int,
    "wnids": list,
    "names": list,
    "contents": str,
    "source": str,
    "digests": dict,
}
# Array name -> dtype and number of dimensions.
_ARRAYS = {"pictures": (np.uint8, 4), "labels": (np.int64, 1), "boxes": (np.int16, 2)}

_Job = tuple[Path, int, tuple[str, ...]]  # array file, first row, files of the images


@dataclass(frozen=True, eq=False)  # compare and hash by identity: arrays have no hash
class PackedPart:
    """One part of the archive as arrays; row i of each array belongs to image i.

    `images`: (N, side, side, 3) uint8, RGB. `labels`: (N,) int64 class indices; None for test.
    `boxes`: (N, 4) int16, x0, y0, x1, y1 in pixels, inclusive; -1 for images without a box.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    boxes: np.ndarray
    _folder: Path

    def __len__(self) -> int:
        return len(self.images)

    @property
    def required_labels(self) -> np.ndarray:
        """The labels, (N,) int64; raises `InputError` if the part has none."""
        if self.labels is None:
            raise InputError(
                f"{self.name}: has no labels, so it cannot be scored; use train or val"
            )
        return self.labels

    @cached_property
    def files(self) -> list[str]:
        """The file names of the images in the archive."""
        path = self._folder / f"{self.name}.files.txt"
        return path.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]


class Packed:
    """The packed copy of an archive.

    `train`, `val`, `test`: each a `PackedPart`. `wnids`: the class ids, sorted. `names`: the class
    names. `side`: width and height of the images in pixels.

    `contents`: the digest of classes, file names, labels and decoded pixels. It is the same for a
    zip, its extracted folder and a repacked copy; it differs if an image differs.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise InputError(
                f"{folder}: contains no packed images of format {FORMAT}; pack them with "
                "`python -m tinynet.data pack`"
            )
        self.manifest: Json = manifest
        self.wnids: tuple[str, ...] = tuple(self.manifest["wnids"])
        self.names: tuple[str, ...] = tuple(self.manifest["names"])
        self.side: int = self.manifest["side"]
        self.contents: str = self.manifest["contents"]
        self.train, self.val, self.test = (self._part(name) for name in SPLITS)

    @property
    def cache(self) -> Path:
        """The folder for other data that are computed from the same archive."""
        return self.folder.parent

    def part(self, name: str) -> PackedPart:
        """Return the part `name`: `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def _part(self, name: str) -> PackedPart:
        for file in _small_files(name):
            path, digest = self.folder / file, str(self.manifest["digests"].get(file))
            size = path.stat().st_size if path.is_file() else "no"
            # A file of another size is not read: it may be huge.
            if not digest.startswith(f"{size} ") or digest != _digest(path):
                problem = "has changed since packing" if path.exists() else "is missing"
                raise _damaged(path, problem)
        labels = None if name == "test" else np.asarray(self._array(name, "labels"))
        return PackedPart(
            name,
            self._array(name, "pictures"),
            labels,
            np.asarray(self._array(name, "boxes")),
            self.folder,
        )

    def _array(self, name: str, kind: str) -> np.ndarray:
        """Map an array of a part; raises `InputError` if it does not agree with the manifest."""
        path, count = self.folder / f"{name}.{kind}.npy", self.manifest["counts"][name]
        dtype, dimensions = _ARRAYS[kind]
        try:
            array = map_array(path, "r" if count else None)  # an empty file cannot be mapped
            sides = (self.side, self.side, 3) if kind == "pictures" else array.shape[1:]
            if (array.dtype, array.ndim, array.shape) != (dtype, dimensions, (count, *sides)):
                raise ValueError(f"{array.dtype} of shape {array.shape}, not as manifest.json says")
        except (FileNotFoundError, ValueError) as error:
            raise _damaged(path, f"cannot be read ({' '.join(str(error).split())[:80]})") from None
        return array


def _damaged(path: Path, problem: str) -> InputError:
    """The error for a damaged file of a packed copy."""
    return InputError(
        f"{path}: {problem}; delete {path.parent} and run the command again to rebuild it"
    )


def read_manifest(folder: Path) -> Json | None:
    """Read the manifest of a packed copy; None if there is none of this format."""
    try:
        manifest = read_json(folder / "manifest.json")
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None
    complete = all(isinstance(manifest.get(name), kind) for name, kind in _MANIFEST_TYPES.items())
    return manifest if complete and _is_plausible(manifest) else None


def _is_plausible(manifest: Json) -> bool:
    """Whether the values of a manifest can be those of a packed copy."""
    texts = all(isinstance(text, str) for text in (*manifest["wnids"], *manifest["names"]))
    counts = [manifest["counts"].get(name) for name in SPLITS]
    return (
        texts
        and len(set(manifest["wnids"])) == len(manifest["names"]) > 0 < manifest["side"]
        and all(isinstance(count, int) and count >= 0 for count in counts)
    )


def _small_files(name: str) -> list[str]:
    """The files of a part whose digests are checked whenever the packed copy is opened."""
    return [
        f"{name}.files.txt",
        f"{name}.boxes.npy",
        *([f"{name}.labels.npy"] if name != "test" else []),
    ]


def _digest(path: Path) -> str:
    """Size in bytes and SHA-256 (first 16 hex digits) of a file."""
    data = path.read_bytes()
    return f"{len(data)} {hashlib.sha256(data).hexdigest()[:16]}"


def cache_folder(source: Path, cache: str | None = None) -> Path:
    """The cache folder: `cache`, or by default the folder `cache` next to `source`.

    Raises `InputError` if it is a file.
    """
    folder = source.parent / "cache" if cache is None else expand_user(cache, "cache")
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"{folder}: is a file, but the cache is a folder; choose another place with "
            f"{option('cache')}"
        )
    return folder


def open_packed(path: str | Path, cache: str | None = None) -> Packed:
    """Open the packed copy of the archive at `path`, and pack the archive first if necessary.

    `cache`: the cache folder (default: `cache` next to the archive). Raises `InputError` if the
    archive is not Tiny ImageNet or an image cannot be used.
    """
    if in_child():
        # A worker that runs the main script again would wait for its parent.
        raise SystemExit(1)
    world = get_world()
    packed = world.main_first(lambda: _open(path, cache))
    world.check_equal(packed.contents, "data")
    return packed


def _open(path: str | Path, cache: str | None) -> Packed:
    source = locate(path)
    parent = cache_folder(source, cache)
    clear_leftovers(parent)
    if folder := _unchanged_copy(source, parent):
        return Packed(folder)
    archive = Archive(source)
    folder = parent / f"{source.stem}-{archive.digest()[:8]}.packed"
    if read_manifest(folder) and not can_write(parent):
        return Packed(folder)  # a read-only cache of another user
    with locked(folder, lambda: log(f"waiting: another process is packing {source}")):
        manifest = read_manifest(folder)
        if manifest is None:
            return pack(archive, folder)
        # `_unchanged_copy` will find the copy next time.
        write_json(folder / "manifest.json", manifest | _stamp(source))
        return Packed(folder)


def _unchanged_copy(source: Path, cache: Path) -> Path | None:
    """The packed copy of an unchanged zip, found without reading the zip, which takes seconds."""
    for folder in cache.glob(f"{source.stem}-*.packed") if source.is_file() else ():
        manifest = read_manifest(folder)
        if manifest and manifest | _stamp(source) == manifest:
            return folder
    return None


def _stamp(source: Path) -> Json:
    """Path, size and modification time of a zip; no time for folders, which do not record edits."""
    stat = source.stat()
    stamp = [stat.st_size, stat.st_mtime_ns] if source.is_file() else None
    return {"source": str(source.resolve()), "stamp": stamp}


def pack(archive: Archive, folder: Path) -> Packed:
    """Decode every image of `archive` into `folder`, which is created complete or not at all.

    Raises `InputError` with the name of the first image that cannot be decoded or has another size.
    """
    side = len(decode(archive.read(archive.train.files[0]), archive.train.files[0]))
    counts = {name: len(archive.part(name).files) for name in SPLITS}
    with atomic_folder(folder) as partial:
        jobs: list[_Job] = []
        for name in SPLITS:
            part = archive.part(name)
            _create_files(partial, name, part, side)
            jobs += [
                (partial / f"{name}.pictures.npy", start, part.files[start : start + CHUNK])
                for start in range(0, counts[name], CHUNK)
            ]
        with progress(
            total=sum(counts.values()), label=f"packing into {folder}", unit="images"
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
                **_stamp(archive.source.path),
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


def _create_files(folder: Path, name: str, part: Part, side: int) -> None:
    """Create the files of a part, with an empty array for the images."""
    new_array(folder / f"{name}.pictures.npy", (len(part.files), side, side, 3), np.uint8)
    np.save(folder / f"{name}.boxes.npy", part.boxes)
    if part.labels is not None:
        np.save(folder / f"{name}.labels.npy", part.labels)
    with atomic_file(folder / f"{name}.files.txt") as stream:
        stream.write("".join(f + "\n" for f in part.files).encode("utf-8", "surrogateescape"))


def _contents(archive: Archive, chunks: list[bytes]) -> str:
    """SHA-256 (first 16 hex digits) of classes, file names, labels and digests of all chunks."""
    sha256 = hashlib.sha256("\n".join(archive.wnids).encode())
    for name in SPLITS:
        part = archive.part(name)
        sha256.update("\n".join((f"\n{name}", *part.files)).encode("utf-8", "surrogateescape"))
        sha256.update(b"" if part.labels is None else part.labels.astype("<i8").tobytes())
    sha256.update(b"".join(chunks))
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


def _decode_into(read_file: ReadFile, job: _Job) -> tuple[int, bytes]:
    """Decode a chunk of images into its rows; return their number and the digest of the pixels.

    The digest is BLAKE2b, which takes half the time of SHA-256. SHA-256 took a tenth of packing.
    """
    target, start, files = job
    rows = np.load(target, mmap_mode="r")
    chunk = np.empty((len(files), *rows.shape[1:]), rows.dtype)
    for pixels, file in zip(chunk, files, strict=True):
        image = decode(read_file(file), file)
        if image.shape != pixels.shape:
            raise InputError(
                f"{file}: is {image.shape[1]}x{image.shape[0]} pixels, but the first image is "
                f"{rows.shape[2]}x{rows.shape[1]}; all must have one size (64x64 in Tiny "
                "ImageNet), so resize it or fetch the archive again"
            )
        pixels[:] = image
    # Not through the memory map, where each page causes a page fault.
    with target.open("r+b") as stream:
        stream.seek(rows.offset + start * rows[:1].nbytes)
        stream.write(chunk.data)
    return len(files), hashlib.blake2b(chunk.data, digest_size=32).digest()
