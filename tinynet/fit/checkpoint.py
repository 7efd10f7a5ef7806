"""Checkpoints: tensors and plain values only, whole or not at all, with the class order inside."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinynet.errors import InputError
from tinynet.files import whole_file
from tinynet.models.vgg import Backbone, Classifier

FORMAT = 1


def save_model(path: Path, model: Classifier, wnids: tuple[str, ...], size: int,
               head: nn.Module | None = None) -> None:
    """Write a network with its class order and the side in pixels of the pictures it was trained on.

    `head`: one to write in place of the model's own, for instance a moving average of it.
    """
    weights = model.state_dict()
    if head is not None:
        weights |= {f"head.{name}": value for name, value in head.state_dict().items()}
    _save(path, {"kind": "model", "network": model.shape, "weights": weights, "size": size}, wnids)


def load_model(path: Path, wnids: tuple[str, ...]) -> tuple[Classifier, int]:
    """The network in `path`, in eval mode on the CPU, and the side of the pictures it was trained on.

    Raises `InputError` where the file is no checkpoint or its classes are not `wnids` in this order.
    """
    stored = _load(path, "model", wnids)
    shape = dict(stored["network"])
    model = Classifier(Backbone(), **shape)
    model.load_state_dict(stored["weights"])
    return model.eval(), stored["size"]


def class_order(path: Path) -> tuple[str, ...]:
    """The wnids of a network's outputs; raises `InputError` where the file is no checkpoint."""
    return tuple(_read(path, "model")["wnids"])


def save_training(path: Path, state: dict[str, Any], wnids: tuple[str, ...]) -> None:
    """Write the state of a training (`Training.state_dict()`)."""
    _save(path, {"kind": "training", "state": state}, wnids)


def load_training(path: Path, wnids: tuple[str, ...]) -> dict[str, Any]:
    """The state of a training; raises `InputError` as `load_model` does."""
    return _load(path, "training", wnids)["state"]


def _save(path: Path, content: dict[str, Any], wnids: tuple[str, ...]) -> None:
    try:
        with whole_file(path) as stream:
            torch.save({"format": FORMAT, "wnids": list(wnids), **content}, stream)
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):
            raise
        cause = error.__context__  # torch hides a full disk behind an error of its own
        raise OSError(cause.errno, cause.strerror, str(path)) from None


def _read(path: Path, kind: str) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; `python -m tinynet.train` writes one")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or foreign file raises nearly anything
        raise InputError(f"{path}: not a checkpoint of tinynet ({type(error).__name__}); "
                         "`python -m tinynet.train` writes one") from None
    if not isinstance(stored, dict) or (stored.get("format"), stored.get("kind")) != (FORMAT, kind):
        raise InputError(f"{path}: not a {kind} checkpoint of tinynet, format {FORMAT}; "
                         "`python -m tinynet.train` writes one")
    return stored


def _load(path: Path, kind: str, wnids: tuple[str, ...]) -> dict[str, Any]:
    stored = _read(path, kind)
    theirs = stored["wnids"]
    if theirs != list(wnids):
        how = "the same classes in another order" if sorted(theirs) == sorted(wnids) else \
            f"other classes ({len(theirs)}, here {len(wnids)})"
        raise InputError(f"{path}: was trained on {how}; scoring it on this data would be chance, "
                         "so name the data it was trained on with --data")
    return stored
