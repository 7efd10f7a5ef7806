"""The interface through which curves, TensorBoard or a notebook follow a training."""

from typing import TYPE_CHECKING

from tinynet.records import LogRow
from tinynet.runs import StageFolder

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Observer:
    """Receiver of the events of each stage; every method does nothing by default.

    `flag`: the flag of `tinynet.train` that adds this observer. The command that continues a
    stopped run contains this flag.
    """

    flag = ""
    wants_images = False  # whether `images` is called

    def start(self, folder: StageFolder, step: int) -> None:
        """Handle the start of a stage, or its continuation after `step` steps."""

    def images(self, images: "Tensor") -> None:
        """Handle the first batch of a new stage: (N, 3, H, W) in [0, 1], augmented."""

    def row(self, row: LogRow) -> None:
        """Handle a row of the log: a `StepRow`, an `EpochRow` or a `StopRow`."""

    def holdout(self, log_probabilities: "np.ndarray", labels: "np.ndarray", step: int) -> None:
        """Handle log-probabilities (N, C) and labels (N,) of the hold-out after `step` steps."""

    def finish(self, folder: StageFolder, title: str) -> None:
        """Handle the end of a finished stage, whose log and weights are complete."""

    def close(self) -> None:
        """Release resources at the end of a stage, finished or not."""
