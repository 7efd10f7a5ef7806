"""VGG16's layers, normalisation and least side."""

import pytest
import torch
import torchvision
from support import DEPTHS, complaint
from torchvision.transforms.v2.functional import normalize

from tinynet.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from tinynet.models.vgg import VGG16


def theirs(backbone):
    """torchvision's own features with the weights of `backbone`."""
    with torch.device("meta"):  # else its 120 million weights of the classifier are drawn
        features = torchvision.models.vgg16(weights=None).features
    features = features.to_empty(device="cpu")
    features.load_state_dict(backbone.features.state_dict())
    return features.eval()


# --- depths and normalisation ---


@torch.inference_mode()
def test_layers_are_those_of_torchvision():
    torch.manual_seed(0)
    backbone = VGG16()
    features = theirs(backbone)
    images = torch.rand(2, 3, 32, 32)
    found = backbone(images, DEPTHS)
    maps = normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    assert list(found) == list(DEPTHS) and list(backbone.channels) == list(DEPTHS)
    done = 0
    for name, (layers, channels) in DEPTHS.items():
        maps = features[done:layers](maps).clone()
        done = layers
        assert backbone.channels[name] == channels == maps.shape[1]
        torch.testing.assert_close(found[name], maps, rtol=1e-4, atol=1e-5)
    assert done == len(features)


@torch.inference_mode()
def test_a_layer_is_the_same_whichever_others_are_requested(thin):
    backbone, images = VGG16(), torch.rand(2, 3, 32, 32)
    together = backbone(images, DEPTHS)
    for name in DEPTHS:
        alone = backbone(images, [name])
        assert list(alone) == [name] and torch.equal(alone[name], together[name])


@torch.inference_mode()
def test_the_backbone_stops_at_the_deepest_requested_layer(thin):
    backbone, seen = VGG16(), []
    for index, module in enumerate(backbone.features):
        module.register_forward_hook(lambda *_, index=index: seen.append(index))
    backbone(torch.rand(1, 3, 32, 32), ["relu1_1", "pool2"])
    assert seen == list(range(DEPTHS["pool2"][0]))


@torch.inference_mode()
def test_normalisation_inside_is_normalize_outside(thin):
    mean, std = (0.2, 0.4, 0.7), (0.1, 0.3, 0.05)
    inside, outside = VGG16(mean, std), VGG16((0, 0, 0), (1, 1, 1))
    outside.features.load_state_dict(inside.features.state_dict())
    images = torch.rand(3, 3, 32, 40)
    kept = images.clone()
    torch.testing.assert_close(
        inside(images, ["pool3"]), outside(normalize(images, mean, std), ["pool3"])
    )
    assert torch.equal(images, kept)


def test_normalisation_travels_with_the_weights(thin):
    state = VGG16((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)).state_dict()
    other = VGG16()
    other.load_state_dict(state)
    assert other.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert other.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_digest_is_that_of_weights_and_normalisation(thin):
    torch.manual_seed(0)
    backbone = VGG16()
    digest = backbone.digest()
    assert digest == backbone.digest() == backbone.to(memory_format=torch.channels_last).digest()
    other = VGG16((0.5, 0.5, 0.5))
    other.features.load_state_dict(backbone.features.state_dict())
    assert other.digest() != digest
    with torch.no_grad():
        backbone.features[28].bias[3] += 1e-6
    assert backbone.digest() != digest


# --- the least side ---


def test_the_least_side_is_the_one_below_which_nothing_is_left(thin):
    VGG16().check_size(32)
    VGG16()(torch.rand(1, 3, 32, 32), ["pool5"])
    complaint(lambda: VGG16().check_size(31), "size 31", "32")
    complaint(lambda: VGG16().check_size(-1, "--side"), "--side -1")
    with pytest.raises(RuntimeError):
        VGG16()(torch.rand(1, 3, 31, 31), ["pool5"])
