"""What training tells whoever watches it: curves, TensorBoard, a notebook."""

from typing import TYPE_CHECKING, Any

from tinynet.runs import StageFolder

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Observer:
    """Receives the events of one stage after another; every method does nothing by default.

    `flag`: the flag of `tinynet.train` that asks for this observer; a stopped run names it in the
    command that continues the run.
    """

    flag = ""

    def start(self, folder: StageFolder, step: int) -> None:
        """A stage starts, or continues after `step` steps."""

    def images(self, images: "Tensor") -> None:
        """The first batch of a new stage: (N, 3, H, W) in [0, 1], as the network sees it."""

    def row(self, row: dict[str, Any]) -> None:
        """A row of the log: a step, an epoch or a stop."""

    def holdout(self, log_probabilities: "np.ndarray", labels: "np.ndarray", step: int) -> None:
        """Log-probabilities (N, C) and labels (N,) of the hold-out after `step` steps."""

    def finish(self, folder: StageFolder, title: str) -> None:
        """A stage is finished, and its log and weights are complete."""

    def close(self) -> None:
        """A stage has ended, finished or not."""
