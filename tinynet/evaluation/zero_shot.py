"""ImageNet's own networks on Tiny ImageNet, without training: the 1000-way head restricted to the
data's classes.
"""

import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from tinynet import console
from tinynet.compute import Compute
from tinynet.data.batches import batches, fitting
from tinynet.data.image_folder import imagenet_wnids
from tinynet.data.packed import Packed, PackedPart
from tinynet.data.splits import split_train
from tinynet.errors import InputError
from tinynet.evaluation.folder import can_see, refuse_dense
from tinynet.evaluation.predictor import whole_part
from tinynet.models.pretrained import Pretrained, load_pretrained
from tinynet.score.probabilities import Probabilities, view_probabilities
from tinynet.score.views import ViewSet, view_set


class ZeroShot:
    """A pretrained network on Tiny ImageNet without any training: its head restricted to the data's
    classes.

    Raises `InputError` where one of them is none of ImageNet's 1,000.
    """

    def __init__(self, arch: str, weights: str, packed: Packed, compute: Compute):
        wnids = imagenet_wnids()
        foreign = [wnid for wnid in packed.wnids if wnid not in wnids]
        if foreign:
            raise InputError(
                f"{packed.manifest['source']}: {len(foreign)} of its {len(packed.wnids)} classes "
                f"are none of ImageNet's 1,000 (first: {foreign[0]}); --head imagenet needs them "
                "all"
            )
        model, published = load_pretrained(
            arch, weights, [wnids.index(wnid) for wnid in packed.wnids]
        )
        if len(published.names) != len(wnids):
            raise InputError(
                f"--arch {arch}: has {len(published.names)} classes; --head imagenet needs the "
                "1,000 of ILSVRC 2012"
            )
        self.packed, self.compute, self.size = packed, compute, published.size
        self._model: Pretrained = model.on(compute)
        self.named = {"run": arch, "stage": "zero-shot"}
        self._warm: set[int] = set()  # sides of images that have been seen

    def images(self, split: str) -> tuple[PackedPart, np.ndarray]:
        """The part and the rows of a split; the hold-out is that of the default split."""
        if split == "holdout":
            return self.packed.train, split_train(self.packed.train.labels).holdout
        return whole_part(self.packed, split)

    def sets(self, texts: Iterable[str], size: int) -> list[ViewSet]:
        """The sets of views that `texts` write; raises `InputError` for one that the network cannot
        see.
        """
        made = [view_set(text, size) for text in texts]
        for chosen in made:
            refuse_dense(chosen)
            side = self.packed.side
            can_see(
                self._model,
                chosen,
                torch.zeros(1, 3, side, side, device=self.compute.device),
                self.named["run"],
            )
        return made

    def predict(self, split: str, chosen: ViewSet) -> Probabilities:
        """Log-probabilities of every view of `chosen`."""
        part, rows = self.images(split)
        found, seconds = [], []
        for name, view in chosen.views.items():
            side = min(view(torch.zeros(1, 3, self.packed.side, self.packed.side)).shape[-2:])
            at_once = fitting(side, self.compute.device)
            if self.compute.device.type != "cpu" and side not in self._warm:
                # Its rate is not that of starting cuDNN and sending all images.
                self._warm.add(side)
                first = batches(
                    part, rows[:at_once], batch_size=at_once, device=self.compute.device
                )
                view_probabilities(self._model, first, view)
            bar = console.progress(
                batches(part, rows, batch_size=at_once, device=self.compute.device),
                total=math.ceil(len(rows) / at_once),
                label=f"{split}, {name}",
                unit="batches",
            )
            started = time.perf_counter()
            found.append(view_probabilities(self._model, bar, view))
            seconds.append(time.perf_counter() - started)
        labels = None if part.labels is None else part.labels[rows]
        return Probabilities(
            tuple(chosen.views),
            np.stack(found),
            rows,
            labels,
            self.packed.wnids,
            np.array(seconds),
            {
                **self.named,
                "split": split,
                "tta": chosen.name,
                "data": self.packed.contents,
                "precision": self.compute.precision,
            },
        )

    def keep(self, row: dict[str, Any]) -> None:
        """Nothing keeps it: there is no run."""
