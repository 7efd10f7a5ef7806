"""Packed images: the memory-mapped uint8 arrays of a source, with a manifest (see `packing`)."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tinynet.data.source import SPLITS
from tinynet.errors import InputError
from tinynet.files import map_array, read_json
from tinynet.records import Json, class_names

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


@dataclass(frozen=True, eq=False)  # compare and hash by identity: arrays have no hash
class PackedPart:
    """One subset of a source as arrays; row i of each array belongs to image i.

    `images`: (N, side, side, 3) uint8, RGB. `labels`: (N,) int64 class indices, or None.
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
                f"{self.name}: has no labels, so it cannot be scored; use holdout or val"
            )
        return self.labels

    @cached_property
    def files(self) -> list[str]:
        """The file names of the images in the source."""
        path = self._folder / f"{self.name}.files.txt"
        return path.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]


class Packed:
    """The packed copy of a source.

    `train`, `val`, `test`: each a `PackedPart`. `wnids`: the class ids. `names`: the class
    names. `side`: width and height of the images in pixels. `resized`: whether they are centre
    squares of larger or smaller images.

    `contents`: the digest of classes, file names, labels and images: of their pixels, or of their
    files where they are resized. It is the same for a zip, its extracted folder and a repacked
    copy; it differs if an image differs. `images`: the same, whatever size they are packed at.
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
        self.resized: bool = self.manifest.get("resized", False)
        self.images: str = self.manifest.get("images") or self.manifest["contents"]
        self.contents: str = self.manifest["contents"]
        self.train, self.val, self.test = (self._part(name) for name in SPLITS)

    @cached_property
    def titles(self) -> list[str]:
        """What rows call each class, see `class_names`."""
        return class_names(self.wnids, self.names)

    @property
    def cache(self) -> Path:
        """The folder for other data that are computed from the same source."""
        return self.folder.parent

    def part(self, name: str) -> PackedPart:
        """Return the part `name`: `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def _part(self, name: str) -> PackedPart:
        for file in small_files(name, f"{name}.labels.npy" in self.manifest["digests"]):
            path, digest = self.folder / file, str(self.manifest["digests"].get(file))
            size = path.stat().st_size if path.is_file() else "no"
            # A file of another size is not read: it may be huge.
            if not digest.startswith(f"{size} ") or digest != file_digest(path):
                problem = "has changed since packing" if path.exists() else "is missing"
                raise _damaged(path, problem)
        labelled = name != "test" or f"{name}.labels.npy" in self.manifest["digests"]
        labels = np.asarray(self._array(name, "labels")) if labelled else None
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


def small_files(name: str, labelled: bool) -> list[str]:
    """Return the files of a subset whose digests are checked whenever the copy is opened."""
    return [
        f"{name}.files.txt",
        f"{name}.boxes.npy",
        *([f"{name}.labels.npy"] if labelled or name != "test" else []),
    ]


def file_digest(path: Path) -> str:
    """Return size in bytes and SHA-256 (first 16 hex digits) of a file."""
    data = path.read_bytes()
    return f"{len(data)} {hashlib.sha256(data).hexdigest()[:16]}"
