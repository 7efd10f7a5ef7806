"""What a stage of training does, while it does it, for TensorBoard (the extra `tensorboard`)."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tinynet.errors import InputError
from tinynet.report.figures import confusion_matrix
from tinynet.score.mistakes import confusion, similar_order

_PICTURES = 32
_STEP = {"lr": "learning rate", "loss": "train/loss of a step"}
_EPOCH = {"loss": "train/loss of an epoch", "pictures_per_second": "train/pictures per second"}
_HELD = {"top1": "hold-out/top-1", "top5": "hold-out/top-5", "loss": "hold-out/loss"}


def writer() -> Any:
    """The class that writes event files; raises `InputError` where its package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except (ImportError, AttributeError) as error:  # versions before 2.18 do not know numpy 2
        raise InputError(
            f"--tensorboard: needs the package tensorboard ({error}); pip install -U tensorboard"
        ) from None
    return SummaryWriter


class Board(AbstractContextManager):
    """Event files in `folder`, closed at the end of a `with`.

    `step`: steps done before; what an earlier process wrote of later ones is shown no more.
    """

    def __init__(self, folder: Path, step: int):
        self._writer = writer()(str(folder), purge_step=step + 1)

    def __exit__(self, *_: Any) -> None:
        self._writer.close()

    def row(self, row: dict[str, Any]) -> None:
        """Scalars of a row of `fit`."""
        values = {
            "step": [(_STEP, row)],
            "epoch": [(_EPOCH, row), (_HELD, row.get("holdout"))],
        }.get(row["kind"], [])
        for names, where in values:
            for key, name in names.items():
                self._writer.add_scalar(name, where[key], row["step"])

    def pictures(self, pictures: Tensor) -> None:
        """A grid of pictures (N, 3, H, W) in [0, 1], as the network sees them."""
        self._writer.add_images(
            "pictures as they are learnt from", pictures[:_PICTURES].clamp(0, 1)
        )

    def mistakes(self, log_probabilities: np.ndarray, labels: np.ndarray, step: int) -> None:
        """The confusion matrix of the hold-out after `step` steps."""
        counts = confusion(log_probabilities, labels)
        self._writer.add_figure(
            "hold-out/confusion", confusion_matrix(counts, similar_order(counts)), step
        )
