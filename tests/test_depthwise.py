"""Gradients of depthwise convolutions in bfloat16."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tinynet.compute import Compute
from tinynet.models import depthwise
from tinynet.models.depthwise import FastDepthwise, has_depthwise
from tinynet.training.loop import Training, WeightGroup
from tinynet.training.recipes import Stage

CPU_BFLOAT16 = Compute(torch.device("cpu"), torch.bfloat16)


def in_bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.fixture
def replaced(monkeypatch):
    """How many convolutions got other gradients."""
    calls, apply = [], depthwise.DepthwiseConv.apply
    monkeypatch.setattr(
        depthwise.DepthwiseConv, "apply", lambda *args: calls.append(args) or apply(*args)
    )
    return calls


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 7), (3, 5)])
@pytest.mark.parametrize("stride", [1, 2, (2, 1), 3])
@pytest.mark.parametrize("side", [14, 15])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_torch(kernel, stride, side, bias, replaced):
    torch.manual_seed(0)
    padding = (kernel[0] // 2, kernel[1] // 2 - 1)
    layer = nn.Conv2d(8, 8, kernel, stride, padding, groups=8, bias=bias)
    images = torch.rand(4, 8, side, side + 3).contiguous(memory_format=torch.channels_last)
    factors = torch.randn(layer(images).shape)
    results = []
    for context in (None, FastDepthwise()):
        inputs = images.clone().requires_grad_()
        layer.zero_grad()
        with in_bfloat16():
            if context is None:
                outputs = layer(inputs)
            else:
                with context:
                    outputs = layer(inputs)
        (outputs.float() * factors).sum().backward()
        results.append([outputs, inputs.grad, *(weight.grad for weight in layer.parameters())])
    assert len(replaced) == 1
    for theirs, ours in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        apart = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert apart < 0.01, apart


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3),  # all channels together
        nn.Conv2d(8, 16, 3, groups=8),  # two outputs a channel
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 8, 3, groups=8, dilation=2),
        nn.Conv2d(8, 8, 3, groups=8, padding="same"),
    ],
)
def test_other_convolutions_are_left_alone(layer, replaced):
    images = torch.rand(2, 8, 12, 12)
    with in_bfloat16():
        expected = layer(images)
        with FastDepthwise():
            assert torch.equal(layer(images), expected)
    assert not replaced


def test_arguments_may_have_names_and_other_dtypes(replaced):
    images, weight = torch.rand(2, 8, 12, 12), torch.rand(8, 1, 3, 3, requires_grad=True)
    with in_bfloat16(), FastDepthwise():
        outputs = F.conv2d(input=images, weight=weight, groups=8, padding=1)
        assert len(replaced) == 1 and outputs.dtype == torch.bfloat16
        exact = F.conv2d(images.double(), weight.double(), groups=8)
    assert len(replaced) == 1 and exact.dtype == torch.float64


def test_nothing_changes_in_float32_or_without_gradients(replaced):
    layer, images = nn.Conv2d(8, 8, 5, groups=8), torch.rand(2, 8, 12, 12)
    with FastDepthwise():
        assert layer(images).dtype == torch.float32
        with torch.no_grad(), in_bfloat16():
            layer(images)
    assert not replaced


@pytest.mark.parametrize(
    ("network", "compute", "count"),
    [
        (nn.Conv2d(3, 3, 5, groups=3), CPU_BFLOAT16, 1),
        (nn.Conv2d(3, 3, 5), CPU_BFLOAT16, 0),
        (nn.Conv2d(3, 3, 5, groups=3), Compute(torch.device("cpu"), torch.float32), 0),
    ],
)
def test_training_steps_use_them(network, compute, count, replaced):
    module = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert has_depthwise(module) == (network.groups > 1)
    groups = [WeightGroup(list(module.parameters()), 1.0)]
    training = Training(module, groups, Stage(batch=4), 1, compute)
    loss = training.train_batch(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))
    assert torch.isfinite(loss) and len(replaced) == count
    assert F.conv2d is torch.conv2d  # what the mode is called with
