"""Verify images: decode all, find duplicates, and compare Tiny ImageNet with official figures."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np

from tinynet.data.checks import FilePair, Report, Row, first_lines
from tinynet.data.decode import decode
from tinynet.data.inspection import fault_text, in_subsets, other_modes
from tinynet.data.packed import Packed
from tinynet.data.source import SPLITS, Source
from tinynet.data.tiny_imagenet import Archive
from tinynet.data.verify_any import verify_any
from tinynet.data.workers import CHUNK, ReadFile
from tinynet.errors import InputError

# Counts of the archive of 248,100,043 bytes published at cs231n.stanford.edu, and of its repacked
# copies: images, images of one channel, images of three grey channels, pairs of identical files,
# and those pairs that have different labels.
OFFICIAL_CLASSES = 200
OFFICIAL_COUNTS = {"train": 100_000, "val": 10_000, "test": 10_000}
OFFICIAL_SIZE = "64x64"
OFFICIAL_ONE_CHANNEL = {"train": 1_821, "val": 168, "test": 189}
OFFICIAL_GREY = {"train": 188, "val": 25, "test": 16}
OFFICIAL_PAIRS = {
    ("train", "train"): 20,
    ("train", "val"): 7,
    ("train", "test"): 9,
    ("val", "val"): 0,
    ("val", "test"): 1,
    ("test", "test"): 2,
}
OFFICIAL_CONFLICTS = {("train", "train"): 20, ("train", "val"): 7, ("val", "val"): 0}
_ONE_CHANNEL_MODES = ("1", "L", "P", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class _Image:
    """The properties of one image; only `fault` if the image cannot be decoded."""

    digest: bytes = b""
    size: str = ""
    one_channel: bool = False
    grey: bool = False
    mode: str = ""
    fault: str = ""


_Images = dict[str, list[_Image]]  # part -> images in the order of its files
# Two parts -> pairs of files, and whether their labels differ (None: no labels).
_Pairs = dict[tuple[str, str], list[FilePair]]


def verify(source: Source) -> Report:
    """Decode every image of `source`; compare Tiny ImageNet with the official figures.

    Other images are checked for what spoils a training or its score, see `verify_any`.
    """
    if isinstance(source, Archive) and source.one_size:
        return _verify_archive(source)
    return verify_any(source)


def _verify_archive(archive: Archive) -> Report:
    """Decode every image of `archive`, and compare the archive with the official figures.

    A complete archive must agree with the official one. Any other archive must be consistent: the
    same number of images in every class, one image size, every image decodable, and no more
    duplicates than in the official archive. The source of the figures is at the head of this file.
    """
    images: _Images = in_subsets(archive, _inspect, CHUNK)
    pairs = _same_bytes(archive, images)
    scope = _scope(archive)
    rows = [
        *_layout_rows(archive, scope),
        *_image_rows(images, scope),
        *_pair_rows(pairs, scope),
    ]
    faults = [
        f"{file}: {image.fault}"
        for name in SPLITS
        for file, image in zip(archive.part(name).files, images[name], strict=True)
        if image.fault
    ]
    duplicates = tuple(pair for pairs_of_parts in pairs.values() for pair in pairs_of_parts)
    lines = first_lines(faults, "that cannot be decoded")
    return Report(scope, tuple(rows), lines, _other_modes(images), duplicates)


def same_pixels(packed: Packed) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Find pairs of identical images in train and val: (part, row) of both."""
    groups: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for name in ("train", "val"):
        for row, pixels in enumerate(packed.part(name).images):
            digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
            groups[digest].append((name, row))
    return [pair for group in groups.values() for pair in combinations(group, 2)]


def _scope(archive: Archive) -> str:
    counts = [(len(archive.wnids), OFFICIAL_CLASSES)] + [
        (len(archive.part(name).files), OFFICIAL_COUNTS[name]) for name in SPLITS
    ]
    if all(count == official for count, official in counts):
        return "complete"
    return "part" if all(count <= official for count, official in counts) else "other"


