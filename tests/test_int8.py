"""8-bit integers."""

import pytest
import torch
from support import DEPTHS, needs_vnni
from torch import nn

from tinynet.models import int8
from tinynet.models.classifier import Classifier
from tinynet.models.dense import Dense
from tinynet.models.int8 import Int8Backbone
from tinynet.models.vgg import VGG16


@needs_vnni
@pytest.mark.parametrize("side", [32, 50, 64])
@torch.inference_mode()
def test_int8_features_are_near_those_of_floats(thin, side):
    torch.manual_seed(0)
    backbone = VGG16()
    whole = Int8Backbone(backbone, torch.rand(20, 3, side, side))
    images = torch.rand(4, 3, side, side)
    exact, found = backbone(images, DEPTHS), whole(images, DEPTHS)
    assert list(found) == list(DEPTHS) and whole.channels == backbone.channels
    for name in DEPTHS:
        assert found[name].shape == exact[name].shape and found[name].dtype == torch.float32
        error = (found[name] - exact[name]).norm() / exact[name].norm()
        assert 0 < error < 0.05, name


@needs_vnni
@torch.inference_mode()
def test_int8_features_of_an_image_do_not_depend_on_its_batch(thin):
    whole, images = Int8Backbone(VGG16(), torch.rand(8, 3, 32, 32)), torch.rand(5, 3, 32, 32)
    together = whole(images, ["pool5", "relu3_3"])
    for number in range(5):
        alone = whole(images[number : number + 1], ["relu3_3", "pool5"])
        for name in alone:
            assert torch.equal(alone[name][0], together[name][number])


@needs_vnni
@torch.inference_mode()
def test_an_integer_convolution_is_the_rounded_one_of_the_rounded_numbers():
    torch.manual_seed(0)
    convolution = nn.Conv2d(5, 7, 3, padding=1)
    convolution.weight[3] = 0  # a channel without weights has no step of its own
    maps = torch.randint(0, 256, (2, 5, 9, 6), dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )
    found = int8.Int8Convolution(convolution, 0.02, 0.01)(maps)
    steps = convolution.weight.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-6) / 127
    rounded = (convolution.weight / steps).round() * steps
    exact = (
        nn.functional.conv2d(maps.float() * 0.02, rounded, convolution.bias, padding=1).relu()
        / 0.01
    )
    assert found.dtype == torch.uint8 and (found == 255).any() and (found == 0).any()
    assert (found.float() - exact.clamp(max=255)).abs().max() <= 0.501


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 2, 5, 7), (3, 1, 2, 2)])
def test_int8_pooling_is_torchs_pooling(shape):
    maps = torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )
    assert torch.equal(
        int8.Int8MaxPool(1.0)(maps).float(), nn.functional.max_pool2d(maps.float(), 2)
    )


@needs_vnni
@torch.inference_mode()
def test_it_is_slid_over_larger_images_like_floats(thin):
    model = Classifier(VGG16(), ("pool5:grid2", "relu4_3:mean"), (), 3, 0.0, False).eval()
    images = torch.rand(2, 3, 96, 96)
    expected = Dense(model, 64)(images)
    model.backbone = Int8Backbone(model.backbone, images)
    torch.testing.assert_close(Dense(model, 64)(images), expected, rtol=0.1, atol=0.1)
