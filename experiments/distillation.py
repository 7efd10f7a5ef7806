"""Train `finetune` on the predictions of an earlier run, too (Hinton et al. 2015; Furlanello et al.
2018).

    python experiments/distillation.py TEACHER VIEWS FILE 2 --stage finetune --run RUN --out OTHER

The first arguments are the earlier run, the test-time views of its predictions (`none`: one view),
a file for them, and a temperature T. If the file exists, the predictions are read from it. The
other arguments are those of `tinynet train`. The loss is the mean of two terms: the usual
cross-entropy, without label smoothing, and T² times the divergence of the two predictions at the
temperature T. One process only. The recipe does not note the teacher: resume with this script, not
with the printed command.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import tinynet
from tinynet import train
from tinynet.data.batches import Batch, ImageLoader
from tinynet.flags import run_command
from tinynet.training import single_stage
from tinynet.training.config import split_of
from tinynet.training.inputs import TrainingImages
from tinynet.training.loop import Training

SHARE = 0.5  # of the teacher in the loss
CLASSES = 2**10  # more than there are


def predictions(run: str, views: str, file: Path) -> np.ndarray:
    """The log-probabilities (N, C) of the images of train; -inf for the hold-out."""
    if file.is_file():
        return np.load(file)
    predictor = tinynet.Run(run).predictor()
    train_part, rows = predictor.packed.train, split_of(predictor.config, predictor.packed).train
    predictor.saves = False
    predictor.images = lambda split: (train_part, rows)  # type: ignore[method-assign]
    merged = predictor.predict("train", predictor.sets([views], predictor.size)[0]).merged()
    values = np.full((len(train_part), merged.shape[1]), -np.inf, np.float16)
    values[rows] = merged
    np.save(file, values)
    return values


class Images(TrainingImages):
    """Training images whose labels hold the images' rows, too."""

    def batch(self, loader: ImageLoader, epoch: int, number: int) -> Batch:
        """Return a batch with the labels `CLASSES * row + label`."""
        batch = super().batch(loader, epoch, number)
        return batch._replace(labels=CLASSES * batch.rows + batch.labels)


class Distilling(Training):
    """A training whose loss has the predictions of a teacher."""

    teacher, temperature = torch.empty(0), 1.0

    def _loss(self, logits: Tensor, labels: Tensor, count: int) -> Tensor:
        teacher = self.teacher[(labels // CLASSES).cpu()].to(logits.device).float()
        assert teacher.isfinite().all()
        soft = F.kl_div(
            F.log_softmax(logits / self.temperature, -1),
            F.log_softmax(teacher / self.temperature, -1),
            reduction="batchmean",
            log_target=True,
        )
        hard = F.cross_entropy(logits, labels % CLASSES)
        return (1 - SHARE) * hard + SHARE * self.temperature**2 * soft


if __name__ == "__main__":
    values = predictions(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    Distilling.teacher, Distilling.temperature = torch.from_numpy(values), float(sys.argv[4])
    single_stage.Training = Distilling
    single_stage.TrainingImages = Images
    run_command(lambda: train.main(sys.argv[5:]))
