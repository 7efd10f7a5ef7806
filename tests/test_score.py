"""The score room: views, merges, metrics and stored probabilities against independent references."""

import math
import os

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import nn
from torchvision.transforms.v2 import functional as tv

from tinynet.data.batches import batches
from tinynet.errors import InputError
from tinynet.score.merges import MERGES
from tinynet.score.metrics import score, top_k_hits, wilson
from tinynet.score.probabilities import Probabilities, head_probabilities, view_probabilities
from tinynet.score.views import VIEWS, resize

quickly = settings(max_examples=25, deadline=None)


def log_probabilities(seed, count=40, classes=7, views=None):
    draw = np.random.RandomState(seed)
    shape = (count, classes) if views is None else (views, count, classes)
    return log_softmax(3 * draw.randn(*shape), axis=-1).astype(np.float32), draw.randint(0, classes, count)


# --- metrics --------------------------------------------------------------------------------------


@quickly
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6))
def test_top_k_is_that_of_scikit_learn_and_torchmetrics(seed, k):
    found, labels = log_probabilities(seed)
    share = top_k_hits(found, labels, k) / 40
    assert share == pytest.approx(top_k_accuracy_score(labels, found, k=k, labels=range(7)))
    metric = torchmetrics.classification.MulticlassAccuracy(7, top_k=k, average="micro")
    assert share == pytest.approx(metric(torch.from_numpy(found), torch.from_numpy(labels)).item())


@quickly
@given(seed=st.integers(0, 10_000), k=st.integers(1, 8))
def test_among_equals_the_lower_class_comes_first(seed, k):
    draw = np.random.RandomState(seed)
    found, labels = draw.randint(-3, 0, (30, 7)).astype(np.float32), draw.randint(0, 7, 30)
    ranked = np.argsort(-found, axis=1, kind="stable")[:, :k]
    assert top_k_hits(found, labels, k) == (ranked == labels[:, None]).any(1).sum()


def test_a_constant_output_scores_at_chance():
    labels = np.repeat(np.arange(20), 3)
    constant = np.full((60, 20), -math.log(20), np.float32)
    found = score(constant, labels)
    assert found["top1"] == pytest.approx(1 / 20) and found["top5"] == pytest.approx(5 / 20)
    assert found["loss"] == pytest.approx(math.log(20))


def test_an_output_that_is_no_number_scores_nothing():
    found, labels = log_probabilities(0)
    found[:10] = np.nan
    kept = top_k_hits(found[10:], labels[10:], 2)
    assert 0 < kept == top_k_hits(found, labels, 2)
    assert top_k_hits(np.full((40, 7), np.nan), labels, 5) == 0


def test_certainty_scores_everything_or_nothing():
    labels = np.arange(6)
    sure = np.log(np.eye(6) + 1e-30)
    assert top_k_hits(sure, labels, 1) == 6 and top_k_hits(sure, (labels + 1) % 6, 1) == 0
    never = np.where(np.eye(6) > 0, -np.inf, -math.log(5))
    assert top_k_hits(never, labels, 5) == 0 and top_k_hits(never, labels, 6) == 6


@quickly
@given(seed=st.integers(0, 10_000))
def test_the_loss_is_that_of_scikit_learn(seed):
    found, labels = log_probabilities(seed)
    exact = log_softmax(found.astype(np.float64), axis=1)
    assert score(found, labels)["loss"] == pytest.approx(log_loss(labels, np.exp(exact), labels=range(7)), rel=1e-5)


def test_a_score_is_made_of_its_parts():
    found, labels = log_probabilities(3)
    whole = score(found, labels)
    assert list(whole) == ["n", "top1", "top5", "loss", "low", "high"]
    assert whole["n"] == 40 and whole["top1"] == top_k_hits(found, labels, 1) / 40
    assert whole["top5"] == top_k_hits(found, labels, 5) / 40
    assert (whole["low"], whole["high"]) == wilson(top_k_hits(found, labels, 1), 40)
    assert 0 < whole["low"] < whole["top1"] < whole["high"] < whole["top5"]
    assert all(type(value) in (int, float) for value in whole.values())  # as JSON takes them


