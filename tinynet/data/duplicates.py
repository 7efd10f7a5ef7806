"""Find images with the same bytes, and images that look alike, without comparing all pairs.

Images look alike if their perceptual hashes differ in few bits, and the mean colours of their
regions hardly differ. The 64 bits are cut into one band more than the number of bits that may
differ, so two such hashes are equal in at least one band. Only images that share a band are
compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice, pairwise

import numpy as np

from tinynet.data.source import SPLITS

# Bits of imagehash's `phash` that may differ, and levels (of 255) by which the mean colour of any
# of 8x8 cells may differ. Measured on the real Tiny ImageNet. Of copies of 2,000 images, among
# 14,000 of train and val, this share is recognized:
#     JPEG quality 60, resized by 0.8, or brightness +5 %     100 %
#     cropped by 2 % around the centre                        99.9 %
#     these four changes at once                              99.7 %
#     cropped by 2 % at one corner, by 5 % around the centre  89 %, 64 %
#     mirrored                                                none
# No pair of two other images is among them. In all 120,000 images there are 3 pairs, seen by eye
# to be true: the same photo, sharper. The hash alone pairs 286 images of train and val, also
# spiders with bridges: the 18 nearest of those that the colours refuse are no copies.
DISTANCE, COLOURS = 8, 32
MAX_PAIRS = 100_000  # to name
_BITS = 64
BLOCK = 2**18  # comparisons at once
# Images that share a band with more than so many others, and with more than so many times the mean,
# are not compared there: 5,000 equal hashes take 8 s, and twice as many four times as long. In
# photos, no band is shared by more than 4 times the mean.
CROWD, CROWD_FACTOR = 5_000, 8

Key = tuple[str, str]  # two subsets, in the order of SPLITS


@dataclass(frozen=True)
class Images:
    """What duplicates are found by; N images, sorted by subset.

    `subsets`: (N,) int64 positions in SPLITS. `labels`: (N,) int64, -1 without a label. `digests`:
    (N,) int64, equal for equal bytes. `words`: (N,) uint64 perceptual hashes. `colours`: (N, C)
    uint8 mean colours.
    """

    subsets: np.ndarray
    labels: np.ndarray
    digests: np.ndarray
    words: np.ndarray
    colours: np.ndarray

    def differ(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Whether the labels of images differ, (n,) bool; false without labels."""
        a, b = self.labels[first], self.labels[second]
        return (a != b) & (a >= 0) & (b >= 0)


@dataclass(frozen=True)
class Pairs:
    """Pairs of duplicates.

    `counts`: for two subsets, the number of pairs, and of those with different labels. `wrong`: the
    first pairs that are not ok, as positions of images, ascending. `wrong_count`: the number of all
    such pairs. `crowded`: the number of images whose pairs are not all looked for.
    """

    counts: dict[Key, tuple[int, int]]
    wrong: tuple[tuple[int, int], ...]
    wrong_count: int
    crowded: int = 0


NO_PAIRS = Pairs({}, (), 0)  # not looked for


def identical_pairs(images: Images) -> Pairs:
    """Find images with the same bytes; pairs across subsets or with different labels are not ok."""
    labels = np.unique(np.stack([images.digests, images.labels]), axis=1, return_inverse=True)[1]
    counts = {}
    for key in combinations_with_replacement(SPLITS, 2):
        total = _count_pairs(images.digests, images.subsets, key)
        labelled = all(
            (images.labels[images.subsets == SPLITS.index(name)] >= 0).all() for name in key
        )
        equal = _count_pairs(labels.ravel(), images.subsets, key)
        counts[key] = total, total - equal if labelled else 0
    wrong_count = sum(
        differing if a == b else total for (a, b), (total, differing) in counts.items()
    )
    return Pairs(counts, tuple(islice(_wrong_pairs(images), MAX_PAIRS)), wrong_count)


