r"""Distillation: train `finetune` on the labels and on the predictions of an earlier run, the
teacher (Hinton et al. 2015; Furlanello et al. 2018).

    python experiments/distillation.py d96-f112 flip predictions.npz 2 --stage finetune --run b96 \
        --out taught

The first four arguments: the run of the teacher; its test-time views (`none`: the image alone); a
`.npz` file for its predictions, which are read from it if it exists; a temperature T. The others
are those of `tinynet train`. The loss is CE / 2 + T² KL / 2. CE is the usual cross-entropy, without
label smoothing. KL is KL(teacher || network); both predictions are softened by T. One process only.
The recipe records neither the teacher nor that label smoothing is off. To resume, replace `--stage
finetune --run b96 --out taught` with `--resume taught`, in this script's command.
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
from tinynet.distributed import launched_size
from tinynet.errors import InputError
from tinynet.flags import run_command
from tinynet.score.probabilities import Probabilities
from tinynet.training import single_stage
from tinynet.training.config import split_of
from tinynet.training.inputs import TrainingImages
from tinynet.training.loop import Training

SHARE = 0.5  # of the teacher in the loss
CLASSES = 2**10  # more than the data has


def predictions(run: str, views: str, file: Path) -> Tensor:
    """The teacher's log-probabilities (N, C) float16 of the images of train, merged over the views.

    The rows of the hold-out are -inf: they are not trained on.
    """
    predictor = tinynet.Run(run).predictor()
    images, rows = predictor.packed.train, split_of(predictor.config, predictor.packed).train
    predictor.saves = False
    predictor.images = lambda split: (images, rows)  # type: ignore[method-assign]
    request = predictor.sets([views], predictor.size)[0]
    if file.is_file():
        stored = Probabilities.load(file)
        about = {"run": run, "tta": request.name, "data": predictor.packed.contents}
        if not (about.items() <= stored.about.items() and np.array_equal(stored.rows, rows)):
            raise InputError(
                f"{file}: has predictions of another run, other views or other images; name "
                "another file"
            )
    else:
        stored = predictor.predict("train", request)
        stored.save(file)
    values = torch.full((len(images), len(stored.wnids)), -torch.inf, dtype=torch.float16)
    values[torch.from_numpy(rows)] = torch.from_numpy(stored.merged()).half()
    return values


class Images(TrainingImages):
    """Training images, with the row and the label of each in one integer."""

    def batch(self, loader: ImageLoader, epoch: int, number: int) -> Batch:
        """Return a batch with the labels `CLASSES * (row + 1) + label`."""
        batch = super().batch(loader, epoch, number)
        return batch._replace(labels=CLASSES * (batch.rows + 1) + batch.labels)


class Distilling(Training):
    """A training with a distillation loss."""

    teacher, temperature = torch.empty(0), 1.0

    def _loss(self, logits: Tensor, labels: Tensor, count: int) -> Tensor:
        rows = (labels // CLASSES).cpu() - 1
        assert (rows >= 0).all(), "only a stage on images can be distilled"
        teacher = self.teacher[rows].to(logits.device).float()
        assert teacher.isfinite().all()
        soft = F.kl_div(
            F.log_softmax(logits / self.temperature, -1),
            F.log_softmax(teacher / self.temperature, -1),
            reduction="batchmean",
            log_target=True,
        )
        hard = F.cross_entropy(logits, labels % CLASSES)
        return (1 - SHARE) * hard + SHARE * self.temperature**2 * soft


def main(run: str, views: str, file: str, temperature: str, *flags: str) -> None:
    """Train a `finetune` with a teacher."""
    of_finetune = "--resume" in flags or " --stage finetune " in f" {' '.join(flags)} "
    if not of_finetune or launched_size() > 1:
        raise InputError("distillation needs --stage finetune, or --resume, and one process")
    if not file.endswith(".npz"):
        raise InputError(f"{file}: must end in .npz")
    Distilling.teacher = predictions(run, views, Path(file))
    Distilling.temperature = float(temperature)
    single_stage.Training = Distilling  # type: ignore[misc]
    single_stage.TrainingImages = Images  # type: ignore[misc]
    train.main(flags)


if __name__ == "__main__":
    run_command(lambda: main(*sys.argv[1:]))
