"""Evaluate an ImageNet network on Tiny ImageNet without training.

The 1000-way head is restricted to the classes of the data.
"""

import math
import time
from collections.abc import Iterable

import numpy as np
import torch

from tinynet import console
from tinynet.compute import Compute
from tinynet.data.batches import batches, default_batch_size
from tinynet.data.image_folder import imagenet_wnids
from tinynet.data.packed import Packed, PackedPart
from tinynet.data.splits import split_train
from tinynet.distributed import get_world
from tinynet.errors import InputError
from tinynet.evaluation.folder import check_views, refuse_dense
from tinynet.evaluation.predictor import whole_part
from tinynet.models.pretrained import Pretrained, load_pretrained
from tinynet.records import ScoreRow
from tinynet.score.probabilities import Probabilities, view_probabilities
from tinynet.score.views import View, ViewSet, view_set


class ZeroShot:
    """A pretrained network whose head is restricted to the classes of Tiny ImageNet.

    `source`: the network, as a row of scores. Raises `InputError` if a class of the data is not one
    of ImageNet's 1,000.
    """

    def __init__(self, arch: str, weights: str, packed: Packed, compute: Compute):
        wnids = imagenet_wnids()
        foreign = [wnid for wnid in packed.wnids if wnid not in wnids]
        if foreign:
            raise InputError(
                f"{packed.manifest['source']}: {len(foreign)} of its {len(packed.wnids)} classes "
                f"are not among ImageNet's 1,000 (first: {foreign[0]}); use data that has only "
                "ImageNet's classes"
            )
        model, published = load_pretrained(
            arch, weights, [wnids.index(wnid) for wnid in packed.wnids]
        )
        if len(published.names) != len(wnids):
            raise InputError(
                f"{console.option('arch')} {arch}: has {len(published.names)} classes; use a "
                "network with the 1,000 classes of ILSVRC 2012"
            )
        self.packed, self.compute, self.size = packed, compute, published.size
        self._arch = arch
        self._model: Pretrained = model.on(compute)
        self.source = ScoreRow(run=arch, stage="zero-shot")
        self._warm: set[int] = set()  # sides that have been timed

    def images(self, split: str) -> tuple[PackedPart, np.ndarray]:
        """Return the part and the rows of a split; the hold-out is that of the default split."""
        if split == "holdout":
            train = self.packed.train
            return train, split_train(train.required_labels).holdout
        return whole_part(self.packed, split)

    def sets(self, texts: Iterable[str], size: int) -> list[ViewSet]:
        """Parse sets of views; raises `InputError` for one that the network cannot process."""
        sets = [view_set(text, size) for text in texts]
        for views in sets:
            refuse_dense(views)
            side = self.packed.side
            probe = torch.zeros(1, 3, side, side, device=self.compute.device)
            check_views(self._model, views, probe, self._arch)
        return sets

    def predict(self, split: str, views: ViewSet) -> Probabilities:
        """Compute the log-probabilities of every view."""
        part, rows = self.images(split)
        results = [
            self._compute(view, part, rows, f"{split}, {name}")
            for name, view in views.views.items()
        ]
        about = self.source.to_json() | {
            "split": split,
            "tta": views.name,
            "size": views.size,
            "data": self.packed.contents,
            "images": self.packed.images,
            "precision": self.compute.precision,
        }
        return Probabilities(
            tuple(views.views),
            np.stack([log_probabilities for log_probabilities, _ in results]),
            rows,
            None if part.labels is None else part.labels[rows],
            self.packed.wnids,
            np.array([seconds for _, seconds in results]),
            about,
        )

    def _compute(
        self, view: View, part: PackedPart, rows: np.ndarray, label: str
    ) -> tuple[np.ndarray, float]:
        """Log-probabilities (N, C) of a view, and the seconds they took."""
        world = get_world()
        rows = rows[world.share(len(rows))]
        side = min(view(torch.zeros(1, 3, self.packed.side, self.packed.side)).shape[-2:])
        device = self.compute.device
        size = default_batch_size(side, self.compute)
        if device.type != "cpu" and side not in self._warm:
            # The first batch starts cuDNN and sends all images, so it is not timed.
            self._warm.add(side)
            first = batches(part, rows[:size], batch_size=size, device=device)
            view_probabilities(self._model, first, view)
        bar = console.progress(
            batches(part, rows, batch_size=size, device=device),
            total=math.ceil(len(rows) / size),
            label=label,
            unit="batches",
        )
        start = time.perf_counter()
        values = world.gather(view_probabilities(self._model, bar, view))
        return values, time.perf_counter() - start

    def save_row(self, row: ScoreRow) -> None:
        """Do nothing: there is no run to save the row in."""
