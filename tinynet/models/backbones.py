"""Build and load the backbone of any network by its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from tinynet.compute import Compute
from tinynet.models.backbone import Backbone
from tinynet.models.engines import gains_by_openvino
from tinynet.models.pretrained import load_published
from tinynet.models.vgg import VGG16
from tinynet.models.weights import load_vgg16
from tinynet.models.zoo import TimmBackbone, TorchvisionBackbone

VGG = "vgg16"


def load_backbone(arch: str = VGG, weights: str = "DEFAULT") -> Backbone:
    """Load the backbone of the network `arch` with `weights`.

    `arch`: `vgg16`, another classifier of torchvision, or `timm/NAME`. `weights`: torchvision's
    name of the weights, `DEFAULT` (IMAGENET1K_V1 for VGG16, else the library's default), a file
    with or without a classifier, or `none` (random).

    Raises `InputError` for an unknown name, a file of another network, or a failed download.
    """
    if arch == VGG:
        return load_vgg16("IMAGENET1K_V1" if weights == "DEFAULT" else weights)
    published = load_published(arch, weights, with_classifier=False)
    kind = TimmBackbone if arch.startswith("timm/") else TorchvisionBackbone
    return kind(arch, published)


def make_backbone(arch: str) -> Backbone:
    """Build the backbone of the network `arch` with random weights; raises `InputError`."""
    return VGG16() if arch == VGG else load_backbone(arch, "none")


def backbone_template(arch: str) -> Backbone:
    """Return the backbone of `arch` without numbers, for checks; raises `InputError`."""
    try:
        with without_numbers():
            return make_backbone(arch)
    except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
        with torch.random.fork_rng(devices=[]):
            return make_backbone(arch).to("meta")


@contextmanager
def without_numbers() -> Iterator[None]:
    """Build networks on the meta device, which needs no memory.

    The fork leaves torch's random state unchanged.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


def runs_in_int8(arch: str) -> bool:
    """Whether the frozen backbone of `arch` can run in int8; only VGG16 can."""
    return arch == VGG


@cache
def runs_in_openvino(arch: str) -> bool:
    """Whether the frozen backbone of `arch` runs in OpenVINO where it is installed."""
    return arch != VGG and gains_by_openvino(backbone_template(arch))


def compute_for(compute: Compute, arch: str) -> Compute:
    """Return how the frozen backbone of `arch` runs: its engine, precision and batches."""
    return compute.for_network(runs_in_int8(arch), runs_in_openvino(arch))