def _count_pairs(groups: np.ndarray, subsets: np.ndarray, key: Key) -> int:
    """The number of pairs of one group, without a list of them: a group of N has about N²/2."""
    first, second = (
        np.bincount(groups[subsets == SPLITS.index(name)], minlength=int(groups.max(initial=0)) + 1)
        for name in key
    )
    if key[0] == key[1]:
        return int((first * (first - 1) // 2).sum())
    return int((first * second).sum())


def _wrong_pairs(images: Images) -> Iterator[tuple[int, int]]:
    """Yield pairs with the same bytes that are in different subsets or have different labels."""
    order = np.argsort(images.digests, kind="stable")
    starts = np.flatnonzero(np.diff(images.digests[order])) + 1
    groups = [group for group in np.split(order, starts) if len(group) > 1]
    by_digest = {int(images.digests[group[0]]): group for group in groups}
    for image in sorted(int(member) for group in groups for member in group):
        group = by_digest[int(images.digests[image])]
        others = group[np.searchsorted(group, image) + 1 :]
        across = images.subsets[others] != images.subsets[image]
        differ = images.differ(np.full_like(others, image), others)
        for other in others[across | differ]:
            yield image, int(other)


def near_pairs(images: Images) -> Pairs:
    """Find images that look alike but differ in bytes; pairs across subsets are not ok.

    Of images with the same bytes, subset and label, only the first counts.
    """
    rows = _representatives(images)
    search = BandSearch(images.words[rows])
    shape = (len(SPLITS), len(SPLITS), 2)  # two subsets, and whether the labels differ
    counts = np.zeros(shape, np.int64)
    wrong = np.zeros((0, 2), np.int64)
    for positions in search.pairs():
        first, second = rows[positions[0]], rows[positions[1]]
        alike = _same_colours(images.colours, first, second)
        alike &= images.digests[first] != images.digests[second]
        first, second = first[alike], second[alike]
        subsets, differ = (
            (images.subsets[first], images.subsets[second]),
            images.differ(first, second),
        )
        kinds = np.ravel_multi_index((*subsets, differ.astype(np.int64)), shape)
        counts += np.bincount(kinds, minlength=counts.size).reshape(shape)
        across = subsets[0] != subsets[1]
        wrong = _smallest(wrong, np.stack([first[across], second[across]], 1))
    totals = {
        (SPLITS[a], SPLITS[b]): (int(counts[a, b].sum()), int(counts[a, b, 1]))
        for a, b in combinations_with_replacement(range(len(SPLITS)), 2)
    }
    wrong_count = sum(total for (a, b), (total, _) in totals.items() if a != b)
    return Pairs(
        totals, tuple((a, b) for a, b in wrong.tolist()), wrong_count, search.crowded_count
    )


def _representatives(images: Images) -> np.ndarray:
    """The first image of each bytes, subset and label, ascending."""
    keys = np.stack([images.digests, images.subsets, images.labels])
    return np.sort(np.unique(keys, axis=1, return_index=True)[1])


def _same_colours(colours: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether no mean colour of two images differs by more than `COLOURS`; (n,) bool."""
    same = np.zeros(len(first), bool)
    for start in range(0, len(first), BLOCK // 8):
        part = slice(start, start + BLOCK // 8)
        a, b = colours[first[part]], colours[second[part]]
        same[part] = (np.maximum(a, b) - np.minimum(a, b)).max(1) <= COLOURS
    return same


def _smallest(pairs: np.ndarray, more: np.ndarray) -> np.ndarray:
    """The first `MAX_PAIRS` of two lists of pairs; `pairs` and the result ascend."""
    if len(pairs) == MAX_PAIRS:
        more = more[more[:, 0] <= pairs[-1, 0]]
    if not len(more):
        return pairs
    pairs = np.concatenate([pairs, more])
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))[:MAX_PAIRS]]


class BandSearch:
    """A search for hashes (N,) uint64 that differ in at most `distance` bits.

    `crowded_count`: the number of images in a crowd, which may lack pairs.
    """

    def __init__(self, words: np.ndarray, distance: int = DISTANCE):
        self._words, self._distance = words, distance
        edges = [round(each) for each in np.linspace(0, _BITS, distance + 2)]
        groups, crowds = [], []
        for low, high in pairwise(edges):
            keys = (words >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
            _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
            limit = max(CROWD, CROWD_FACTOR * len(words) / 2 ** (high - low))
            groups.append(group)
            crowds.append(sizes[group] > limit)
        # (bands, N): the group of each image in each band, and whether it is a crowd.
        self._groups, self._crowds = np.array(groups), np.array(crowds)
        self.crowded_count = int(self._crowds.any(0).sum())

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield every pair once: arrays of the lower and of the higher positions."""
        for band, groups in enumerate(self._groups):
            order = np.argsort(groups, kind="stable")  # positions ascend within a group
            starts = np.flatnonzero(np.diff(groups[order])) + 1
            for members in np.split(order, starts):
                if len(members) > 1 and not self._crowds[band, members[0]]:
                    yield from self._compare(members, band)

    def _compare(self, members: np.ndarray, band: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Compare all members of a group; leaves out pairs that an earlier band has."""
        words, rows = self._words[members], max(1, BLOCK // len(members))
        for start in range(0, len(members), rows):
            differing = count_bits(words[start : start + rows, None] ^ words[None, start:])
            row, column = np.nonzero(differing <= self._distance)
            above = row < column
            first, second = members[start + row[above]], members[start + column[above]]
            shared = self._groups[:band, first] == self._groups[:band, second]
            new = ~(shared & ~self._crowds[:band, first]).any(0)
            if new.any():
                yield first[new], second[new]


def count_bits_by_sums(words: np.ndarray) -> np.ndarray:
    """The number of ones in each uint64: sums of neighbouring 1, 2 and 4 bits, then of bytes."""
    one, two, four = (
        np.uint64(each) for each in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)
    )
    words = words - ((words >> np.uint64(1)) & one)
    words = (words & two) + ((words >> np.uint64(2)) & two)
    words = (words + (words >> np.uint64(4))) & four
    return (words * np.uint64(0x0101010101010101)) >> np.uint64(56)


# numpy 1.26 has no `bitwise_count`.
count_bits = getattr(np, "bitwise_count", count_bits_by_sums)
