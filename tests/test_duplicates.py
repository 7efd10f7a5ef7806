"""Pairs of images with the same bytes, and of images that look alike, against all pairs."""

from itertools import combinations, combinations_with_replacement
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinynet.data import duplicates
from tinynet.data.duplicates import (
    COLOURS,
    DISTANCE,
    BandSearch,
    Images,
    count_bits_by_sums,
    identical_pairs,
    near_pairs,
)
from tinynet.data.source import SPLITS

WORDS = st.integers(0, 2**64 - 1)
# A few hashes, and others that differ from one of them in a few bits.
FAMILIES = st.lists(
    st.tuples(
        st.sampled_from([0, 2**64 - 1, 0x123456789ABCDEF]), st.sets(st.integers(0, 63), max_size=9)
    ),
    max_size=40,
).map(lambda family: [word ^ sum(1 << bit for bit in bits) for word, bits in family])


def differing_bits(a, b):
    return bin(int(a) ^ int(b)).count("1")


def pairs_of(search):
    pairs = [pair for a, b in search.pairs() for pair in zip(a.tolist(), b.tolist(), strict=True)]
    assert len(pairs) == len(set(pairs)) and all(a < b for a, b in pairs)
    return set(pairs)


def bands_of(word, distance):
    """The bands of a hash, from the lowest bits on."""
    edges = [round(64 * band / (distance + 1)) for band in range(distance + 2)]
    bits = f"{int(word):064b}"[::-1]
    return [bits[low:high] for low, high in zip(edges, edges[1:], strict=False)]


# --- bands ---


@given(
    st.one_of(FAMILIES, st.lists(WORDS, max_size=20)),
    st.integers(0, 10),
    st.sampled_from([1, 20, 2**18]),
)
def test_bands_find_what_comparing_all_finds(words, distance, block):
    search = BandSearch(np.array(words, np.uint64), distance)
    with mock.patch.object(duplicates, "BLOCK", block):
        pairs = pairs_of(search)
    assert pairs == {
        (a, b)
        for a, b in combinations(range(len(words)), 2)
        if differing_bits(words[a], words[b]) <= distance
    }
    assert search.crowded_count == 0


@given(FAMILIES, st.integers(0, 8))
def test_only_what_shares_no_band_but_crowds_is_left_out(words, distance):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "CROWD", 3)
        patch.setattr(duplicates, "CROWD_FACTOR", 0)
        search = BandSearch(np.array(words, np.uint64), distance)
    bands = [bands_of(word, distance) for word in words]
    small = [
        [sum(other[k] == band for other in bands) <= 3 for k, band in enumerate(each)]
        for each in bands
    ]
    assert pairs_of(search) == {
        (a, b)
        for a, b in combinations(range(len(words)), 2)
        if differing_bits(words[a], words[b]) <= distance
        and any(
            x == y and is_small for x, y, is_small in zip(bands[a], bands[b], small[a], strict=True)
        )
    }
    assert search.crowded_count == sum(not all(each) for each in small)


