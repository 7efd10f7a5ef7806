"""What an archive really holds, picture by picture, beside the figures of the official one; twins
among them.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np

from tinynet.console import progress
from tinynet.data.decode import PLAIN_MODES, decode
from tinynet.data.packed import Packed
from tinynet.data.tiny_imagenet import SPLITS, Archive
from tinynet.data.workers import CHUNK, in_workers
from tinynet.errors import InputError

# Counted in the archive of 248,100,043 bytes published at cs231n.stanford.edu; repacked copies
# agree.
_CLASSES = 200
_COUNTS = {"train": 100_000, "val": 10_000, "test": 10_000}
_SIZE = "64x64"
_ONE_CHANNEL = {"train": 1_821, "val": 168, "test": 189}
_GREY = {"train": 188, "val": 25, "test": 16}
_PAIRS = {
    ("train", "train"): 20,
    ("train", "val"): 7,
    ("train", "test"): 9,
    ("val", "val"): 0,
    ("val", "test"): 1,
    ("test", "test"): 2,
}
_CONFLICTS = {("train", "train"): 20, ("train", "val"): 7, ("val", "val"): 0}
_ONE_CHANNEL_MODES = ("1", "L", "P", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_LISTED = 20  # faults named one by one


@dataclass(frozen=True)
class Row:
    """One thing looked at: what was `found`, the `official` figure, and whether it is `ok`.

    `ok` is None where the figure is reported and not judged.
    """

    check: str
    found: int | str
    official: int | str | None
    ok: bool | None


@dataclass(frozen=True)
class Report:
    """The outcome of `verify`.

    `scope`: `complete`, `part` (fewer pictures than the official archive) or `other` (more of
    something). `faults`: a line for each undecodable picture, at most 20 and then their number.
    `other_modes`: how many images have which of the modes that are neither RGB nor L, in words.
    `duplicates`: pairs of file names with the same bytes, and whether their labels differ (None:
    unlabelled).
    """

    scope: str
    rows: tuple[Row, ...]
    faults: tuple[str, ...]
    other_modes: str
    duplicates: tuple[tuple[str, str, bool | None], ...]

    @property
    def ok(self) -> bool:
        """Nothing is wrong; what is merely known of the official archive, as its duplicates, is not
        wrong.
        """
        return all(row.ok is not False for row in self.rows)


@dataclass(frozen=True)
class _Image:
    digest: bytes = b""
    size: str = ""
    one_channel: bool = False
    grey: bool = False
    mode: str = ""
    fault: str = ""


def verify(archive: Archive) -> Report:
    """Read and decode every picture of `archive` and compare it with itself and with the official
    figures.

    A complete archive must agree with the official one. Any other must be consistent: equal numbers
    a class, one picture size, everything decodable, and no more duplicates than the official one
    has. Source of the official figures: see the head of this file.
    """
    images = _look_at_all(archive)
    pairs = _same_bytes(archive, images)
    scope = _scope(archive)
    rows = [
        *_layout_rows(archive, scope),
        *_image_rows(images, scope),
        *_pair_rows(pairs, scope),
    ]
    faults = [
        f"{file}: {p.fault}"
        for name in SPLITS
        for file, p in zip(archive.part(name).files, images[name], strict=True)
        if p.fault
    ]
    if len(faults) > _LISTED:
        faults = [*faults[:_LISTED], f"and {len(faults) - _LISTED:,} more that cannot be decoded"]
    duplicates = tuple((a, b, conflict) for found in pairs.values() for a, b, conflict in found)
    return Report(scope, tuple(rows), tuple(faults), _other_modes(images), duplicates)


def same_pixels(packed: Packed) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Pairs of labelled pictures that are the same, pixel by pixel: the part and the row of
    each.
    """
    seen: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for name in ("train", "val"):
        for row, pixels in enumerate(packed.part(name).images):
            seen[hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16).digest()].append(
                (name, row)
            )
    return [pair for group in seen.values() for pair in combinations(group, 2)]


def _scope(archive: Archive) -> str:
    sizes = [(len(archive.wnids), _CLASSES)] + [
        (len(archive.part(s).files), _COUNTS[s]) for s in SPLITS
    ]
    if all(found == official for found, official in sizes):
        return "complete"
    return "part" if all(found <= official for found, official in sizes) else "other"


def _look_at_all(archive: Archive) -> dict[str, list[_Image]]:
    jobs = [
        (name, archive.part(name).files[start : start + CHUNK])
        for name in SPLITS
        for start in range(0, len(archive.part(name).files), CHUNK)
    ]
    seen: dict[str, list[_Image]] = {name: [] for name in SPLITS}
    total = sum(len(files) for _, files in jobs)
    with progress(total=total, label=f"looking at {archive.path}", unit="pictures") as bar:
        for (name, _), found in zip(jobs, in_workers(_look_at, jobs, archive), strict=True):
            seen[name] += found
            bar.update(len(found))
    return seen