@given(count=st.integers(1, 20_000), share=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(deadline=None)
def test_wilson_solves_the_equation_of_1927(count, share, confidence):
    hits = round(share * count)
    low, high = wilson(hits, count, confidence)
    z = -math.sqrt(2) * _inverse_erfc(1 + confidence)
    p, n = hits / count, count
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert low == pytest.approx(middle - half, abs=1e-9) and high == pytest.approx(middle + half, abs=1e-9)
    for bound in (low, high):  # where a hypothetical proportion is z standard errors from the one observed
        assert abs(p - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def _inverse_erfc(value):
    from scipy.special import erfcinv

    return erfcinv(value)


def test_wilson_gives_the_figures_of_the_books():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)  # Brown, Cai and DasGupta 2001
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I


# --- merges ---------------------------------------------------------------------------------------


@quickly
@given(seed=st.integers(0, 10_000), views=st.integers(1, 4))
def test_the_mean_is_the_logarithm_of_the_mean_probability(seed, views):
    found, _ = log_probabilities(seed, views=views)
    merged = MERGES["mean"](found)
    assert merged.shape == (40, 7)
    exact = np.log(np.exp(found.astype(np.float64)).mean(0))
    np.testing.assert_allclose(merged, exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(merged.astype(np.float64)).sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(MERGES["mean"](found[::-1]), merged, rtol=1e-6)
    if views == 1:
        np.testing.assert_allclose(merged, found[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tiny", [1e-30, 1e-60, 1e-300])
def test_the_mean_does_not_underflow(dtype, tiny):
    found = np.log(np.array([[[tiny, 1.0]], [[3 * tiny, 1.0]]])).astype(dtype)
    merged = MERGES["mean"](found)[0]
    assert merged[0] == pytest.approx(math.log(2 * tiny), rel=1e-6 if dtype == np.float32 else 1e-14)
    assert merged[1] == pytest.approx(0, abs=1e-7)


def test_a_view_that_rules_a_class_out_halves_it():
    found = np.log(np.array([[[0.5, 0.5]], [[1e-45, 1.0]]]))
    found[1, 0, 0] = -np.inf
    np.testing.assert_allclose(np.exp(MERGES["mean"](found)), [[0.25, 0.75]])


# --- views ----------------------------------------------------------------------------------------


class Corner(nn.Module):
    """Logits are the red pixels of the first row: which picture it is and which way round are plain to see."""

    def forward(self, pictures):
        return 20 * pictures[:, 0, 0, :]


def test_undoing_the_mirror_gives_the_plain_view():
    pictures = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    seen = VIEWS["flip"](pictures)
    assert list(seen) == ["plain", "mirror"] and torch.equal(seen["plain"], pictures)
    assert not torch.equal(seen["mirror"], pictures)
    assert torch.equal(seen["mirror"], tv.horizontal_flip(pictures))
    assert torch.equal(VIEWS["flip"](seen["mirror"])["mirror"], pictures)
    assert list(VIEWS["none"](pictures)) == ["plain"] and torch.equal(VIEWS["none"](pictures)["plain"], pictures)


def test_each_view_is_of_the_picture_whose_row_it_stands_in(packed):
    rows = np.random.RandomState(0).permutation(len(packed.train))[:23]
    found = view_probabilities(Corner(), batches(packed.train, rows, size=5), VIEWS["flip"], 64, packed.wnids)
    assert found.views == ("plain", "mirror") and found.wnids == packed.wnids
    assert found.log_probabilities.shape == (2, 23, 64) and found.log_probabilities.dtype == np.float32
    assert np.array_equal(found.rows, rows) and np.array_equal(found.labels, packed.train.labels[rows])
    for place, row in enumerate(rows):
        logits = packed.train.pictures[row, 0, :, 0] / 255 * 20
        expected = log_softmax(np.stack([logits, logits[::-1]]), axis=1)
        np.testing.assert_allclose(found.log_probabilities[:, place], expected, rtol=1e-4, atol=1e-4)
    plain, mirror = found.log_probabilities
    assert np.abs(plain - mirror).max(1).min() > 0.1
    np.testing.assert_allclose(mirror[:, ::-1], plain, rtol=1e-5, atol=1e-5)


def test_pictures_without_labels_have_probabilities_too(packed):
    found = view_probabilities(Corner(), batches(packed.test, size=4), VIEWS["none"], 64, packed.wnids)
    assert found.labels is None and found.views == ("plain",)
    assert found.rows.tolist() == list(range(len(packed.test)))
    assert found.log_probabilities.shape[:2] == (1, len(packed.test))


def test_views_are_of_the_size_that_was_asked_for(packed):
    for size in (40, 64, 80):
        found = view_probabilities(Corner(), batches(packed.val, size=9), VIEWS["flip"], size, packed.wnids)
        pictures = torch.from_numpy(np.array(packed.val.pictures)).permute(0, 3, 1, 2).float() / 255
        seen = tv.resize(pictures, [size, size], antialias=True)
        assert found.log_probabilities.shape == (2, len(packed.val), size)
        expected = torch.log_softmax(20 * torch.stack([seen, seen.flip(-1)])[:, :, 0, 0], -1)
        torch.testing.assert_close(torch.from_numpy(found.log_probabilities), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [7, 31, 48, 64, 65, 100])
def test_resize_is_that_of_torchvision(size):
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = resize(pictures.contiguous(memory_format=torch.channels_last), size)
    torch.testing.assert_close(found, tv.resize(pictures, [size, size], antialias=True), rtol=0, atol=2e-6)
    if size < 64:
        assert (found - tv.resize(pictures, [size, size], antialias=False)).abs().max() > 0.01


def test_a_picture_of_the_right_size_is_not_touched():
    pictures = torch.rand(2, 3, 48, 48)
    assert resize(pictures, 48) is pictures


# --- probabilities --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_log_probabilities_are_normalised_whatever_the_precision_of_the_network(dtype):
    logits = (30 * torch.randn(50, 200, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = head_probabilities(nn.Identity(), logits.split(16))
    assert found.shape == (50, 200) and found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found, log_softmax(logits.double().numpy(), axis=1), rtol=1e-5, atol=1e-4)


@pytest.fixture
def probabilities():
    found, labels = log_probabilities(1, views=2)
    return Probabilities(("plain", "mirror"), found, np.arange(40)[::-1].copy(), labels, tuple("abcdefg"))


def test_probabilities_are_read_as_they_were_written(probabilities, tmp_path):
    for labels in (probabilities.labels, None):
        path = tmp_path / "new" / f"{labels is None}.npz"
        first = Probabilities(probabilities.views, probabilities.log_probabilities, probabilities.rows, labels,
                              probabilities.wnids)
        first.save(path)
        again = Probabilities.load(path)
        assert again.views == first.views and again.wnids == first.wnids
        assert again.log_probabilities.dtype == np.float32
        assert np.array_equal(again.log_probabilities, first.log_probabilities)
        assert np.array_equal(again.rows, first.rows)
        assert again.labels is None if labels is None else np.array_equal(again.labels, labels)
    np.testing.assert_allclose(np.exp(again.log_probabilities.astype(np.float64)).sum(-1), 1, atol=1e-5)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


def test_a_foreign_file_is_refused(probabilities, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probabilities.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("no probabilities at all")
    (tmp_path / "short.npz").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "broken.npz").write_bytes(whole[:200] + bytes(50) + whole[250:])
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", views=np.array(["plain"]))
    np.savez(tmp_path / "harmful.npz", views=np.array([Harmful()], object))
    for name in ("empty.npz", "text.npz", "short.npz", "broken.npz", "array.npy", "other.npz", "harmful.npz",
                 "missing.npz"):
        with pytest.raises(InputError, match=f"{name}.*tinynet.evaluate") as caught:
            Probabilities.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "made by a pickle").exists()


def test_probabilities_appear_whole_or_not_at_all(probabilities, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        probabilities.save(tmp_path / "found.npz")
    assert not list(tmp_path.iterdir())
