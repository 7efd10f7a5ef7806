"""Greedy selection and mixture weights."""

import numpy as np
import pytest
from scipy.special import log_softmax
from score_support import merged

from tinynet.score.metrics import score
from tinynet.score.selection import greedy, learn_weights, weighted_mean


def informed(seed=0, count=3000, strengths=(2.0, 0.5, 1.5, 0.0)):
    """Views (V, N, C) whose errors are their own, some more telling than others."""
    draw = np.random.RandomState(seed)
    labels = draw.randint(0, 6, count)
    logits = np.stack([s * np.eye(6)[labels] + draw.randn(count, 6) for s in strengths])
    return log_softmax(logits, axis=2).astype(np.float32), labels


def test_greedy_takes_what_helps_most_next():
    found, labels = informed()
    order = greedy(found, labels, most=4)
    assert order == [0, 2, 1, 3]
    own = np.exp(found[:, np.arange(3000), labels].astype(np.float64))
    losses = {view: -np.log(own[[0, view]].mean(0)).mean() for view in (1, 2, 3)}
    assert min(losses, key=losses.get) == order[1]
    assert (
        greedy(found, labels, most=2, first=3) == [3, 0] and greedy(found, labels, most=9) == order
    )


def test_learned_weights_are_the_best_mixture():
    found, labels = informed()
    weights = learn_weights(found, labels)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all() and weights.argmax() == 0

    def loss(some):
        return score(weighted_mean(found, some), labels).loss

    draw = np.random.RandomState(0)
    assert all(loss(weights) <= loss(other) + 1e-6 for other in draw.dirichlet(np.ones(4), 300))
    np.testing.assert_allclose(np.exp(weighted_mean(found, weights)).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(
        weighted_mean(found, np.full(4, 0.25)), merged("mean", found), atol=1e-5
    )
