"""Downloads of torchvision's weights."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

from tinynet.console import option
from tinynet.errors import InputError


def download(weights: WeightsEnum) -> dict[str, Tensor]:
    """Return the state dict of torchvision's `weights`, from torch's cache or the network.

    Raises `InputError` if the download fails or the cached file cannot be read.
    """
    name = weights.url.rsplit("/", 1)[1]
    try:
        with redirect_stdout(sys.stderr):  # torch announces downloads on stdout
            return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError, UnpicklingError, EOFError) as error:
        path = Path(torch.hub.get_dir()) / "checkpoints" / name
        if path.exists():  # torch checks the hash of a download, but not of a cached file
            raise InputError(
                f"{weights.name}: {path} cannot be read ({type(error).__name__}); remove it, "
                "and run again to download it"
            ) from None
        raise InputError(
            f"{weights.name}: could not be downloaded ({error}); download {weights.url} by hand "
            f"and use {option('weights')} {name}"
        ) from None
