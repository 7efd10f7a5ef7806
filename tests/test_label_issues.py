"""Labels that may be wrong."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from score_support import log_probabilities, quickly

from tinynet.score.label_issues import LabelIssue, label_issues


def sure_of(classes, count=7, p=0.94):
    """Log-probabilities of a network that gives each image its class with probability p."""
    probabilities = np.full((len(classes), count), (1 - p) / (count - 1))
    probabilities[np.arange(len(classes)), classes] = p
    return np.log(probabilities).astype(np.float32)


def test_a_case_computed_by_hand():
    """The thresholds are 0.567, 0.4 and 0.1525; class 3 has no image and so no threshold."""
    table = [
        (0, [0.90, 0.10, 0.00, 0.00]),
        (0, [0.70, 0.20, 0.10, 0.00]),
        (0, [0.10, 0.80, 0.05, 0.05]),  # class 1
        (1, [0.10, 0.60, 0.20, 0.10]),  # class 2 reaches its threshold, but the label is first
        (1, [0.60, 0.20, 0.20, 0.00]),  # classes 0 and 2 do, and 0 is more probable
        (2, [0.05, 0.35, 0.30, 0.30]),  # class 1 is first, below its threshold
        (2, [0.00, 0.10, 0.20, 0.70]),  # class 3 is first
        (2, [0.10, 0.47, 0.03, 0.40]),  # class 1
        (2, [0.50, 0.42, 0.08, 0.00]),  # class 0 is first, below its threshold, and 1 reaches its
    ]
    with np.errstate(divide="ignore"):
        values = np.log([probabilities for _, probabilities in table]).astype(np.float32)
    issues = label_issues(values, np.array([label for label, _ in table]))
    assert [(one.position, one.label, one.suggestion) for one in issues] == [
        (2, 0, 1),
        (7, 2, 1),
        (4, 1, 0),
        (8, 2, 1),
    ]
    assert [(one.p_label, one.p_suggestion) for one in issues] == [
        pytest.approx(pair) for pair in ((0.1, 0.8), (0.03, 0.47), (0.2, 0.6), (0.08, 0.42))
    ]


@quickly
@given(st.integers(0, 10**6), st.integers(1, 80))
@example(351, 72)  # two differences that are equal in float32
def test_the_rule_one_image_at_a_time(seed, count):
    values, labels = log_probabilities(seed, count)
    thresholds = {
        label: np.exp(values[labels == label, label]).mean(dtype=np.float64)
        for label in set(labels.tolist())
    }
    expected = {}
    for position, (row, label) in enumerate(zip(np.exp(values), labels, strict=True)):
        others = [k for k in thresholds if k != label and row[k] >= thresholds[k] - 1e-6]
        if others and row.argmax() != label:
            expected[position] = max(others, key=lambda k: row[k])
    issues = label_issues(values, labels)
    assert {one.position: one.suggestion for one in issues} == expected
    margins = [one.p_suggestion - one.p_label for one in issues]
    assert margins == sorted(margins, reverse=True)
    for one in issues:
        assert one == LabelIssue(
            one.position,
            labels[one.position],
            one.suggestion,
            pytest.approx(np.exp(values[one.position, one.label])),
            pytest.approx(np.exp(values[one.position, one.suggestion])),
        )


@quickly
@given(st.integers(0, 10**6))
def test_the_order_of_the_images_does_not_matter(seed):
    values, labels = log_probabilities(seed, 200)
    order = np.random.RandomState(seed).permutation(200)
    there = {(one.position, one.suggestion) for one in label_issues(values, labels)}
    back = {
        (int(order[one.position]), one.suggestion)
        for one in label_issues(values[order], labels[order])
    }
    assert there == back and there


@pytest.mark.parametrize("p", [0.5, 0.94, 1.0])
def test_a_network_that_agrees_with_every_label_finds_none(p):
    labels = np.arange(70) % 7
    with np.errstate(divide="ignore"):
        assert label_issues(sure_of(labels, p=p), labels) == []


@quickly
@given(st.integers(0, 10**6))
def test_planted_wrong_labels_come_first(seed):
    """Of a network that is unsure of some images, but right on all."""
    draw = np.random.RandomState(seed)
    true = draw.randint(7, size=400)
    values = sure_of(true)
    values[:60] = sure_of(true[:60], p=0.4)
    labels = true.copy()
    planted = 100 + draw.choice(300, 12, replace=False)
    labels[planted] = (true[planted] + draw.randint(1, 7, size=12)) % 7
    issues = label_issues(values, labels)
    assert {one.position for one in issues[:12]} == set(planted.tolist())
    assert all(one.suggestion == true[one.position] for one in issues[:12])


def test_a_class_whose_images_are_equally_probable_reaches_its_own_threshold():
    """The mean of equal numbers may be rounded up."""
    for count in range(1, 60):
        labels = np.append(np.zeros(count, int), 1)
        values = sure_of(np.zeros(count + 1, int), p=0.7).astype(np.float64)
        issues = label_issues(values, labels)
        assert [(one.position, one.suggestion) for one in issues] == [(count, 0)], count
