"""The hold-out split."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import complaint

from tinynet.data.splits import split_train


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=8),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
def test_stratified_split(counts, fraction, seed):
    labels = np.random.RandomState(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    split = split_train(labels, fraction=fraction, seed=seed)
    assert sorted([*split.train, *split.holdout]) == list(range(len(labels)))
    held = Counter(labels[split.holdout].tolist())
    for label, count in enumerate(counts):
        assert 1 <= held[label] <= count - 1
        assert abs(held[label] - fraction * count) < 1 or held[label] in (1, count - 1)
    assert split.digest == split_train(labels, fraction=fraction, seed=seed).digest


@settings(max_examples=20, deadline=None)
@given(per_class=st.integers(2, 30), seed=st.integers(0, 1000))
def test_per_class_keeps_so_many_of_each(per_class, seed):
    labels = np.repeat(np.arange(5), 30)
    split = split_train(labels, seed=seed, per_class=per_class)
    kept = np.concatenate([split.train, split.holdout])
    assert len(set(kept.tolist())) == len(kept)
    assert np.bincount(labels[kept]).tolist() == [per_class] * 5


# Results are compared across runs and machines by this digest: it must never change.
@pytest.mark.parametrize(
    ("kind", "digest"), [("stratified", "c2ad4a6fd6a3b6f9"), ("random_split", "a72620a74af9889c")]
)
def test_split_of_the_official_labels_stays(kind, digest):
    split = split_train(np.repeat(np.arange(200), 500), kind)
    assert (len(split.train), len(split.holdout)) == (95_000, 5_000)
    assert split.digest == digest


def test_random_split_is_torchs():
    generator = torch.Generator().manual_seed(42)
    train, holdout = torch.utils.data.random_split(range(100_000), [95_000, 5_000], generator)
    split = split_train(np.repeat(np.arange(200), 500), "random_split")
    assert split.train.tolist() == sorted(train.indices)
    assert split.holdout.tolist() == sorted(holdout.indices)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"fraction": 0.0}, ["0.0", "above 0 and below 1"]),
        ({"fraction": 1.0}, ["1.0", "above 0 and below 1"]),
        ({"kind": "other"}, ["other", "stratified", "random_split"]),
        ({"per_class": 1}, ["per_class 1", "2 to 4"]),
        ({"per_class": 5}, ["per_class 5", "2 to 4"]),
        ({"per_class": 2, "kind": "random_split"}, ["per_class", "split_kind stratified"]),
    ],
)
def test_bad_split(given_, words):
    complaint(lambda: split_train(np.repeat([0, 1], 4), **given_), *words)


def test_class_with_one_image_cannot_be_split():
    complaint(lambda: split_train(np.array([0, 0, 1])), "class 1", "at least 2")
