"""Weights from a file or from torchvision become a VGG16 backbone."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import VGG16_Weights, WeightsEnum

from tinynet.console import log
from tinynet.errors import InputError
from tinynet.models.state_dicts import Unwrapped, check_numbers, read_file, unwrap
from tinynet.models.vgg import IMAGENET_MEAN, IMAGENET_STD, Backbone


def load_backbone(weights: str = "IMAGENET1K_V1") -> Backbone:
    """VGG16's backbone with `weights`: a name of torchvision's, a file of weights, or `none`
    (random).

    A file is taken as people have it (`models.state_dicts`): a classifier beside, names with or
    without `features.`, wrappers, half precision, a checkpoint of tinynet's own. The normalisation
    is that of the weights' metadata, also where a file has the name that torchvision gives them, or
    the checkpoint's; any other file is taken to want ImageNet's mean and std. Raises `InputError`
    for an unknown name, a file of another network, or a download that fails.
    """
    if weights.lower() == "none":
        return Backbone()
    published = {member.url.rsplit("/", 1)[1]: member for member in VGG16_Weights}
    named = VGG16_Weights.__members__.get(weights)
    if not named and not Path(weights).is_file():
        raise InputError(
            f"--weights {weights}: no such file, and not one of "
            f"{', '.join(VGG16_Weights.__members__)}, none"
        )
    state = unwrap(
        download(named) if named else read_file(weights), _shapes(), weights, part="features."
    )
    if state.removed:
        log(f"note: {weights}: {state.removed}")
    normalisation = _normalisation(named or published.get(Path(weights).name), state, weights)
    if normalisation is None:
        log(
            f"{weights}: a bare state dict; ImageNet's mean {IMAGENET_MEAN} and std {IMAGENET_STD} "
            "are assumed"
        )
    backbone = Backbone(*normalisation or ())
    backbone.features.load_state_dict(state.tensors)
    return backbone


def _shapes() -> dict[str, Tensor]:
    """The tensors of VGG16's convolutions without numbers, and without a draw of torch's, on which
    a head depends.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return Backbone().features.state_dict()


def _normalisation(
    published: WeightsEnum | None, state: Unwrapped, source: str
) -> tuple[list[float], list[float]] | None:
    """Mean and std that the weights want, where that is known."""
    if published:
        preprocessing = published.transforms()
        return preprocessing.mean, preprocessing.std
    mean, std = (state.others.get(name) for name in ("mean", "std"))
    if mean is None or std is None:
        return None
    for name, values in (("mean", mean), ("std", std)):
        check_numbers(values, f"--weights {source}: {name}")
    if not mean.numel() == std.numel() == 3 or std.min() <= 0:
        raise InputError(
            f"--weights {source}: mean and std must have three values each, std above 0; use "
            "other weights"
        )
    return mean.flatten().tolist(), std.flatten().tolist()


def download(weights: WeightsEnum) -> dict[str, Tensor]:
    """The state dict of a member of torchvision's weights, fetched unless it was before.

    Raises `InputError` where it cannot be fetched, or what was fetched cannot be read.
    """
    name = weights.url.rsplit("/", 1)[1]
    try:
        with redirect_stdout(sys.stderr):  # torch announces a download where results belong
            return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError, UnpicklingError, EOFError) as error:
        kept = Path(torch.hub.get_dir()) / "checkpoints" / name
        if kept.exists():  # torch checks what it fetches, but not what it fetched before
            raise InputError(
                f"{weights.name}: {kept} cannot be read ({type(error).__name__}); remove it, "
                "and it is fetched again"
            ) from None
        raise InputError(
            f"{weights.name}: could not be fetched ({error}); bring {weights.url} here by hand and "
            f"name it: --weights {name}"
        ) from None
