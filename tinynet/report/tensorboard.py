"""Show training in TensorBoard while it runs (the extra `tensorboard`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from tinynet.console import option
from tinynet.errors import InputError
from tinynet.records import EpochRow, LogRow, Score, StepRow
from tinynet.report.figures import confusion_matrix
from tinynet.runs import StageFolder
from tinynet.score.confusions import confusion, similar_order
from tinynet.training.observers import Observer

_IMAGES = 32
# Field of a row -> name of its scalar.
_STEP = {"lr": "learning rate", "loss": "train/loss of a step"}
_EPOCH = {"loss": "train/loss of an epoch", "images_per_second": "train/images per second"}
_HOLDOUT = {"top1": "hold-out/top-1", "top5": "hold-out/top-5", "loss": "hold-out/loss"}


def writer() -> Any:
    """Return the class that writes event files; raises `InputError` if its package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except (ImportError, AttributeError) as error:  # versions before 2.18 do not support numpy 2
        raise InputError(
            f"{option('tensorboard')}: needs the package tensorboard ({error}); pip install -U "
            "tensorboard"
        ) from None
    return SummaryWriter


class TensorBoard(Observer):
    """Writes event files into the folder `tensorboard` of each stage.

    Events of later steps that an earlier process wrote are hidden. Raises `InputError` if the
    package is missing.
    """

    flag = "--tensorboard"
    wants_images = True

    def __init__(self) -> None:
        self._type = writer()
        self._writer: Any = None

    def start(self, folder: StageFolder, step: int) -> None:
        """Open the event file of a stage after `step` steps."""
        self._writer = self._type(str(folder.path / "tensorboard"), purge_step=step + 1)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def row(self, row: LogRow) -> None:
        """Add the scalars of a row of the log."""
        if isinstance(row, StepRow):
            self._add(_STEP, row, row.step)
        elif isinstance(row, EpochRow):
            self._add(_EPOCH, row, row.step)
            self._add(_HOLDOUT, row.holdout, row.step)

    def _add(self, names: Mapping[str, str], values: LogRow | Score, step: int) -> None:
        for field, name in names.items():
            self._writer.add_scalar(name, getattr(values, field), step)

    def images(self, images: Tensor) -> None:
        """Add a grid of images (N, 3, H, W) in [0, 1], as the network gets them."""
        self._writer.add_images("training images", images[:_IMAGES].clamp(0, 1))

    def holdout(self, log_probabilities: np.ndarray, labels: np.ndarray, step: int) -> None:
        """Add the confusion matrix of the hold-out after `step` steps."""
        counts = confusion(log_probabilities, labels)
        self._writer.add_figure(
            "hold-out/confusion", confusion_matrix(counts, similar_order(counts)), step
        )
