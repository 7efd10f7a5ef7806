"""The network of a finished stage: log-probabilities of any view, which the run saves."""

import copy
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from tinynet import console, runs
from tinynet.compute import Compute
from tinynet.data.batches import Batch, batches, default_batch_size
from tinynet.data.packed import Packed, PackedPart
from tinynet.distributed import get_world
from tinynet.errors import InputError
from tinynet.files import can_write, clear_leftovers
from tinynet.models.checkpoint import load_model
from tinynet.models.classifier import Classifier
from tinynet.models.dense import Dense
from tinynet.records import Json, ScoreRow
from tinynet.runs import StageFolder
from tinynet.score.probabilities import (
    Probabilities,
    head_probabilities,
    same_labels,
    view_probabilities,
)
from tinynet.score.views import PLAIN, View, ViewSet, view_set
from tinynet.training.config import RunConfig, split_of
from tinynet.training.extraction import evaluation_compute, inference_network
from tinynet.training.features import FeatureCache, effect


def whole_part(packed: Packed, split: str) -> tuple[PackedPart, np.ndarray]:
    """Return a part and all of its rows; raises `InputError` if it has no images."""
    part = packed.part(split)
    if not len(part):
        raise InputError(
            f"{packed.manifest['source']}: has no {split} images; name other data"
            + console.advice(" with --data")
            + console.advice(f", or another {console.option('split')}")
        )
    return part, np.arange(len(part))


@dataclass(frozen=True)
class _View:
    """One view of the images of a split, and where its probabilities come from.

    `side`: of the view in pixels. `about`: the metadata of the probabilities.
    """

    name: str
    view: View
    dense: bool
    side: int
    split: str
    part: PackedPart
    rows: np.ndarray
    about: Json

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.part.labels is None else self.part.labels[self.rows]

    def matches(self, probabilities: Probabilities) -> bool:
        """Whether saved probabilities are of these images, this network and this device."""
        keys = ("data", "weights", "precision", "device")
        about = {key: self.about[key] for key in keys}
        return (
            np.array_equal(probabilities.rows, self.rows)
            and same_labels(probabilities.labels, self.labels)
            and about.items() <= probabilities.about.items()
            and self.about.get("engine") == probabilities.about.get("engine")
        )


