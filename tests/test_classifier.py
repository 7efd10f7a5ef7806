"""Pooled features, trainable groups, batch norms of the classifier."""

import numpy as np
import pytest
import torch
from support import DEPTHS, complaint
from torch import nn

from tinynet.models.classifier import (
    POOLINGS,
    Classifier,
    Head,
    feature_count,
    pooled_features,
    update_bn,
)
from tinynet.models.vgg import VGG16

WIDTHS = {
    "conv1": (3, 64, 64),
    "conv2": (64, 128, 128),
    "conv3": (128, 256, 256, 256),
    "conv4": (256, 512, 512, 512),
    "conv5": (512, 512, 512, 512),
}
PUBLISHED = {
    name: sum((9 * before + 1) * after for before, after in zip(widths, widths[1:], strict=False))
    for name, widths in WIDTHS.items()
}


# --- pooled features ---


@torch.inference_mode()
@pytest.mark.parametrize("side", [32, 48, 64])
def test_features_are_as_many_as_counted_whatever_the_side(thin, side):
    backbone, images = VGG16(), torch.rand(1, 3, side, side)
    channels = sum(width // 16 for _, width in DEPTHS.values())
    for statistic, each in {"mean": 1, "max": 1, "grid2": 4, "grid7": 49}.items():
        feature_names = [f"{node}:{statistic}" for node in DEPTHS]
        found = pooled_features(backbone, feature_names, images)
        assert found.shape == (1, feature_count(backbone, feature_names)) == (1, channels * each)
    feature_names = [
        f"{node}:{statistic}"
        for node in ("pool5", "relu2_1")
        for statistic in ("mean", "max", "grid2", "grid7")
    ]
    assert (
        pooled_features(backbone, feature_names, images).shape
        == (1, feature_count(backbone, feature_names))
        == (1, (32 + 8) * 55)
    )


@torch.inference_mode()
def test_statistics_are_what_they_are_called(thin):
    backbone, images = VGG16(), torch.rand(2, 3, 64, 64)
    maps = backbone(images, ["pool4"])["pool4"]
    numbers = maps.numpy()
    assert numbers.shape == (2, 32, 4, 4)
    quarters = numbers.reshape(2, 32, 2, 2, 2, 2).mean((3, 5)).reshape(2, -1)
    expected = {
        "mean": numbers.mean((2, 3)),
        "max": numbers.max((2, 3)),
        "grid2": quarters,
        "grid7": nn.AdaptiveAvgPool2d(7)(maps).flatten(1).numpy(),
        "first": numbers[:, :, 0, 0],
    }
    assert set(expected) == set(POOLINGS)
    for name, values in expected.items():
        np.testing.assert_allclose(
            pooled_features(backbone, [f"pool4:{name}"], images), values, rtol=1e-5, atol=1e-6
        )


@torch.inference_mode()
def test_features_are_in_the_order_of_their_names(thin):
    backbone, images = VGG16(), torch.rand(2, 3, 32, 32)
    feature_names = ["pool5:max", "relu1_2:mean", "pool5:grid2", "relu4_3:max"]
    alone = [pooled_features(backbone, [feature], images) for feature in feature_names]
    assert torch.equal(pooled_features(backbone, feature_names, images), torch.cat(alone, 1))
    assert (
        pooled_features(backbone.to(torch.bfloat16), feature_names, images).dtype == torch.float32
    )


def test_a_feature_that_the_backbone_lacks_is_refused(thin):
    for feature in (
        "pool6:mean",
        "relu5_4:max",
        "pool5:median",
        "pool5",
        "",
        "pool5:",
        ":mean",
        "pool5:mean:max",
    ):
        complaint(
            lambda feature=feature: Classifier(VGG16(), [feature], (), 3, 0.0, False),
            repr(feature),
            "relu5_3",
            "grid2",
        )
    complaint(lambda: Classifier(VGG16(), [], (), 3, 0.0, False), "no features")


# --- what is trained ---


def test_as_many_weights_are_trainable_as_published():
    assert sum(PUBLISHED.values()) == 14_714_688
    with torch.device("meta"):
        model = Classifier(VGG16(), ["pool5:grid2", "relu3_3:max"], (16, 8), 5, 0.5, True)
    inputs = 512 * 4 + 256
    head = inputs * 16 + 16 + 2 * 16 + 16 * 8 + 8 + 2 * 8 + 8 * 5 + 5
    for name, count in PUBLISHED.items():
        assert model.train_only([name]) == count
    assert model.train_only(["head"]) == head
    assert (
        model.train_only(["conv5", "head", "conv4"])
        == PUBLISHED["conv4"] + PUBLISHED["conv5"] + head
    )
    assert model.train_only(WIDTHS) == 14_714_688
    assert model.train_only([]) == 0
    complaint(lambda: model.train_only(["conv6", "head"]), "conv6", "conv1", "head")


def test_frozen_groups_get_no_gradient_and_run_without_autograd(small_network):
    images = torch.rand(4, 3, 32, 32)
    small_network.train_only(["head"])
    assert not small_network.features(images).requires_grad
    small_network.train_only(["conv5", "head"])
    maps = small_network.backbone(images, ["pool4", "relu5_1"])
    assert maps["pool4"].grad_fn is None and maps["relu5_1"].grad_fn is not None
    small_network(images).square().sum().backward()
    for name, weights in small_network.groups.items():
        grads = [weight.grad for weight in weights]
        assert grads and all((grad is not None) == (name in ("conv5", "head")) for grad in grads), (
            name
        )
    assert all(
        grad.abs().sum() > 0
        for grad in (p.grad for p in small_network.backbone.features[24:].parameters())
    )


def test_a_frozen_head_keeps_its_running_statistics_and_drops_nothing(small_network):
    images = torch.rand(8, 3, 32, 32)
    norms = [module for module in small_network.head if isinstance(module, nn.BatchNorm1d)]
    assert len(norms) == 2

    def state():
        return [buffer.clone() for norm in norms for buffer in norm.buffers()]

    small_network.train_only(["conv5"])
    small_network.train()  # as the loop does at the start of every epoch
    before = state()
    assert torch.equal(small_network(images), small_network(images))
    assert all(map(torch.equal, before, state()))

    small_network.train_only(["head"])
    small_network.train()
    assert not torch.equal(small_network(images), small_network(images))
    assert not any(map(torch.equal, before, state()))
    small_network.eval()
    assert torch.equal(small_network(images), small_network(images))


def test_a_copy_for_inference_shares_nothing(small_network):
    small_network.train_only(["conv5", "head"])
    small_network.train()
    twin = small_network.for_inference(torch.device("cpu"), torch.bfloat16)
    ours = {tensor.untyped_storage().data_ptr() for tensor in small_network.state_dict().values()}
    copied = {tensor.untyped_storage().data_ptr() for tensor in twin.state_dict().values()}
    assert len(ours) == len(small_network.state_dict()) and not ours & copied
    assert small_network.head.training and small_network.head[1].weight.requires_grad
    assert not any(module.training for module in twin.modules())
    assert not any(p.requires_grad for p in twin.parameters())
    assert {p.dtype for p in small_network.parameters()} == {torch.float32}
    assert {p.dtype for p in twin.backbone.parameters()} == {torch.bfloat16}
    # logits keep their precision
    assert twin.backbone.mean.dtype == twin.head[1].weight.dtype == torch.float32

    images = torch.rand(4, 3, 32, 32)
    exact = small_network.for_inference(torch.device("cpu"), torch.float32)(images)
    torch.testing.assert_close(exact, small_network.eval()(images), rtol=1e-4, atol=1e-5)
    rough = twin(images)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.2 * exact.abs().max()


def test_a_model_is_made_again_from_its_shape(small_network):
    again = Classifier(VGG16(), **small_network.shape)
    again.load_state_dict(small_network.state_dict())
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(again.eval()(images), small_network.eval()(images))


def test_a_head_without_hidden_layers_is_one_linear_layer(thin):
    model = Classifier(VGG16(), ["pool5:mean"], (), 7, 0.5, False)
    assert [type(module) for module in model.head] == [nn.Linear] and model.head[
        0
    ].weight.shape == (7, 32)


def test_initial_weights_have_the_variance_of_he():
    torch.manual_seed(0)
    head = Head(2048, (1024,), 200, 0.5, True)
    for layer, inputs in ((head[1], 2048), (head[5], 1024)):
        assert layer.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.02)
        assert not layer.bias.any()
        assert layer.weight.abs().max() <= (6 / inputs) ** 0.5  # uniform, not normal


# --- batch norms ---


def test_batch_norms_are_recomputed():
    def head():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.BatchNorm1d(3, affine=False), nn.Linear(3, 8), nn.Dropout(), nn.BatchNorm1d(8)
        )

    features = torch.randn(1000, 3) * 4 + 7
    one, other = head(), head()
    for module in (one, other):
        update_bn(module, iter(features.split(100)))
    assert torch.allclose(one[0].running_mean, features.mean(0), atol=1e-4)
    assert torch.equal(one[3].running_var, other[3].running_var)  # dropout leaves nothing to chance
    assert one[0].momentum == head()[0].momentum and not any(
        module.training for module in one.modules()
    )
