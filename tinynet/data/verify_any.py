"""Verify images other than Tiny ImageNet: what spoils a training, or makes its score too high."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tinynet.console import log, printable
from tinynet.data.checks import FilePair, Report, Row, first_lines
from tinynet.data.duplicates import NO_PAIRS, Images, Pairs, identical_pairs, near_pairs
from tinynet.data.inspection import Properties, counts_text, inspect, other_modes
from tinynet.data.source import SPLITS, Source

_SMALL_SIDE = 32  # pixels; a network sees little more than blurred colours below it
_EXTREMES = 3  # the number of smallest, and of largest classes to name


@dataclass(frozen=True)
class _Intact:
    """The images of a source that can be decoded, in the order of its subsets.

    `names`: of the classes. `subsets`: (N,) int64 positions in SPLITS. `labels`: (N,) int64, -1
    without a label.
    """

    names: tuple[str, ...]
    files: tuple[str, ...]
    subsets: np.ndarray
    labels: np.ndarray
    properties: tuple[Properties, ...]

    def as_images(self) -> Images:
        """What duplicates are found by."""
        numbers: dict[bytes, int] = {}
        digests = [numbers.setdefault(each.digest, len(numbers)) for each in self.properties]
        colours = np.frombuffer(b"".join(each.colours for each in self.properties), np.uint8)
        return Images(
            self.subsets,
            self.labels,
            np.array(digests, np.int64),
            np.array([each.word for each in self.properties], np.uint64),
            colours.reshape(len(self.files), -1) if len(colours) else colours.reshape(0, 0),
        )

    def file_pairs(self, pairs: Pairs) -> tuple[FilePair, ...]:
        """The file names of pairs that are not ok, and whether their labels differ."""
        result = []
        for first, second in pairs.wrong:
            a, b = self.labels[first], self.labels[second]
            differ = None if min(a, b) < 0 else bool(a != b)
            result.append((self.files[first], self.files[second], differ))
        return tuple(result)

    def lines(self, pairs: Pairs, what: str) -> tuple[str, ...]:
        """A line for each pair that is not ok."""

        def text(row: int) -> str:
            label = self.labels[row]
            name = f", {self.names[label]}" if label >= 0 else ""
            return f"{self.files[row]} ({SPLITS[self.subsets[row]]}{name})"

        lines = [f"{what}: {text(first)} and {text(second)}" for first, second in pairs.wrong]
        return first_lines(lines, f"that are {what}", pairs.wrong_count)


def verify_any(source: Source) -> Report:
    """Decode every image of `source`, and count what spoils a training or its score.

    Errors are images that cannot be decoded, images with the same bytes under different labels, and
    identical images or near duplicates in two subsets. Other figures are only reported.
    """
    looks = _has_imagehash(source)
    intact, faults = _inspect(source, looks)
    images = intact.as_images()
    identical = identical_pairs(images)
    near = near_pairs(images) if looks else NO_PAIRS
    rows = [
        *_class_rows(source),
        *_image_rows(intact.properties, len(faults)),
        *_pair_rows(source, identical, near=False),
        *_pair_rows(source, near, near=True),
    ]
    return Report(
        "any",
        tuple(rows),
        first_lines(faults, "that cannot be decoded"),
        other_modes(each.mode for each in intact.properties),
        intact.file_pairs(identical),
        intact.file_pairs(near),
        (*intact.lines(identical, "identical"), *intact.lines(near, "near duplicates")),
    )


def _has_imagehash(source: Source) -> bool:
    try:
        import imagehash  # noqa: F401
    except ImportError:
        log(
            f"note: {source.path}: install imagehash to find near duplicates (pip install "
            "imagehash)"
        )
        return False
    return True


def _inspect(source: Source, looks: bool) -> tuple[_Intact, list[str]]:
    """Decode all images; return the intact ones, and a line for each of the others."""
    by_subset = inspect(source, looks)
    parts = [source.part(name) for name in SPLITS]
    files = [file for part in parts for file in part.files]
    labels = [
        np.full(len(part.files), -1) if part.labels is None else part.labels for part in parts
    ]
    properties = [each for name in SPLITS for each in by_subset[name]]
    faults = [
        f"{file}: {each.fault}" for file, each in zip(files, properties, strict=True) if each.fault
    ]
    rows = np.flatnonzero([not each.fault for each in properties])
    intact = _Intact(
        source.names,
        tuple(files[row] for row in rows),
        np.repeat(np.arange(len(SPLITS)), [len(part.files) for part in parts])[rows],
        np.concatenate(labels)[rows],
        tuple(properties[row] for row in rows),
    )
    return intact, faults


def _class_rows(source: Source) -> Iterator[Row]:
    """Rows of classes and images, and of the images per class in each subset with labels."""
    yield Row("classes", len(source.wnids), None, None)
    for name in SPLITS:
        yield Row(f"{name} images", len(source.part(name).files), None, None)
    for name in SPLITS:
        labels = source.part(name).labels
        if labels is None or not len(labels):
            continue
        counts = np.bincount(labels, minlength=len(source.wnids))
        least, most = int(counts.min()), int(counts.max())
        text = least if least == most else f"{least:,} to {most:,}"
        yield Row(f"{name} images per class", text, None, None)
        for kind, sign in (("smallest", 1), ("largest", -1)):
            rows = np.argsort(sign * counts, kind="stable")
            classes = [f"{source.names[row]} ({counts[row]:,})" for row in rows[:_EXTREMES]]
            yield Row(f"{name} {kind} classes", printable(", ".join(classes)), None, None)


def _image_rows(properties: Sequence[Properties], broken: int) -> Iterator[Row]:
    """Rows of sizes, formats and modes; `properties`: of the images that can be decoded."""
    yield Row("images that cannot be decoded", broken, None, broken == 0)
    small = sum(min(each.width, each.height) < _SMALL_SIDE for each in properties)
    yield Row(f"images below {_SMALL_SIDE} px on a side", small, None, None)
    sizes = sorted(
        ((each.width, each.height) for each in properties),
        key=lambda size: (size[0] * size[1], size),
    )
    for name, row in (("smallest", 0), ("median", (len(sizes) - 1) // 2), ("largest", -1)):
        text = f"{sizes[row][0]}x{sizes[row][1]}" if sizes else "none"
        yield Row(f"{name} image size", text, None, None)
    kinds = Counter(each.kind for each in properties)
    yield Row("image formats", counts_text(kinds) or "none", None, None)
    modes = other_modes(each.mode for each in properties)
    yield Row("images in other modes than RGB and L", modes or 0, None, None)
    turned = sum(each.turned for each in properties)
    yield Row("images with an EXIF orientation", turned, None, None)


def _pair_rows(source: Source, pairs: Pairs, near: bool) -> Iterator[Row]:
    """Rows of duplicates within and across the subsets that have images.

    `near`: near duplicates, whose labels may differ without an error: they are other images.
    """
    for key, (total, differing) in pairs.counts.items():
        if not all(source.part(each).files for each in key):
            continue
        name = f"{'near-duplicate' if near else 'identical'} pairs {key[0]}-{key[1]}"
        yield Row(name, total, None, total == 0 if key[0] != key[1] else None)
        if all(source.part(each).labels is not None for each in key):
            ok = None if near else differing == 0
            yield Row(f"{name} with different labels", differing, None, ok)
    if pairs.crowded:
        yield Row(
            "images with too many look-alikes to compare all pairs", pairs.crowded, None, None
        )