def _look_at(read: Callable[[str], bytes], job: tuple[str, tuple[str, ...]]) -> list[_Image]:
    found = []
    for file in job[1]:
        try:
            data = read(file)
            decoded = decode(data, file)
        except InputError as error:
            found.append(_Image(fault=str(error).removeprefix(f"{file}: ")[:120]))
            continue
        pixels, one_channel = decoded.pixels, decoded.mode in _ONE_CHANNEL_MODES
        red, green, blue = pixels.astype(np.int16).transpose(2, 0, 1)
        grey = not one_channel and max(abs(red - green).max(), abs(green - blue).max()) <= 2
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        found.append(
            _Image(hashlib.sha256(data).digest(), size, one_channel, bool(grey), decoded.mode)
        )
    return found


def _same_bytes(archive: Archive, images: dict[str, list[_Image]]) -> dict[tuple[str, str], list]:
    """Pairs of parts -> pairs of files with the same bytes, and whether their labels differ."""
    groups = defaultdict(list)
    for name in SPLITS:
        part = archive.part(name)
        labels = [None] * len(part.files) if part.labels is None else part.labels
        for file, label, image in zip(part.files, labels, images[name], strict=True):
            if not image.fault:
                groups[image.digest].append((name, file, label))
    pairs: dict[tuple[str, str], list] = {
        key: [] for key in combinations_with_replacement(SPLITS, 2)
    }
    for group in groups.values():
        for (part_a, a, label_a), (part_b, b, label_b) in combinations(group, 2):
            conflict = None if label_a is None or label_b is None else bool(label_a != label_b)
            pairs[part_a, part_b].append((a, b, conflict))
    return pairs


def _layout_rows(archive: Archive, scope: str) -> Iterator[Row]:
    whole = True if scope == "complete" else None
    yield Row("classes", len(archive.wnids), _CLASSES, whole)
    for name in SPLITS:
        part = archive.part(name)
        yield Row(f"{name} pictures", len(part.files), _COUNTS[name], whole)
        if part.labels is None:
            continue
        yield Row(
            f"{name} pictures with a label",
            len(part.labels),
            _COUNTS[name],
            len(part.labels) == len(part.files),
        )
        each = np.bincount(part.labels, minlength=len(archive.wnids))
        even = each.min() == each.max()
        yield Row(
            f"{name} pictures a class",
            int(each.min()) if even else f"{each.min()} to {each.max()}",
            _COUNTS[name] // _CLASSES,
            bool(even),
        )


def _image_rows(images: dict[str, list[_Image]], scope: str) -> Iterator[Row]:
    every = [p for name in SPLITS for p in images[name]]
    broken = sum(bool(p.fault) for p in every)
    yield Row("pictures that cannot be decoded", broken, 0, broken == 0)
    sizes = [size for size, _ in Counter(p.size for p in every if not p.fault).most_common()]
    yield Row(
        "picture size",
        ", ".join(sizes[:5]),
        _SIZE,
        sizes == [_SIZE] if scope == "complete" else len(sizes) == 1,
    )
    for name in SPLITS:
        count = sum(p.one_channel for p in images[name])
        yield Row(
            f"{name} pictures of one channel",
            count,
            _ONE_CHANNEL[name],
            count == _ONE_CHANNEL[name] if scope == "complete" else None,
        )
    modes = _other_modes(images)
    yield Row(
        "images in other modes than RGB and L",
        modes or 0,
        0,
        not modes if scope == "complete" else None,
    )
    for name in SPLITS:
        # Red and green, and green and blue, differ by 2 at most; JPEG decoders may differ by as
        # much, so this figure is not judged.
        yield Row(
            f"{name} pictures of three grey channels",
            sum(p.grey for p in images[name]),
            _GREY[name],
            None,
        )


def _other_modes(images: dict[str, list[_Image]]) -> str:
    counts = Counter(
        p.mode for name in SPLITS for p in images[name] if p.mode and p.mode not in PLAIN_MODES
    )
    return ", ".join(f"{count:,} {mode}" for mode, count in counts.most_common())


def _pair_rows(pairs: dict[tuple[str, str], list], scope: str) -> Iterator[Row]:
    for key, found in pairs.items():
        official = {"": _PAIRS[key]} | (
            {" with different labels": _CONFLICTS[key]} if key in _CONFLICTS else {}
        )
        for suffix, known in official.items():
            count = sum(conflict is True for _, _, conflict in found) if suffix else len(found)
            yield Row(
                f"identical pairs {key[0]}-{key[1]}{suffix}",
                count,
                known,
                count == known if scope == "complete" else count <= known,
            )
