"""The order in which an epoch shows the training images, decided by seed and epoch."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from tinynet.data.batches import seeded_generator
from tinynet.memory import available_memory

WINDOW = 256  # blocks that are mixed with each other: a batch is of many classes
LEAST_BYTES = 4 * 10**9  # smaller data has one order on every machine
BLOCK_BYTES = 2**21  # a disk reads so much in about the time of one movement of its head


@dataclass(frozen=True)
class Shuffle:
    """How the images of an epoch are ordered.

    `balanced`: every class is shown equally often; images of large classes are left out at random,
    those of small classes repeated. `block`: so many neighbours on disk stay near each other, for
    data that does not fit in memory; 0: any order.
    """

    balanced: bool = False
    block: int = 0

    def epoch(self, labels: np.ndarray, seed: int, epoch: int, batch: int) -> np.ndarray:
        """Return the positions of the images of an epoch in their order, (N,) int64.

        `labels`: (N,) of the images, in the order of their rows on disk. A last batch of a single
        image is left out.
        """
        return self.order(labels, seed, epoch)[: _shown(len(labels), batch)]

    def order(self, labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Return the positions of all N images in the order of the epoch, (N,) int64."""
        generator = seeded_generator("cpu", seed, "order", epoch)
        if not self.balanced and not self.block:
            return torch.randperm(len(labels), generator=generator).numpy()
        random = np.random.RandomState(generator.initial_seed() % 2**32)
        positions = _balanced(labels, random) if self.balanced else np.arange(len(labels))
        return _in_blocks(positions, self.block or len(positions), random)


def _balanced(labels: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Positions of as many images as there are labels, ascending, equally many of each class."""
    classes = random.permutation(np.unique(labels))  # the first ones get the remainder
    quotas = np.full(len(classes), len(labels) // len(classes))
    quotas[: len(labels) % len(classes)] += 1
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    parts = []
    for label, quota in zip(classes, quotas, strict=True):
        own = by_class[starts[label] : starts[label] + counts[label]]
        rounds = [random.permutation(own) for _ in range(math.ceil(quota / len(own)))]
        parts.append(np.concatenate(rounds)[:quota])
    return np.sort(np.concatenate(parts))


def _in_blocks(positions: np.ndarray, block: int, random: np.random.RandomState) -> np.ndarray:
    """Shuffle blocks of neighbours, then the images of every `WINDOW` blocks."""
    starts = random.permutation(np.arange(0, len(positions), block))
    windows = []
    for first in range(0, len(starts), WINDOW):
        blocks = [positions[start : start + block] for start in starts[first : first + WINDOW]]
        windows.append(random.permutation(np.concatenate(blocks)))
    return np.concatenate(windows)


def block_for(size: int, row_size: int) -> int:
    """Return `Shuffle.block` for images of `size` bytes in all and `row_size` bytes each.

    Images that fit in half of the memory are read from the disk once, so their order is free. So is
    that of less than `LEAST_BYTES`, such as Tiny ImageNet: it never depends on the machine.
    """
    if size <= max(LEAST_BYTES, available_memory() / 2):
        return 0
    return max(1, BLOCK_BYTES // row_size)


def steps_per_epoch(count: int, batch: int) -> int:
    """Return the number of batches in an epoch of `count` images."""
    return math.ceil(_shown(count, batch) / batch)


def _shown(count: int, batch: int) -> int:
    """The images that an epoch shows: no last batch of a single one, as batch norm needs two."""
    return count - (count % batch == 1)