class Predictor:
    """The network of a finished stage with its data, ready to compute probabilities.

    `own`: whether the data is the run's own. `saves`: whether this process saves results in the
    run. `source`: the run and
    the stage, as a row of scores. `config`, `stage`: what the network was trained by. `compute`:
    where and how it runs; `training_compute`: where and how it would be trained.

    Raises `InputError` if the stage cannot be read, and, once the network is needed, if it was
    trained on other classes.
    """

    def __init__(self, folder: StageFolder, packed: Packed, compute: Compute):
        self.folder, self.packed, self._world = folder, packed, get_world()
        # Other machines may not have the run.
        recipe, self.config = self._world.from_main(
            lambda: (folder.read_recipe(), RunConfig.of(folder))
        )
        self.stage = self.config.stage(folder.stage, packed.side)
        self._networks: dict[int | None, Classifier] = {}
        self._warm: set[tuple[int, bool]] = set()  # sides that have been timed, and whether dense
        self._data = recipe["data"]
        self.source = ScoreRow(run=str(folder.run), stage=folder.stage)
        self.training_compute = compute
        self.compute = evaluation_compute(self.config, folder.stage, compute)
        self.own = packed.contents == recipe["data_digest"]
        writable = self._world.from_main(lambda: can_write(folder.results))
        self.saves = self.own and writable and self._world.main
        if self.saves and folder.probabilities.is_dir():
            clear_leftovers(folder.probabilities)
        if not self.own:
            console.log(
                f"note: scores are not saved: {packed.manifest['source']} is not the data that "
                f"{folder.run} was trained on"
            )
        elif not writable:
            console.log(
                f"note: scores are not saved: {folder.results} is not writable"
                + console.advice("; save them elsewhere with --out DIR")
            )

    @functools.cached_property
    def _loaded(self) -> tuple[Classifier, int, str]:
        """The network, its training size, and the digest of its file."""

        def load() -> tuple[Classifier, int, str]:
            model, size = load_model(self.folder.best, self.packed.wnids, self.folder.origin)
            return model, size, hashlib.sha256(self.folder.best.read_bytes()).hexdigest()[:16]

        return self._world.from_main(load)

    @property
    def model(self) -> Classifier:
        """The network on the CPU, in eval mode."""
        return self._loaded[0]

    @functools.cached_property
    def _head(self) -> nn.Module:
        """A copy on the device, so that all of `model` stays on the CPU."""
        return copy.deepcopy(self.model.head).to(self.compute.device)

    @property
    def size(self) -> int:
        """Side in pixels of the images that the network was trained on."""
        return self._loaded[1]

    def images(self, split: str) -> tuple[PackedPart, np.ndarray]:
        """Return the part and the rows of a split; the hold-out is the one of this run.

        Raises `InputError` for the hold-out of other data than the run's own: it is unknown.
        """
        if split != "holdout":
            return whole_part(self.packed, split)
        if not self.own:
            moved = os.path.realpath(self._data) != os.path.realpath(self.packed.manifest["source"])
            raise InputError(
                f"{self.folder.run}: its hold-out comes from other data, which "
                + (
                    f"was at {self._data}; name that" + console.advice(" with --data")
                    if moved
                    else f"was at this place before; restore {self._data}"
                )
                + console.advice(f", or score {console.option('split')} val alone")
            )
        return self.packed.train, split_of(self.config, self.packed).holdout

    def sets(self, texts: Iterable[str], size: int) -> list[ViewSet]:
        """Parse sets of views for a test size in pixels; views with the same result count once.

        Raises `InputError` for an unknown view, or one that the network cannot process.
        """
        check_size = self.model.backbone.check_size
        check_size(size)
        if self.packed.resized and size > self.packed.side:
            console.log(
                f"note: {size} px: the images are stored at {self.packed.side} px, so they are "
                "enlarged; train a run with a larger pack_size to see more of them"
            )
        probe = torch.zeros(1, 3, self.packed.side, self.packed.side)
        sets = [self._distinct(view_set(text, size)) for text in texts]
        for views in sets:
            for image in views(probe).values():
                check_size(min(image.shape[-2:]), f"{console.option('tta')} {views.name}: side")
                if views.dense:
                    Dense(self.model, self.size).check(image)
        return sets

    def _distinct(self, views: ViewSet) -> ViewSet:
        """Keep the first of the views that have the same effect."""
        names = {
            effect(view, self.packed.side): name for name, view in reversed(views.views.items())
        }
        if len(names) == len(views):
            return views
        console.log(
            f"note: the {len(views)} views of {views.name} include only {len(names)} different "
            "ones at this size; duplicates are skipped"
        )
        distinct = {name: view for name, view in views.views.items() if name in names.values()}
        return replace(views, views=distinct)

    def save_row(self, row: ScoreRow) -> None:
        """Save a row in the run's scores, if the data is the run's own."""
        if self.saves:
            runs.put_scores(self.folder.scores, [row])

    def predict(self, split: str, views: ViewSet) -> Probabilities:
        """Compute the log-probabilities of every view, or read those that the run has saved."""
        part, rows = self.images(split)
        about = self.source.to_json() | {
            "split": split,
            "tta": views.name,
            "data": self.packed.contents,
            "images": self.packed.images,
            "weights": self._loaded[2],
            "precision": self.compute.precision,
            "device": self.compute.device.type,
            **({"engine": engine} if (engine := self.compute.engine) != "torch" else {}),
        }
        probe = torch.zeros(1, 3, self.packed.side, self.packed.side)
        results: list[Probabilities] = []
        with console.progress(
            total=len(views) * len(rows), label=f"{split}, {views.name}", unit="views"
        ) as bar:
            for name, view in views.views.items():
                side = min(view(probe).shape[-2:])
                request = _View(name, view, views.dense, side, split, part, rows, about)
                results.append(self._predict(request, bar.update))
                bar.n = len(results) * len(rows)
        return Probabilities(
            tuple(views.views),
            np.concatenate([result.log_probabilities for result in results]),
            rows,
            None if part.labels is None else part.labels[rows],
            self.packed.wnids,
            np.concatenate([result.seconds for result in results]),
            about | {"trained": self.size, "size": views.size},
        )

    def _predict(self, view: _View, advance: Callable[[int], Any]) -> Probabilities:
        """Read the saved probabilities of a view, or compute and save them."""
        key = effect(view.view, self.packed.side) + ("-dense" if view.dense else "")
        path = self.folder.probabilities / f"{view.split}-{key}.npz"

        def read() -> Probabilities | None:
            for file in self.folder.probability_files(path.name):
                with suppress(InputError):  # an unreadable file is computed again
                    saved = Probabilities.load(file)
                    if view.matches(saved):
                        return saved
            return None

        if saved := self._world.from_main(read):
            return saved
        values, seconds = self._compute(view, advance)
        probabilities = Probabilities(
            (view.name,),
            values[None],
            view.rows,
            view.labels,
            self.packed.wnids,
            np.array([seconds]),
            {**view.about, "side": view.side, "dense": view.dense},
        )
        if self.saves:
            probabilities.save(path)
        return probabilities

    def _compute(self, view: _View, advance: Callable[[int], Any]) -> tuple[np.ndarray, float]:
        """Log-probabilities (N, C) of a view and the seconds they took; NaN if features are cached.

        A head that was trained on cached features is scored on cached features of the plain and
        the flipped image: other seeds and heads on the same frozen backbone then take seconds.
        """
        if (
            self.stage.cached_epochs
            and view.side == self.size
            and view.name in (PLAIN, "mirror")
            and not view.dense
        ):
            stage = replace(self.stage, size=view.side)
            cache = FeatureCache(self.model, self.packed, self.compute)
            features = cache.view_features(view.part, view.rows, view.view, stage)
            share = self._world.share(len(view.rows))
            inputs = features.in_order(self.compute.device, share=share)
            values = head_probabilities(self._head, inputs)
            return self._world.gather(values), float("nan")
        network: nn.Module = self._network(view.side)
        if view.dense:
            network = Dense(cast(Classifier, network), self.size)
        device = self.compute.device
        size = default_batch_size(view.side, self.compute)
        rows = view.rows[self._world.share(len(view.rows))]

        def image_batches() -> Iterator[Batch]:
            for batch in batches(view.part, rows, batch_size=size, device=device):
                yield batch
                advance(len(batch.rows) * self._world.size)

        if device.type != "cpu" and (view.side, view.dense) not in self._warm:
            # The first batch starts cuDNN and sends all images, so it is not timed.
            self._warm.add((view.side, view.dense))
            first = batches(view.part, rows[:size], batch_size=size, device=device)
            view_probabilities(network, first, view.view)
        start = time.perf_counter()
        probabilities = view_probabilities(network, image_batches(), view.view)
        probabilities = self._world.gather(probabilities)
        return probabilities, time.perf_counter() - start

    def _network(self, side: int) -> Classifier:
        """The fastest network for images of `side` pixels.

        The ranges of int8 depend on `side`.
        """
        key = side if self.compute.int8 else None
        if key not in self._networks:
            self._networks[key] = inference_network(self.model, self.packed, side, self.compute)
        return self._networks[key]
