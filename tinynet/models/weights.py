"""Weights from a file or from torchvision become a VGG16 backbone."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import VGG16_Weights, WeightsEnum

from tinynet.cli import say
from tinynet.errors import InputError
from tinynet.models.vgg import IMAGENET_MEAN, IMAGENET_STD, Backbone


def load_backbone(weights: str = "IMAGENET1K_V1") -> Backbone:
    """VGG16's backbone with `weights`: a name of torchvision's, a state-dict file, or `none` (random).

    The normalisation is that of the weights' metadata, also where a file has the name that torchvision gives
    them; any other file is taken to want ImageNet's mean and std.
    Raises `InputError` for an unknown name, a file of another network, or a download that fails.
    """
    if weights.lower() == "none":
        return Backbone()
    published = {member.url.rsplit("/", 1)[1]: member for member in VGG16_Weights}
    chosen = VGG16_Weights.__members__.get(weights)
    if not chosen and not Path(weights).is_file():
        raise InputError(f"--weights {weights}: no such file, and not one of {', '.join(VGG16_Weights.__members__)}, "
                         "none")
    state = download(chosen) if chosen else read_state(weights)
    if chosen := chosen or published.get(Path(weights).name):
        preprocessing = chosen.transforms()
        backbone = Backbone(preprocessing.mean, preprocessing.std)
    else:
        backbone = Backbone()
        say(f"{weights}: a bare state dict; ImageNet's mean {IMAGENET_MEAN} and std {IMAGENET_STD} are assumed")
    _fill(backbone, state, weights)
    return backbone


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
            raise InputError(f"{weights.name}: {kept} cannot be read ({type(error).__name__}); remove it, "
                             "and it is fetched again") from None
        raise InputError(f"{weights.name}: could not be fetched ({error}); bring {weights.url} here by hand and "
                         f"name it: --weights {name}") from None


def read_state(path: str) -> dict[str, Any]:
    """The state dict in a file; raises `InputError` where there is none, or it holds more than tensors."""
    if not Path(path).is_file():
        raise InputError(f"--weights {path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or foreign file raises nearly anything
        raise InputError(f"--weights {path}: not a state dict that torch can read safely "
                         f"({type(error).__name__}); save one with torch.save(model.state_dict(), ...)") from None
    if not isinstance(state, dict):
        raise InputError(f"--weights {path}: holds a {type(state).__name__}, not a state dict; "
                         "save one with torch.save(model.state_dict(), ...)")
    return state


def _fill(backbone: Backbone, state: dict[str, Any], source: str) -> None:
    """Load the `features.*` of `state`; a classifier beside them is left aside."""
    wanted = backbone.features.state_dict()
    given = {key.removeprefix("features."): value for key, value in state.items() if str(key).startswith("features.")}
    missing = [key for key in wanted if key not in given]
    foreign = [key for key in given if key not in wanted]
    if missing or foreign:
        first = f"features.{(missing or foreign)[0]}"
        raise InputError(f"{source}: weights of another network, which begins with {next(iter(state), 'nothing')}: of "
                         f"VGG16's {len(wanted)} features.* keys {len(missing)} are missing and {len(foreign)} are "
                         f"foreign (first: {first})")
    for key, value in wanted.items():
        if not isinstance(given[key], Tensor) or given[key].shape != value.shape:
            shape = tuple(getattr(given[key], "shape", ()))
            raise InputError(f"{source}: weights of another network: features.{key} has shape {shape}, "
                             f"VGG16 has {tuple(value.shape)}")
    backbone.features.load_state_dict(given)
