"""Backbones of torchvision and timm, against the libraries' own networks."""

import copy

import numpy as np
import pytest
import torch
from support import complaint
from torch import nn

from tinynet.models.backbone import POOLED
from tinynet.models.backbones import backbone_template, load_backbone, make_backbone
from tinynet.models.checkpoint import load_model, save_model
from tinynet.models.classifier import Classifier, is_norm
from tinynet.models.dense import Dense
from tinynet.models.pretrained import load_published
from tinynet.score.gradcam import gradcam, heat_layer

# The size that each is tested at: vit_b_16 takes its own only.
SIZES = {
    "vgg16_bn": 64,
    "resnet18": 64,
    "resnet50": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
    "vit_b_16": 224,
    "swin_t": 64,
    "timm/resnet18": 64,
    "timm/convnextv2_atto": 64,
    "timm/vit_tiny_patch16_224": 64,
    "timm/tf_efficientnet_lite0": 64,
    "timm/mobilenetv4_conv_small": 64,
}
QUICK = {"resnet18", "timm/vit_tiny_patch16_224", "timm/tf_efficientnet_lite0"}


def networks(quick):
    """All networks as parameters; those that are not `quick` are slow."""
    return [
        pytest.param(arch, marks=[] if arch in quick else [pytest.mark.slow], id=arch)
        for arch in SIZES
    ]


CLASSES = ("n1", "n2", "n3")


@pytest.fixture(scope="module", params=networks(QUICK))
def backbone(request):
    """A backbone with random weights. Tests must leave it as it is."""
    torch.manual_seed(0)
    return make_backbone(request.param)


@pytest.fixture
def images(backbone):
    torch.manual_seed(1)
    return torch.rand(2, 3, *[SIZES[backbone.arch]] * 2)


@pytest.fixture
def classifier(backbone):
    return Classifier(
        copy.deepcopy(backbone), ("last:mean", "last-1:mean", "last-1:max"), (8,), 3, 0.0, True
    ).eval()


# --- nodes ---


