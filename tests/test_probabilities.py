"""Probabilities of views, and their files."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from score_support import SETS, log_probabilities, merged
from support import complaint
from torch import nn

from tinynet.data.batches import batches
from tinynet.errors import InputError
from tinynet.score import merges, views
from tinynet.score.probabilities import (
    Probabilities,
    head_probabilities,
    same_images,
    view_probabilities,
)

# --- probabilities of views ---


class Corner(nn.Module):
    """Logits are the red pixels of the first row: which image it is and which way round are plain
    to see.
    """

    def forward(self, images):
        return 20 * images[:, 0, 0, :]


@pytest.mark.parametrize("text", SETS)
def test_a_network_that_looks_at_nothing_scores_the_same_under_every_view(text, packed):
    class Blind(nn.Module):
        def forward(self, images):
            return torch.arange(5.0).expand(len(images), 5)

    found = [
        view_probabilities(Blind(), batches(packed.val, batch_size=9), view)
        for view in views.view_set(text, 64).views.values()
    ]
    assert all(np.array_equal(one, found[0]) for one in found)
    for name in merges.MERGES:
        together = merged(name, np.stack(found))
        assert (together.argmax(1) == 4).all() and np.abs(together - together[0]).max() < 1e-5


def test_each_view_is_of_the_image_whose_row_it_stands_in(packed):
    rows = np.random.RandomState(0).permutation(len(packed.train))[:23]
    plain, hflip = (
        view_probabilities(Corner(), batches(packed.train, rows, batch_size=5), view)
        for view in views.view_set("flip", 64).views.values()
    )
    assert plain.shape == (23, 64) and plain.dtype == np.float32
    for place, row in enumerate(rows):
        logits = packed.train.images[row, 0, :, 0] / 255 * 20
        expected = log_softmax(np.stack([logits, logits[::-1]]), axis=1)
        np.testing.assert_allclose(
            np.stack([plain[place], hflip[place]]), expected, rtol=1e-4, atol=1e-4
        )
    assert np.abs(plain - hflip).max(1).min() > 0.1
    np.testing.assert_allclose(hflip[:, ::-1], plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["ten", "flip+rotate", "scales:48,80"])
def test_probabilities_do_not_depend_on_the_batches(packed, text):
    for view in views.view_set(text, 64).views.values():
        whole = view_probabilities(Corner(), batches(packed.val, batch_size=500), view)
        for size in (1, 7):
            few = view_probabilities(Corner(), batches(packed.val, batch_size=size), view)
            np.testing.assert_allclose(few, whole, rtol=1e-4, atol=1e-4)
        turned = np.arange(len(packed.val))[::-1]
        np.testing.assert_allclose(
            view_probabilities(Corner(), batches(packed.val, turned), view)[::-1],
            whole,
            rtol=1e-4,
            atol=1e-4,
        )


# --- stored probabilities ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_log_probabilities_are_normalised_whatever_the_precision_of_the_network(dtype):
    logits = (30 * torch.randn(50, 200, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = head_probabilities(nn.Identity(), logits.split(16))
    assert found.shape == (50, 200) and found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(
        found, log_softmax(logits.double().numpy(), axis=1), rtol=1e-5, atol=1e-4
    )


@pytest.fixture
def probabilities():
    found, labels = log_probabilities(1, views=2)
    return Probabilities(
        ("plain", "mirror"),
        found,
        np.arange(40)[::-1].copy(),
        labels,
        tuple("abcdefg"),
        np.array([1.5, np.nan]),
        {"split": "val", "data": "0" * 16},
    )


def test_probabilities_are_read_as_they_were_written(probabilities, tmp_path):
    for labels in (probabilities.labels, None):
        path = tmp_path / "new" / f"{labels is None}.npz"
        first = replace(probabilities, labels=labels)
        first.save(path)
        again = Probabilities.load(path)
        assert (
            again.views == first.views and again.wnids == first.wnids and again.about == first.about
        )
        np.testing.assert_array_equal(again.seconds, first.seconds)
        assert again.log_probabilities.dtype == np.float32
        assert np.array_equal(again.log_probabilities, first.log_probabilities)
        assert np.array_equal(again.rows, first.rows)
        assert again.labels is None if labels is None else np.array_equal(again.labels, labels)
    np.testing.assert_allclose(
        np.exp(again.log_probabilities.astype(np.float64)).sum(-1), 1, atol=1e-5
    )


def test_probabilities_of_other_images_are_refused(probabilities):
    names = ("a.npz", "b.npz")
    same_images(probabilities, probabilities, names)
    for change, words in (
        (dict(about={"split": "holdout", "data": "0" * 16}), ["holdout", "val"]),
        (dict(about={"split": "val", "data": "1" * 16}), ["other data"]),
        (dict(wnids=tuple("gfedcba")), ["other classes"]),
        (dict(rows=probabilities.rows[::-1]), ["another order"]),
        (dict(rows=probabilities.rows + 1), ["other images"]),
    ):
        complaint(
            lambda change=change: same_images(
                probabilities, replace(probabilities, **change), names
            ),
            *names,
            *words,
        )


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


def test_a_foreign_file_is_refused(probabilities, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probabilities.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("no probabilities at all")
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken.npz").write_bytes(whole[:200] + bytes(50) + whole[250:])
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", views=np.array(["plain"]))
    np.savez(tmp_path / "harmful.npz", views=np.array([Harmful()], object))
    for name in (
        "empty.npz",
        "text.npz",
        "short.npz",
        "broken.npz",
        "array.npy",
        "other.npz",
        "harmful.npz",
        "missing.npz",
    ):
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
