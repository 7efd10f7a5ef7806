"""What a network gets wrong."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from tinynet.score.confusions import (
    ConfusedPair,
    box_areas,
    by_object_size,
    confused_pairs,
    confusion,
    most_confident_errors,
    reliability,
    similar_order,
)
from tinynet.score.metrics import score


def drawn(count=400, classes=7, seed=0):
    random = np.random.RandomState(seed)
    labels = random.randint(classes, size=count)
    logits = random.randn(count, classes) + 2 * np.eye(classes)[labels]
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32), labels


def test_the_confusion_matrix_is_that_of_scikit_learn():
    said, labels = drawn()
    assert np.array_equal(
        confusion(said, labels), confusion_matrix(labels, said.argmax(1), labels=range(7))
    )


def test_classes_that_are_taken_for_one_another_stand_together():
    counts = np.eye(8, dtype=int) * 40
    for i, j in ((0, 5), (2, 7), (1, 6)):
        counts[i, j] = counts[j, i] = 10
    place = np.argsort(similar_order(counts))
    assert sorted(place) == list(range(8))
    assert all(abs(place[i] - place[j]) == 1 for i, j in ((0, 5), (2, 7), (1, 6)))
    assert list(similar_order(np.eye(2))) == [0, 1]


def test_pairs_come_with_both_directions_and_never_a_class_with_itself():
    counts = np.array([[9, 4, 0], [1, 8, 0], [0, 7, 5]])
    assert confused_pairs(counts, 5) == [
        ConfusedPair(first=1, second=2, first_as_second=0, second_as_first=7),
        ConfusedPair(first=0, second=1, first_as_second=4, second_as_first=1),
    ]
    assert len(confused_pairs(counts, 1)) == 1


def test_the_most_confident_errors_are_wrong_and_in_order():
    said, labels = drawn()
    found = most_confident_errors(said, labels, 30)
    assert len(found) == 30 and (said[found].argmax(1) != labels[found]).all()
    sure = said.max(1)
    wrong = said.argmax(1) != labels
    assert (np.diff(sure[found]) <= 0).all() and sure[found[-1]] >= np.sort(sure[wrong])[-30]


def test_reliability_adds_up_to_the_calibration_error():
    said, labels = drawn(1000)
    rows = reliability(said, labels)
    assert sum(row.n for row in rows) == 1000
    error = sum(row.n * abs(row.top1 - row.confidence) for row in rows) / 1000
    assert error == pytest.approx(score(said, labels).ece)


def test_objects_are_grouped_by_the_share_of_the_image_they_cover():
    boxes = np.array(
        [[0, 0, 63, 63], [0, 0, 31, 31], [10, 10, 10, 10], [-1, -1, -1, -1], [0, 0, 63, 31]],
        np.int16,
    )
    assert list(box_areas(boxes[:3])) == [4096, 1024, 1]
    rows = by_object_size(np.array([True, False, False, True, True]), boxes, 64, groups=2)
    assert [(row.n, row.top1) for row in rows] == [(2, 0), (2, 1)]
    assert rows[0].least == pytest.approx(1 / 4096) and rows[1].greatest == 1
    assert by_object_size(np.array([True]), boxes[3:4], 64) == []