@torch.inference_mode()
def test_outputs_are_as_described(backbone, images):
    outputs = backbone(images, backbone.channels)
    assert list(outputs) == list(backbone.channels) == list(backbone.strides)
    assert list(backbone.channels)[-1] == POOLED and len(backbone.channels) > 4
    for name, maps in outputs.items():
        stride, cells = backbone.strides[name], images.shape[-1]
        assert maps.ndim == 4 and maps.shape[:2] == (2, backbone.channels[name])
        assert torch.isfinite(maps).all()
        if stride:
            assert maps.shape[2:] == (-(-cells // stride),) * 2
        else:
            assert maps.shape[3] == 1
    assert outputs[POOLED].shape[2:] == (1, 1)


@torch.inference_mode()
def test_a_node_is_the_same_whichever_others_are_requested(backbone, images):
    together = backbone(images, backbone.channels)
    for name in backbone.channels:
        alone = backbone(images, [name])
        assert list(alone) == [name] and torch.equal(alone[name], together[name]), name


@torch.inference_mode()
def test_the_pooled_node_is_what_the_librarys_classifier_is_given(images, backbone):
    torch.manual_seed(0)
    published = load_published(backbone.arch, "none")
    network = published.network.eval()
    (prefix,) = published.classifier
    inputs = []
    network.get_submodule(prefix).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (published.mean, published.std))
    network((images - mean) / std)
    torch.testing.assert_close(backbone(images, [POOLED])[POOLED].flatten(1), inputs[0].flatten(1))


@torch.inference_mode()
def test_layers_after_the_last_node_do_not_run(backbone, images):
    first, *_ = backbone.channels
    twin, ran = copy.deepcopy(backbone), []
    last = [module for module in twin.network.modules() if list(module.parameters(recurse=False))]
    last[-1].register_forward_hook(lambda *_: ran.append(True))
    twin(images, [first])
    assert not ran
    twin(images, [POOLED])
    assert ran


@torch.inference_mode()
def test_a_copy_is_independent(backbone, images):
    before = backbone(images, [POOLED])[POOLED]
    twin = copy.deepcopy(backbone)
    assert torch.equal(twin(images, [POOLED])[POOLED], before)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(0.5)
    assert not torch.equal(twin(images, [POOLED])[POOLED], before)
    assert torch.equal(backbone(images, [POOLED])[POOLED], before)
    ours = {id(weight) for weight in backbone.parameters()}
    assert not ours & {id(weight) for group in twin.groups.values() for weight in group}


def test_names_from_the_end(backbone):
    *_, before, last, pooled = backbone.channels
    assert (backbone.node("last"), backbone.node("last-1")) == (last, before)
    assert backbone.node(pooled) == pooled and backbone.node(last) == last
    complaint(lambda: backbone.node("last-99"), "last-99", backbone.arch, last)
    complaint(lambda: backbone.node("relu4_3x"), "relu4_3x", backbone.arch, last)


def test_a_template_describes_the_network_and_draws_no_random_numbers(backbone):
    state = torch.get_rng_state()
    template = backbone_template(backbone.arch)
    assert torch.equal(torch.get_rng_state(), state)
    assert template.channels == backbone.channels and template.strides == backbone.strides
    assert list(template.groups) == list(backbone.groups)
    assert all(weight.is_meta for weight in template.parameters())


def test_sizes_that_the_network_does_not_take_are_refused_with_what_it_takes(backbone):
    backbone.check_size(224)
    if backbone.arch == "vit_b_16":
        complaint(lambda: backbone.check_size(64), "size 64", "vit_b_16", "224 pixels")
    elif backbone.arch == "timm/vit_tiny_patch16_224":
        backbone.check_size(64)
        complaint(lambda: backbone.check_size(100), "size 100", "patch", "224 pixels")
    else:
        backbone.check_size(100)
        complaint(lambda: backbone.check_size(31, "--side"), "--side 31", "32 pixels or more")


# --- groups ---


def test_every_weight_is_in_one_group(backbone):
    grouped = [id(weight) for group in backbone.groups.values() for weight in group]
    assert sorted(grouped) == sorted(id(weight) for weight in backbone.parameters())
    assert len(backbone.groups) >= 4 and "head" not in backbone.groups


def test_a_frozen_layer_changes_in_no_way(classifier, images):
    """Weights by their number, and every tensor by a step of training."""
    names = [*list(classifier.backbone.groups)[-2:], "head"]
    trainable = {id(weight) for name in names for weight in classifier.groups[name]}
    count = sum(weight.numel() for weight in classifier.parameters() if id(weight) in trainable)
    assert classifier.train_only(names) == count
    owners = {
        f"{path}.{name}".lstrip("."): any(
            id(weight) in trainable for weight in module.parameters(recurse=False)
        )
        for path, module in classifier.named_modules()
        for name, _ in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]
    }
    before = copy.deepcopy(classifier.state_dict())
    classifier.train()
    optimizer = torch.optim.SGD(
        [weight for weight in classifier.parameters() if weight.requires_grad], 0.1
    )
    torch.nn.functional.cross_entropy(classifier(images), torch.tensor([0, 1])).backward()
    optimizer.step()
    after = classifier.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # A batch norm without weights leads the head.
    frozen = {name for name in before if not owners[name] and not name.startswith("head.0.")}
    assert not changed & frozen
    assert {name.split(".")[0] for name in changed} == {"backbone", "head"}


def test_batch_norms_of_a_frozen_backbone_keep_their_statistics(classifier, images):
    classifier.train_only(["head"])
    norms = [layer for layer in classifier.backbone.modules() if is_norm(layer)]
    before = [norm.running_mean.clone() for norm in norms]
    classifier.train()
    classifier(images)
    assert all(map(torch.equal, before, (norm.running_mean for norm in norms)))
    classifier.train_only(["all"])
    classifier.train()
    classifier(images)
    assert not any(map(torch.equal, before, (norm.running_mean for norm in norms)))


# --- what is built on them ---


def test_a_checkpoint_brings_its_network_back(classifier, images, tmp_path):
    save_model(tmp_path / "best.pt", classifier, CLASSES, images.shape[-1])
    again, size = load_model(tmp_path / "best.pt", CLASSES)
    assert size == images.shape[-1] and again.backbone.arch == classifier.backbone.arch
    with torch.inference_mode():
        assert torch.equal(again(images), classifier(images))


