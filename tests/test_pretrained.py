"""Pretrained networks of torchvision and timm."""

import math
import sys

import pytest
import torch
import torchvision
from image_folders import SMALL_ARCH, CellMeans
from support import complaint
from torch import nn
from torchvision.transforms.v2 import functional as tv

from tinynet.models.backbones import backbone_template
from tinynet.models.pretrained import Pretrained, load_pretrained


def test_a_network_normalises_and_restricts_itself():
    inner, images = CellMeans(), torch.rand(4, 3, 32, 32)
    whole = Pretrained(inner, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    torch.testing.assert_close(
        whole(images), inner(tv.normalize(images, [0.4, 0.5, 0.6], [0.2, 0.3, 0.2]))
    )
    some = Pretrained(inner, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), [5, 2, 700])
    assert torch.equal(some(images), whole(images)[:, [5, 2, 700]])


def test_torchvision_says_what_it_publishes(tmp_path):
    model, published = load_pretrained(SMALL_ARCH, "none")
    how = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.transforms()
    assert (published.resize, published.size, published.interpolation) == (256, 224, "bilinear")
    assert (
        how.resize_size == [256] and published.names[0] == "tench" and published.accuracies is None
    )
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    torch.save(model.network.state_dict(), tmp_path / "weights.pth")
    again, _ = load_pretrained(SMALL_ARCH, str(tmp_path / "weights.pth"))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(again(images), model(images))


def test_published_weights_are_fetched_with_their_accuracy(monkeypatch):
    state = torchvision.models.get_model(SMALL_ARCH, weights=None).state_dict()
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    asked = {}
    monkeypatch.setattr(
        type(weights), "get_state_dict", lambda self, **how: asked.update(how) or state
    )
    _, published = load_pretrained(SMALL_ARCH)
    assert published.accuracies == (pytest.approx(0.60552), pytest.approx(0.81746))
    assert asked["weights_only"] is True and asked["check_hash"] is True


def test_what_torchvision_sets_for_published_weights_is_set(tmp_path):
    """Networks whose published weights want more than the plain constructor: read from a file of
    their name.
    """
    network = torchvision.models.densenet121(weights=None)
    old = {
        key.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2.")
        if "denselayer" in key
        else key: value
        for key, value in network.state_dict().items()
        if "num_batches_tracked" not in key
    }
    assert old.keys() != network.state_dict().keys()
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    model, published = load_pretrained("densenet121", str(tmp_path / "densenet121-a639ec97.pth"))
    assert published.accuracies == (pytest.approx(0.74434), pytest.approx(0.91972))
    images = torch.rand(1, 3, 64, 64)
    expected = network.eval()(tv.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert load_pretrained("googlenet", "none")[0].network.transform_input
    complaint(
        lambda: load_pretrained("vgg16", "IMAGENET1K_FEATURES"),
        "have no classifier",
        "IMAGENET1K_V1",
    )


def test_networks_and_weights_that_there_are_not_are_refused(tmp_path, monkeypatch):
    complaint(lambda: load_pretrained("resnet5"), "resnet5", "resnet50")
    complaint(lambda: load_pretrained("lraspp_mobilenet_v3_large"), "no such classifier")
    complaint(
        lambda: load_pretrained("resnet18", "IMAGENET1K_V9"), "IMAGENET1K_V9", "IMAGENET1K_V1"
    )
    (tmp_path / "text.pth").write_text("no weights")
    complaint(
        lambda: load_pretrained(SMALL_ARCH, str(tmp_path / "text.pth")), "text.pth", "state dict"
    )
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    complaint(
        lambda: load_pretrained(SMALL_ARCH, str(tmp_path / "other.pth")),
        "do not match the network",
        "2 unexpected (first: weight)",
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "torch.hub.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    complaint(
        lambda: load_pretrained(SMALL_ARCH),
        "could not be downloaded",
        "no network",
        "https://",
        "use weights ",
    )


def test_timm_is_asked_for_by_name(monkeypatch):
    timm = pytest.importorskip("timm")
    model, published = load_pretrained("timm/resnet18.a1_in1k", "none")
    how = timm.data.resolve_model_data_config(timm.create_model("resnet18.a1_in1k"))
    assert (published.size, published.interpolation) == (
        how["input_size"][-1],
        how["interpolation"],
    )
    assert (
        published.resize == math.floor(published.size / how["crop_pct"])
        and len(published.names) == 1000
    )
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1000)
    complaint(lambda: load_pretrained("timm/resnet5"), "timm/resnet5", "resnet50")
    for tag in ("nonsense", ""):
        complaint(
            lambda tag=tag: load_pretrained(f"timm/resnet18.{tag}", "none"),
            f"no weights '{tag}' for resnet18",
            "timm/resnet18.a1_in1k",
        )
    # A tag whose weights timm does not host has metadata.
    assert load_pretrained("timm/test_vit4.r160_in1k", "none")[1].size == 160


def test_a_network_of_timm_without_groups_is_refused(monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.delattr(timm.models.resnet.ResNet, "group_matcher")
    complaint(lambda: backbone_template("timm/resnet18"), "timm/resnet18", "no groups of layers")


def test_without_timm_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    complaint(lambda: load_pretrained("timm/resnet18"), "timm/resnet18", "pip install")
