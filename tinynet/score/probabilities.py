"""A network, batches and views become log-probabilities of every view: only probabilities leave a model."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tinynet.data.batches import Batch
from tinynet.errors import InputError
from tinynet.files import whole_file
from tinynet.score.views import Views, resize


@dataclass(frozen=True)
class Probabilities:
    """`log_probabilities`: (V, N, C) float32, one row of the first axis for each name in `views`.

    `rows`: (N,) int64, the pictures' rows in their part of the archive. `labels`: (N,) int64, or
    None for pictures without labels. `wnids`: the C classes in order.
    """

    views: tuple[str, ...]
    log_probabilities: np.ndarray
    rows: np.ndarray
    labels: np.ndarray | None
    wnids: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write a compressed `.npz`, whole or not at all."""
        arrays = dict(views=np.array(self.views), log_probabilities=self.log_probabilities, rows=self.rows,
                      wnids=np.array(self.wnids))
        if self.labels is not None:
            arrays["labels"] = self.labels
        with whole_file(path) as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Probabilities":
        """Read what `save` wrote; raises `InputError` where the file is another one."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(tuple(stored["views"].tolist()), stored["log_probabilities"], stored["rows"],
                           stored["labels"] if "labels" in stored else None, tuple(stored["wnids"].tolist()))
        except Exception as error:  # a broken or foreign file raises nearly anything
            raise InputError(f"{path}: not a file of stored probabilities ({type(error).__name__}); "
                             "`python -m tinynet.evaluate` writes them") from None


def log_softmax(logits: Tensor) -> Tensor:
    """(N, C) float32 log-probabilities of logits of any precision."""
    return torch.log_softmax(logits.float(), 1)


@torch.inference_mode()
def view_probabilities(model: nn.Module, batches: Iterable[Batch], views: Views, size: int,
                       wnids: tuple[str, ...]) -> Probabilities:
    """Log-probabilities of every view of every picture.

    `model`: in eval mode, pictures to logits. `views` gets the pictures resized to `size`.
    """
    names: tuple[str, ...] = ()
    parts, rows, labels = [], [], []
    for batch in batches:
        seen = views(resize(batch.pictures, size))
        names = tuple(seen)
        parts.append(torch.stack([log_softmax(model(view)) for view in seen.values()]).cpu())
        rows.append(batch.rows.cpu())
        labels.append(batch.labels)
    known = None if labels[0] is None else torch.cat(labels).cpu().numpy()
    return Probabilities(names, torch.cat(parts, 1).numpy(), torch.cat(rows).numpy(), known, wnids)


@torch.inference_mode()
def head_probabilities(head: nn.Module, inputs: Iterable[Tensor]) -> np.ndarray:
    """(N, C) float32 log-probabilities of a head, in eval mode, on batches of kept features."""
    return torch.cat([log_softmax(head(features)).cpu() for features in inputs]).numpy()