def _inspect(read_file: ReadFile, job: tuple[str, tuple[str, ...]]) -> list[_Image]:
    images = []
    for file in job[1]:
        try:
            data = read_file(file)
            decoded = decode(data, file)
        except InputError as error:
            images.append(_Image(fault=fault_text(error, file)))
            continue
        pixels, one_channel = decoded.pixels, decoded.mode in _ONE_CHANNEL_MODES
        red, green, blue = pixels.astype(np.int16).transpose(2, 0, 1)
        grey = not one_channel and max(abs(red - green).max(), abs(green - blue).max()) <= 2
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        images.append(
            _Image(hashlib.sha256(data).digest(), size, one_channel, bool(grey), decoded.mode)
        )
    return images


def _same_bytes(archive: Archive, images: _Images) -> _Pairs:
    """Find pairs of files with the same bytes, for every pair of parts."""
    groups = defaultdict(list)
    for name in SPLITS:
        part = archive.part(name)
        labels = [None] * len(part.files) if part.labels is None else part.labels
        for file, label, image in zip(part.files, labels, images[name], strict=True):
            if not image.fault:
                groups[image.digest].append((name, file, label))
    pairs: _Pairs = {key: [] for key in combinations_with_replacement(SPLITS, 2)}
    for group in groups.values():
        for (part_a, a, label_a), (part_b, b, label_b) in combinations(group, 2):
            conflict = None if label_a is None or label_b is None else bool(label_a != label_b)
            pairs[part_a, part_b].append((a, b, conflict))
    return pairs


def _layout_rows(archive: Archive, scope: str) -> Iterator[Row]:
    ok = True if scope == "complete" else None
    yield Row("classes", len(archive.wnids), OFFICIAL_CLASSES, ok)
    for name in SPLITS:
        part = archive.part(name)
        yield Row(f"{name} images", len(part.files), OFFICIAL_COUNTS[name], ok)
        if part.labels is None:
            continue
        yield Row(
            f"{name} images with a label",
            len(part.labels),
            OFFICIAL_COUNTS[name],
            len(part.labels) == len(part.files),
        )
        counts = np.bincount(part.labels, minlength=len(archive.wnids))
        equal = counts.min() == counts.max()
        yield Row(
            f"{name} images per class",
            int(counts.min()) if equal else f"{counts.min()} to {counts.max()}",
            OFFICIAL_COUNTS[name] // OFFICIAL_CLASSES,
            bool(equal),
        )


def _image_rows(images: _Images, scope: str) -> Iterator[Row]:
    every = [image for name in SPLITS for image in images[name]]
    broken = sum(bool(image.fault) for image in every)
    yield Row("images that cannot be decoded", broken, 0, broken == 0)
    sizes = [
        size for size, _ in Counter(image.size for image in every if not image.fault).most_common()
    ]
    yield Row(
        "image size",
        ", ".join(sizes[:5]),
        OFFICIAL_SIZE,
        sizes == [OFFICIAL_SIZE] if scope == "complete" else len(sizes) == 1,
    )
    for name in SPLITS:
        count = sum(image.one_channel for image in images[name])
        yield Row(
            f"{name} images of one channel",
            count,
            OFFICIAL_ONE_CHANNEL[name],
            count == OFFICIAL_ONE_CHANNEL[name] if scope == "complete" else None,
        )
    modes = _other_modes(images)
    yield Row(
        "images in other modes than RGB and L",
        modes or 0,
        0,
        not modes if scope == "complete" else None,
    )
    for name in SPLITS:
        # In a grey image, red and green, and green and blue, differ by at most 2. JPEG decoders may
        # differ by as much, so this figure is only reported.
        yield Row(
            f"{name} images of three grey channels",
            sum(image.grey for image in images[name]),
            OFFICIAL_GREY[name],
            None,
        )


def _other_modes(images: _Images) -> str:
    return other_modes(image.mode for name in SPLITS for image in images[name])


def _pair_rows(pairs: _Pairs, scope: str) -> Iterator[Row]:
    for key, duplicates in pairs.items():
        figures = {"": OFFICIAL_PAIRS[key]}
        if key in OFFICIAL_CONFLICTS:
            figures[" with different labels"] = OFFICIAL_CONFLICTS[key]
        for suffix, official in figures.items():
            conflicts = [pair for pair in duplicates if pair[2] is True]
            count = len(conflicts) if suffix else len(duplicates)
            yield Row(
                f"identical pairs {key[0]}-{key[1]}{suffix}",
                count,
                official,
                count == official if scope == "complete" else count <= official,
            )
