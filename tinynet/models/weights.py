"""Load a VGG16 backbone with weights from a file or from torchvision."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import VGG16_Weights, WeightsEnum

from tinynet.console import log, option
from tinynet.errors import InputError
from tinynet.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from tinynet.models.download import download
from tinynet.models.state_dicts import StateDict, check_numbers, read_file, unwrap
from tinynet.models.vgg import VGG16


def load_vgg16(weights: str = "IMAGENET1K_V1") -> VGG16:
    """Load VGG16's backbone with `weights`: a torchvision name, a weights file, or `none` (random).

    A file may have wrappers, half precision, a classifier as well, or names without `features.`
    (`models.state_dicts`); a checkpoint of tinynet works too. The normalisation comes from
    torchvision's metadata, by weights name or file name, or from the checkpoint. Other files are
    assumed to need ImageNet's mean and std, and a message says so.

    Raises `InputError` for an unknown name, a file of another network, or a failed download.
    """
    if weights.lower() == "none":
        return VGG16()
    by_file = {member.url.rsplit("/", 1)[1]: member for member in VGG16_Weights}
    member = VGG16_Weights.__members__.get(weights)
    if not member and not Path(weights).is_file():
        raise InputError(
            f"{option('weights')} {weights}: no such file, and not one of torchvision's names; "
            f"use a file or {', '.join(VGG16_Weights.__members__)}, none"
        )
    content = download(member) if member else read_file(weights)
    state = unwrap(content, _template(), weights, submodule="features.")
    if state.changes:
        log(f"note: {weights}: {state.changes}")
    normalisation = _normalisation(member or by_file.get(Path(weights).name), state, weights)
    if normalisation is None:
        log(
            f"{weights}: a bare state dict; ImageNet's mean {IMAGENET_MEAN} and std {IMAGENET_STD} "
            "are assumed"
        )
        normalisation = IMAGENET_MEAN, IMAGENET_STD
    backbone = VGG16(*normalisation)
    backbone.features.load_state_dict(state.tensors)
    return backbone


def _template() -> dict[str, Tensor]:
    """Return the state dict of VGG16's convolutions on the meta device.

    The fork leaves torch's random state unchanged, because a head's initial weights depend on it.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return VGG16().features.state_dict()


def _normalisation(
    member: WeightsEnum | None, state: StateDict, source: str
) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return the mean and std of the weights, or None if unknown."""
    if member:
        preprocessing = member.transforms()
        return preprocessing.mean, preprocessing.std
    mean, std = (state.extras.get(name) for name in ("mean", "std"))
    if mean is None or std is None:
        return None
    for name, values in (("mean", mean), ("std", std)):
        check_numbers(values, f"{option('weights')} {source}: {name}")
    if not mean.numel() == std.numel() == 3 or std.min() <= 0:
        raise InputError(
            f"{option('weights')} {source}: mean and std must have three values each, std above 0; "
            "use other weights"
        )
    return mean.flatten().tolist(), std.flatten().tolist()