def test_weights_of_a_file_with_or_without_a_classifier(backbone, tmp_path):
    network = load_published(backbone.arch, "none").network
    whole, bare, wrong = (tmp_path / f"{name}.pth" for name in ("whole", "bare", "wrong"))
    torch.save(network.state_dict(), whole)
    torch.save(backbone.network.state_dict(), bare)
    torch.save({"conv.weight": torch.zeros(3)}, wrong)
    loaded = load_backbone(backbone.arch, str(whole))
    assert all(
        torch.equal(value, network.state_dict()[name])
        for name, value in loaded.network.state_dict().items()
    )
    assert load_backbone(backbone.arch, str(bare)).digest() == backbone.digest()
    assert loaded.digest() != backbone.digest()
    complaint(lambda: load_backbone(backbone.arch, str(wrong)), wrong, "do not match")


def test_heat_maps_are_of_the_image(classifier, images):
    node = heat_layer(classifier, images.shape[-1])
    heat = gradcam(classifier, images, torch.tensor([0, 2]), node)
    assert heat.shape == (2, *images.shape[2:]) and (heat >= 0).all()
    sums = heat.sum((1, 2))
    assert ((sums - 1).abs() < 1e-4).logical_or(sums == 0).all() and (sums > 0).any()


def test_dense_scoring_where_there_are_maps(classifier, images):
    side = images.shape[-1]
    dense = Dense(classifier, side)
    if not all(dense.strides.values()):
        complaint(lambda: dense.check(images), "dense", "has no maps", "ten")
        return
    with torch.inference_mode():
        alone = dense(images)
        torch.testing.assert_close(alone, classifier(images).log_softmax(1), rtol=1e-4, atol=1e-5)
        larger = dense(torch.rand(2, 3, side + 32, side + 32))
    np.testing.assert_allclose(larger.exp().sum(1).numpy(), 1, rtol=1e-5)
    complaint(lambda: dense.check(torch.rand(1, 3, side + 8, side + 8)), "dense", str(side + 32))


def test_a_copy_for_inference_is_close(classifier, images):
    twin = classifier.for_inference(torch.device("cpu"), torch.bfloat16)
    weights = [weight for weight in twin.backbone.parameters() if weight.is_floating_point()]
    assert all(weight.dtype == torch.bfloat16 for weight in weights)
    assert all(
        norm.weight.dtype == torch.float32 for norm in twin.head if isinstance(norm, nn.Linear)
    )
    with torch.inference_mode():
        ours, theirs = classifier.features(images), twin.features(images)
    assert theirs.dtype == torch.float32
    similarity = torch.nn.functional.cosine_similarity(ours, theirs)
    assert similarity.min() > 0.98


# --- what is refused ---


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("resnet19", ("resnet19", "resnet18")),
        ("timm/resnet19", ("timm/resnet19", "resnet18")),
        ("", ("arch",)),
    ],
)
def test_an_unknown_network_is_refused_with_similar_names(arch, words):
    complaint(lambda: load_backbone(arch, "none"), *words)


def test_networks_that_compute_with_numbers_while_they_are_built_are_taken():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    template = backbone_template("regnet_y_400mf")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(weight.is_meta for weight in template.parameters())
    assert list(template.channels) == list(make_backbone("regnet_y_400mf").channels)


def test_features_that_a_layer_does_not_have_are_refused():
    backbone = backbone_template("timm/vit_tiny_patch16_224")
    for features, words in (
        (("last:grid2",), ("last:grid2", "mean, max, first", "not a map")),
        (("last:median",), ("last:median", "mean, max, first")),
        (("relu4_3:mean",), ("relu4_3", "blocks.11")),
        ((), ("no features",)),
    ):
        complaint(lambda: Classifier(backbone, features, (), 3, 0.0, False), *words)  # noqa: B023
    complaint(
        lambda: Classifier(backbone_template("resnet18"), ("last:first",), (), 3, 0.0, False),
        "last:first",
        "grid2",
    )
