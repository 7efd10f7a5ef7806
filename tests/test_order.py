"""The order of the images of an epoch: balanced classes, and blocks of neighbours."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinynet.data.batches import seeded_generator
from tinynet.training import order as module
from tinynet.training.order import Shuffle, block_for

LABELS = st.lists(st.integers(0, 6), min_size=2, max_size=300).map(lambda x: np.array(sorted(x)))
SEEDS = {"seed": st.integers(0, 4), "epoch": st.integers(0, 4)}


@given(labels=LABELS, block=st.integers(0, 40), **SEEDS)
@settings(deadline=None)
def test_a_balanced_epoch_shows_all_classes_equally_often(labels, block, seed, epoch):
    order = Shuffle(True, block).order(labels, seed, epoch)
    counts = Counter(labels[order].tolist())
    assert len(order) == len(labels) and counts.keys() == set(labels.tolist())
    assert max(counts.values()) - min(counts.values()) <= 1
    times = Counter(order.tolist())
    for label in counts:  # no image is shown twice before all of its class are shown once
        own = np.flatnonzero(labels == label)
        shown = [times[position] for position in own]
        assert max(shown) - min(shown) <= 1
    assert np.array_equal(order, Shuffle(True, block).order(labels, seed, epoch))


@given(labels=LABELS, block=st.integers(1, 400), **SEEDS)
@settings(deadline=None)
def test_blocks_show_every_image_once(labels, block, seed, epoch):
    order = Shuffle(block=block).order(labels, seed, epoch)
    assert sorted(order.tolist()) == list(range(len(labels)))


def test_blocks_keep_neighbours_near_each_other_and_still_mix_classes(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 64)
    labels = np.repeat(np.arange(100), 500)
    order = Shuffle(block=50).order(labels, 0, 0)
    for first in range(0, len(order), 64 * 50):  # a window is of 64 whole blocks
        blocks = Counter((order[first : first + 64 * 50] // 50).tolist())
        assert set(blocks.values()) == {50} and len(blocks) <= 64
    batches = [len(set(labels[order[first : first + 64]])) for first in range(0, 49_984, 64)]
    assert np.mean(batches) > 28
    assert not np.array_equal(order, Shuffle(block=50).order(labels, 0, 1))


def test_the_plain_order_is_that_of_the_first_edition():
    permutation = torch.randperm(10, generator=seeded_generator("cpu", 3, "order", 1))
    assert Shuffle().order(np.zeros(10, np.int64), 3, 1).tolist() == permutation.tolist()


@pytest.mark.parametrize(("size", "row", "block"), [(50, 10, 0), (51, 10, 209_715), (51, 2**23, 1)])
def test_blocks_are_for_data_larger_than_half_of_the_memory(monkeypatch, size, row, block):
    monkeypatch.setattr(module, "available_memory", lambda: 100)
    monkeypatch.setattr(module, "LEAST_BYTES", 10)
    assert block_for(size, row) == block


def test_data_of_the_size_of_tiny_imagenet_has_one_order_on_every_machine(monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 10**9)
    assert block_for(100_000 * 64 * 64 * 3, 64 * 64 * 3) == 0
