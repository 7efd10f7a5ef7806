"""Grad-CAM: where a network looks."""

import numpy as np
import pytest
import torch
from support import complaint, thin_network

from tinynet.models.classifier import Classifier
from tinynet.models.vgg import VGG16
from tinynet.score.confusions import share_inside
from tinynet.score.gradcam import gradcam


@pytest.fixture(scope="module")
def network():
    with thin_network():
        torch.manual_seed(0)
        yield Classifier(VGG16(), ("pool5:grid2", "relu4_3:mean"), (8,), 5, 0.5, True).eval()


@pytest.mark.parametrize("frozen", [True, False])
def test_gradcam_lies_in_the_image_and_sums_to_one(network, frozen):
    network.requires_grad_(not frozen)
    images = torch.rand(3, 3, 64, 64)
    found = gradcam(network, images, torch.tensor([0, 1, 2]), "relu4_3")
    assert found.shape == (3, 64, 64) and (found >= 0).all()
    total = found.sum((1, 2))
    assert ((total - 1).abs() < 1e-4).logical_or(total == 0).all() and (total > 0).any()
    alone = gradcam(network, images[1:2], torch.tensor([1]), "relu4_3")
    assert torch.allclose(found[1], alone[0], atol=1e-5)


def test_gradcam_is_where_the_only_evidence_for_the_class_is():
    """A backbone of one bright channel and a head that likes it: the heat follows the bright
    corner.
    """
    with thin_network():
        backbone = VGG16()
        network = Classifier(backbone, ("pool1:grid2",), (), 2, 0, False).eval()
    for weight in backbone.groups["conv1"]:
        torch.nn.init.zeros_(weight)
    first, _, second = backbone.features[:3]
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


def test_a_layer_that_does_not_exist_or_that_the_head_does_not_use_is_refused(network):
    complaint(
        lambda: gradcam(network, torch.rand(1, 3, 64, 64), torch.tensor([0]), "relu9_9"),
        "relu9_9",
        "relu4_3",
    )
    with thin_network():
        shallow = Classifier(VGG16(), ("relu3_3:mean",), (), 5, 0, True).eval()
    complaint(
        lambda: gradcam(shallow, torch.rand(1, 3, 64, 64), torch.tensor([0]), "relu4_3"),
        "relu4_3",
        "relu3_3:mean",
    )