def test_a_crowd_is_measured_by_the_number_of_images(monkeypatch):
    """In 1,000 images a band of 7 bits has 8 on average; a crowd is more than 8 times as many."""
    words = np.arange(1000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    monkeypatch.setattr(duplicates, "CROWD", 10)
    assert BandSearch(words).crowded_count == 0
    words[:70] = 5
    assert BandSearch(words).crowded_count >= 70
    monkeypatch.setattr(duplicates, "CROWD", 100)
    assert BandSearch(words).crowded_count == 0


@given(st.lists(WORDS, min_size=1))
def test_bits_are_counted_without_the_function_of_numpy_2(words):
    counts = count_bits_by_sums(np.array(words, np.uint64))
    assert counts.tolist() == [bin(word).count("1") for word in words]


# --- images ---

# Some differ in 8 bits, which may be all in the lowest bands or in the highest.
NEAR_WORDS = [0, 0xFF, 0xFF << 55, 0x7F, 0x1FF, 0x0101010101010101]


@st.composite
def drawn_images(draw):
    """Images with few different bytes, hashes, colours and labels; test may have no labels."""
    hashes = draw(st.lists(st.sampled_from(NEAR_WORDS), min_size=5, max_size=5))
    count = draw(st.integers(0, 25))
    subsets = sorted(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    unlabelled = draw(st.booleans())
    rows = []
    for subset in subsets:
        digest = draw(st.integers(0, 8))
        # What has the same bytes looks the same.
        word, colour = hashes[digest % 5], COLOURS * (digest % 3)
        label = -1 if subset == 2 and unlabelled else draw(st.integers(0, 2))
        rows.append((subset, label, digest, word, colour))
    table = np.array(rows, np.int64).reshape(-1, 5).T
    colours = np.repeat(table[4][:, None], 6, 1).astype(np.uint8)
    return Images(table[0], table[1], table[2], table[3].astype(np.uint64), colours)


def differ(images, a, b):
    return bool(images.labels[a] != images.labels[b]) and min(images.labels[[a, b]]) >= 0


def counts_by_hand(images, pairs):
    counts = {key: [0, 0] for key in combinations_with_replacement(SPLITS, 2)}
    for a, b in pairs:
        count = counts[SPLITS[images.subsets[a]], SPLITS[images.subsets[b]]]
        count[0] += 1
        count[1] += differ(images, a, b)
    return {key: tuple(count) for key, count in counts.items()}


LIMITS = st.sampled_from([1, 3, 1000])


@given(drawn_images(), LIMITS)
def test_identical_pairs_are_those_of_all_pairs(images, limit):
    pairs = [
        (a, b)
        for a, b in combinations(range(len(images.digests)), 2)
        if images.digests[a] == images.digests[b]
    ]
    wrong = [
        (a, b) for a, b in pairs if images.subsets[a] != images.subsets[b] or differ(images, a, b)
    ]
    with mock.patch.object(duplicates, "MAX_PAIRS", limit):
        result = identical_pairs(images)
    assert result.counts == counts_by_hand(images, pairs)
    assert result.wrong == tuple(wrong[:limit]) and result.wrong_count == len(wrong)


@given(drawn_images(), LIMITS)
def test_near_pairs_are_those_of_all_pairs(images, limit):
    rows = list(zip(images.digests, images.subsets, images.labels, strict=True))
    first = [row for row, each in enumerate(rows) if each not in rows[:row]]
    pairs = [
        (a, b)
        for a, b in combinations(first, 2)
        if images.digests[a] != images.digests[b]
        and differing_bits(images.words[a], images.words[b]) <= DISTANCE
        and abs(int(images.colours[a, 0]) - int(images.colours[b, 0])) <= COLOURS
    ]
    with mock.patch.object(duplicates, "MAX_PAIRS", limit):
        result = near_pairs(images)
    assert result.counts == counts_by_hand(images, pairs)
    wrong = [pair for pair in pairs if images.subsets[pair[0]] != images.subsets[pair[1]]]
    assert result.wrong == tuple(wrong[:limit]) and result.wrong_count == len(wrong)


def test_one_cell_of_another_colour_makes_another_image():
    zeros = np.zeros(2, np.int64)
    for level, count in ((COLOURS, 1), (COLOURS + 1, 0)):
        for low in (0, 255 - level):
            colours = np.full((2, 192), low, np.uint8)
            colours[1, 77] += level
            images = Images(np.array([0, 1]), zeros, np.arange(2), zeros.astype(np.uint64), colours)
            assert near_pairs(images).wrong_count == count


def test_colours_are_compared_in_blocks(monkeypatch):
    """Of 40 images with one hash, each 10 have one colour."""
    monkeypatch.setattr(duplicates, "BLOCK", 64)
    colours = np.repeat(np.arange(4, dtype=np.uint8) * 60, 10)[:, None].repeat(192, 1)
    zeros = np.zeros(40, np.int64)
    images = Images(zeros, zeros, np.arange(40), zeros.astype(np.uint64), colours)
    assert near_pairs(images).counts["train", "train"] == (4 * 45, 0)


def test_thousands_of_copies_of_one_file_take_no_time():
    """12.5 million pairs, of which 5,000 are wrong."""
    count = 5_001
    subsets = np.zeros(count, np.int64)
    subsets[-1] = 1
    zeros = np.zeros(count, np.int64)
    images = Images(
        subsets, zeros, zeros, zeros.astype(np.uint64), np.zeros((count, 192), np.uint8)
    )
    result = identical_pairs(images)
    assert result.counts["train", "train"] == (5_000 * 4_999 // 2, 0)
    assert result.wrong_count == len(result.wrong) == 5_000
    assert near_pairs(images).wrong_count == 0
