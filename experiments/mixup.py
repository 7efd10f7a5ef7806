"""Train with mixup (Zhang et al. 2018), to see whether `tuned` should have it.

    python experiments/mixup.py 0.2 --stage finetune --run RUN --out OTHER --epochs 3

The first argument is the parameter of the beta distribution, the others are those of `tinynet
train`. Each image of a batch is mixed with one image of the same batch, with one weight for the
batch. One process only. The recipe does not note mixup: resume with this script, not with the
printed command.
"""

import sys

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tinynet import train
from tinynet.flags import run_command
from tinynet.training import rates, single_stage
from tinynet.training.loop import Training


class Mixing(Training):
    """A training whose `finetune` mixes the images of each batch."""

    alpha = 0.0

    def train_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one step on mixed images."""
        self.weight, self.others = 1.0, labels
        if inputs.ndim == 4:  # images, not features
            # The step is the seed, so a resumed training goes on with the same weights.
            random = np.random.default_rng(self.total_steps)
            weight = random.beta(self.alpha, self.alpha)
            self.weight, self.others = max(weight, 1 - weight), labels.flip(0)
            inputs = torch.lerp(inputs.flip(0), inputs, self.weight)
        return super().train_batch(inputs, labels)

    def _loss(self, logits: Tensor, labels: Tensor, count: int) -> Tensor:
        own, other = (
            F.cross_entropy(logits, each, label_smoothing=self.stage.label_smoothing)
            for each in (labels, self.others)
        )
        return self.weight * own + (1 - self.weight) * other


if __name__ == "__main__":
    Mixing.alpha = float(sys.argv[1])
    single_stage.Training = rates.Training = Mixing
    run_command(lambda: train.main(sys.argv[2:]))
