"""A finished stage, ready to be scored: log-probabilities of any view, which its run keeps."""

import copy
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from tinynet import console, runs
from tinynet.compute import Compute
from tinynet.data.batches import batches, fitting
from tinynet.data.packed import Packed, PackedPart
from tinynet.errors import InputError
from tinynet.files import can_write, clear_leftovers
from tinynet.models.checkpoint import load_model
from tinynet.models.classifier import Classifier
from tinynet.models.dense import Dense
from tinynet.models.vgg import check_side
from tinynet.runs import StageFolder
from tinynet.score.probabilities import Probabilities, head_probabilities, view_probabilities
from tinynet.score.views import PLAIN, View, ViewSet, view_set
from tinynet.training.config import RunConfig, split_of
from tinynet.training.features import effect, frozen_backbone, view_features


def whole_part(packed: Packed, split: str) -> tuple[PackedPart, np.ndarray]:
    """A part and all of its rows; raises `InputError` where it has no pictures."""
    part = packed.part(split)
    if not len(part):
        raise InputError(
            f"{packed.manifest['source']}: has no {split} pictures; name other data with --data"
            + console.advice(", or another --split")
        )
    return part, np.arange(len(part))


class Predictor:
    """A finished stage, ready to say probabilities.

    `own`: whether the data is that of the run, which then keeps what is computed. `named`: what the
    rows call it. `plan`, `stage`: what it was trained by. `device`: where and how it runs;
    `training_device`: where it would learn. Raises `InputError` where the stage cannot be read, or,
    once it is needed, was trained on other classes.
    """

    def __init__(self, folder: StageFolder, packed: Packed, compute: Compute):
        self.folder, self.packed = folder, packed
        stored = folder.read_recipe()
        self.config = RunConfig.of(folder)
        self.stage = self.config.recipe.stage(folder.stage)
        self._networks: dict[int | None, Classifier] = {}
        self._warm: set[tuple[int, bool]] = set()  # sides of images that have been seen, and how
        self._data = stored["data"]
        self.named = {"run": str(folder.run), "stage": folder.stage}
        # Convolutions that have learnt stay in the floats that they learnt in.
        self.training_device = compute
        self.compute = (
            compute.for_training()
            if self.config.trains_backbone(folder.stage)
            else compute.for_frozen()
        )
        self.own = packed.contents == stored["data_digest"]
        self._keeps = self.own and can_write(folder.results)
        if self._keeps and folder.probabilities.is_dir():
            clear_leftovers(folder.probabilities)
        if not self.own:
            console.log(
                f"note: {packed.manifest['source']} is not the data of {folder.run}, "
                "which does not keep these scores"
            )
        elif not self._keeps:
            console.log(
                f"note: scores are not saved: {folder.results} is not writable"
                + console.advice("; save them elsewhere with --out DIR")
            )

    @functools.cached_property
    def _loaded(self) -> tuple[Classifier, int, str]:
        model, size = load_model(self.folder.best, self.packed.wnids, self.folder.origin)
        return model, size, hashlib.sha256(self.folder.best.read_bytes()).hexdigest()[:16]

    @property
    def model(self) -> Classifier:
        """The network, in eval mode."""
        return self._loaded[0]

    @functools.cached_property
    def _head(self) -> nn.Module:
        """A copy on the device: whoever asks for `model` finds all of it in one place."""
        return copy.deepcopy(self.model.head).to(self.compute.device)

    @property
    def size(self) -> int:
        """Side in pixels of the pictures that the network was trained on."""
        return self._loaded[1]

    def images(self, split: str) -> tuple[PackedPart, np.ndarray]:
        """The part and the rows of a split; the hold-out is the one that this run held out.

        Raises `InputError` where the data is not that of the run, so that its hold-out cannot be
        known.
        """
        if split != "holdout":
            return whole_part(self.packed, split)
        if not self.own:
            moved = os.path.realpath(self._data) != os.path.realpath(self.packed.manifest["source"])
            raise InputError(
                f"{self.folder.run}: its hold-out comes from other data, which "
                + (
                    f"was at {self._data}; name that with --data"
                    if moved
                    else f"was at this place before; restore {self._data}"
                )
                + console.advice(", or score --split val alone")
            )
        return self.packed.train, split_of(self.config, self.packed).holdout

    def sets(self, texts: Iterable[str], size: int) -> list[ViewSet]:
        """The sets of views that `texts` write, for a network that sees `size` pixels.

        Raises `InputError` unless every view can be made and seen.
        """
        check_side(size)
        probe = torch.zeros(1, 3, self.packed.side, self.packed.side)
        made = [view_set(text, size) for text in texts]
        for number, chosen in enumerate(made):
            distinct = {
                effect(view, self.packed.side): name
                for name, view in reversed(chosen.views.items())
            }
            if len(distinct) < len(chosen):
                console.log(
                    f"note: {len(chosen)} views of {chosen.name} are {len(distinct)} different "
                    "ones here; each counts once"
                )
                kept = {
                    name: view for name, view in chosen.views.items() if name in distinct.values()
                }
                made[number] = chosen = replace(chosen, views=kept)
            for seen in chosen(probe).values():
                check_side(min(seen.shape[-2:]), f"--tta {chosen.name}: side")
                if chosen.dense:
                    Dense(self.model, self.size).check(seen)
        return made

    def keep(self, row: dict[str, Any]) -> None:
        """Put a row into the run's scores, if they are of its own data."""
        if self._keeps:
            runs.put_scores(self.folder.scores, [row])

    def predict(self, split: str, chosen: ViewSet) -> Probabilities:
        """Log-probabilities of every view of `chosen`; what the run has kept of them is not
        computed again.
        """
        part, rows = self.images(split)
        labels = None if part.labels is None else part.labels[rows]
        about = {
            "run": str(self.folder.run),
            "stage": self.folder.stage,
            "split": split,
            "tta": chosen.name,
            "data": self.packed.contents,
            "weights": self._loaded[2],
            "precision": self.compute.precision,
            "device": self.compute.device.type,
        }
        found = []
        with console.progress(
            total=len(chosen) * len(rows), label=f"{split}, {chosen.name}", unit="views"
        ) as bar:
            for name, view in chosen.views.items():
                found.append(
                    self._one(name, view, chosen.dense, part, rows, labels, about, bar.update)
                )
                bar.n = len(found) * len(rows)
        return Probabilities(
            tuple(chosen.views),
            np.concatenate([f.log_probabilities for f in found]),
            rows,
            labels,
            self.packed.wnids,
            np.concatenate([f.seconds for f in found]),
            about,
        )

    def _one(
        self,
        name: str,
        view: View,
        dense: bool,
        part: PackedPart,
        rows: np.ndarray,
        labels: np.ndarray | None,
        about: dict[str, Any],
        advance: Callable[[int], Any],
    ) -> Probabilities:
        """One view: as the run keeps it, or computed, and then kept."""
        key = effect(view, self.packed.side) + ("-dense" if dense else "")
        path = self.folder.probabilities / f"{about['split']}-{key}.npz"
        mine = {name: about[name] for name in ("data", "weights", "precision", "device")}
        for place in self.folder.kept_probabilities(path.name):
            with suppress(InputError):  # what is kept and cannot be read is computed again
                kept = Probabilities.load(place)
                if (
                    np.array_equal(kept.rows, rows)
                    and np.array_equal(kept.labels, labels)
                    and mine.items() <= kept.about.items()
                ):
                    return kept
        side = min(view(torch.zeros(1, 3, self.packed.side, self.packed.side)).shape[-2:])
        values, seconds = self._compute(name, view, side, dense, part, rows, advance)
        made = Probabilities(
            (name,),
            values[None],
            rows,
            labels,
            self.packed.wnids,
            np.array([seconds]),
            {**about, "side": side, "dense": dense},
        )
        if self._keeps:
            made.save(path)
        return made

    def _compute(
        self,
        name: str,
        view: View,
        side: int,
        dense: bool,
        part: PackedPart,
        rows: np.ndarray,
        advance: Callable[[int], Any],
    ) -> tuple[np.ndarray, float]:
        """Log-probabilities (N, C) of one view, and the seconds they took; nan where features were
        kept.

        A head that learnt from kept features is scored on kept features of the plain and the
        mirrored picture: other seeds and heads on the same frozen backbone then take seconds.
        """
        if (
            self.stage.cached_epochs
            and side == self.size
            and name in (PLAIN, "mirror")
            and not dense
        ):
            stage = replace(self.stage, size=side)
            kept = view_features(self.model, self.packed, part, rows, view, stage, self.compute)
            return head_probabilities(self._head, kept.in_order(self.compute.device)), float("nan")
        network, at_once = self._network(side), fitting(side, self.compute.device)
        network = Dense(network, self.size) if dense else network

        def watched() -> Iterator:
            for batch in batches(part, rows, batch_size=at_once, device=self.compute.device):
                yield batch
                advance(len(batch.rows))

        if self.compute.device.type != "cpu" and (side, dense) not in self._warm:
            # Its rate is not that of starting cuDNN and sending all images.
            self._warm.add((side, dense))
            view_probabilities(
                network,
                batches(part, rows[:at_once], batch_size=at_once, device=self.compute.device),
                view,
            )
        started = time.perf_counter()
        return view_probabilities(network, watched(), view), time.perf_counter() - started

    def _network(self, side: int) -> Classifier:
        """The network as it runs fastest on pictures of `side` pixels, on which the ranges of
        integers depend.
        """
        key = side if self.compute.int8 else None
        if key not in self._networks:
            running = self._networks[key] = self.model.for_inference(
                self.compute.device, self.compute.dtype
            )
            if self.compute.int8:
                running.backbone = frozen_backbone(self.model, self.packed, side, self.compute)
        return self._networks[key]
