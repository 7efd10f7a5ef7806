"""What a network gets wrong, and where it looks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from support import complaint, thin_network

from tinynet.models.classifier import Classifier
from tinynet.models.vgg import Backbone
from tinynet.score.confusions import (
    box_areas,
    by_object_size,
    confused_pairs,
    confusion,
    most_confident_errors,
    reliability,
    similar_order,
)
from tinynet.score.gradcam import gradcam, share_inside
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
        {"first": 1, "second": 2, "first_as_second": 0, "second_as_first": 7},
        {"first": 0, "second": 1, "first_as_second": 4, "second_as_first": 1},
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
    assert sum(row["n"] for row in rows) == 1000
    error = sum(row["n"] * abs(row["top1"] - row["confidence"]) for row in rows) / 1000
    assert error == pytest.approx(score(said, labels)["ece"])


def test_objects_are_grouped_by_the_share_of_the_image_they_cover():
    boxes = np.array(
        [[0, 0, 63, 63], [0, 0, 31, 31], [10, 10, 10, 10], [-1, -1, -1, -1], [0, 0, 63, 31]],
        np.int16,
    )
    assert list(box_areas(boxes[:3])) == [4096, 1024, 1]
    rows = by_object_size(np.array([True, False, False, True, True]), boxes, 64, groups=2)
    assert [(row["n"], row["top1"]) for row in rows] == [(2, 0), (2, 1)]
    assert rows[0]["least"] == pytest.approx(1 / 4096) and rows[1]["greatest"] == 1
    assert by_object_size(np.array([True]), boxes[3:4], 64) == []


@pytest.fixture(scope="module")
def network():
    with thin_network():
        torch.manual_seed(0)
        yield Classifier(Backbone(), ("pool5:grid2", "relu4_3:mean"), (8,), 5, 0.5, True).eval()


@pytest.mark.parametrize("frozen", [True, False])
def test_heat_lies_in_the_image_and_adds_up_to_one(network, frozen):
    network.requires_grad_(not frozen)
    images = torch.rand(3, 3, 64, 64)
    found = gradcam(network, images, torch.tensor([0, 1, 2]), "relu4_3")
    assert found.shape == (3, 64, 64) and (found >= 0).all()
    total = found.sum((1, 2))
    assert ((total - 1).abs() < 1e-4).logical_or(total == 0).all() and (total > 0).any()
    alone = gradcam(network, images[1:2], torch.tensor([1]), "relu4_3")
    assert torch.allclose(found[1], alone[0], atol=1e-5)


def test_heat_is_where_the_only_thing_is_that_speaks_for_the_class():
    """A backbone of one bright channel and a head that likes it: the heat follows the bright
    corner.
    """
    with thin_network():
        backbone = Backbone()
        network = Classifier(backbone, ("pool1:grid2",), (), 2, 0, False).eval()
    for module in backbone.groups["conv1"]:
        for weight in module.parameters():
            torch.nn.init.zeros_(weight)
    first, _, second = backbone.groups["conv1"][:3]
    first.weight.data[0, :, 1, 1] = 1.0
    second.weight.data[0, 0, 1, 1] = 1.0
    torch.nn.init.zeros_(network.head[0].weight)
    network.head[0].weight.data[1, :4] = 1.0  # class 1 likes channel 0 anywhere
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, :8, 20:28] = 1.0
    found = gradcam(network, images, torch.tensor([1]), "relu1_2").numpy()
    assert share_inside(found, np.array([[20, 0, 27, 7]]))[0] > 0.95


def test_the_share_inside_a_box_counts_its_last_row_and_column():
    flat = np.full((2, 8, 8), 1 / 64)
    assert share_inside(flat, np.array([[0, 0, 3, 7], [-1, -1, -1, -1]])) == pytest.approx(
        [0.5, np.nan], nan_ok=True
    )
    # no heat is nowhere
    assert np.isnan(share_inside(0 * flat[:1], np.array([[0, 0, 3, 7]]))).all()


def test_a_depth_that_there_is_not_or_that_the_head_does_not_see_is_refused(network):
    complaint(
        lambda: gradcam(network, torch.rand(1, 3, 64, 64), torch.tensor([0]), "relu9_9"),
        "relu9_9",
        "relu4_3",
    )
    with thin_network():
        shallow = Classifier(Backbone(), ("relu3_3:mean",), (), 5, 0, True).eval()
    complaint(
        lambda: gradcam(shallow, torch.rand(1, 3, 64, 64), torch.tensor([0]), "relu4_3"),
        "relu4_3",
        "relu3_3:mean",
    )
