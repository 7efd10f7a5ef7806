"""A finished stage is scored: its splits at any sizes, over any views and merges, to rows and stored probabilities.

This ties the rooms together for whoever scores: the commands `tinynet.evaluate` and `tinynet.predict`,
the demo, the notebooks.
"""

import copy
import functools
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from tinynet import cli, runs
from tinynet.data.batches import batches, fitting
from tinynet.data.packed import Packed, PackedPart
from tinynet.device import Device
from tinynet.errors import InputError
from tinynet.files import can_hold
from tinynet.fit.checkpoint import load_model
from tinynet.fit.features import effect, frozen_backbone, view_features
from tinynet.jobs.plan import Plan, split_of
from tinynet.models.dense import Dense
from tinynet.models.vgg import Classifier, check_side
from tinynet.runs import StageFolder
from tinynet.score import merges as merging
from tinynet.score.calibration import at_temperature, fit_temperature
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import by_class, score
from tinynet.score.probabilities import Probabilities, head_probabilities, view_probabilities
from tinynet.score.views import PLAIN, View, ViewSet, view_set


class Scorable(Protocol):
    """What can be scored: `Scorer`, or `zero_shot.ZeroShot`. `named`: what rows call it; `size`: what it sees."""

    named: dict[str, Any]
    packed: Packed

    @property
    def size(self) -> int: ...
    def pictures(self, split: str) -> tuple[PackedPart, np.ndarray]: ...
    def sets(self, texts: Iterable[str], size: int) -> list[ViewSet]: ...
    def score(self, split: str, chosen: ViewSet) -> Probabilities: ...
    def keep(self, row: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Wanted:
    """What is to be scored: splits, test sizes (None: the training size), sets of views, merges.

    `calibrate`: a second row for what is not the hold-out, at the temperature that fits the hold-out best.
    `per_class`: a row for each class in place of one for all. `save`: a file for the probabilities of every view.
    Raises `InputError` for a set or merge that there is not, where `save` would have to hold several sets, and for
    `calibrate` without anything beside the hold-out.
    """

    splits: Sequence[str] = ("holdout", "val")
    sizes: Sequence[int] | None = None
    tta: Sequence[str] = ()
    merges: Sequence[str] = ("mean",)
    calibrate: bool = False
    per_class: bool = False
    save: str | None = None

    def __post_init__(self) -> None:
        for name in self.merges:
            merging.get(name)
        for text in self.tta:
            view_set(text, 64)
        counts = {"splits": len(self.splits), "sizes": len(self.sizes or [0]), "sets of views": len(self.tta or [0])}
        several = [f"{count} {what}" for what, count in counts.items() if count > 1]
        if self.calibrate and self.per_class:
            raise InputError("--per-class gives a row for each class and --calibrate one for all; name one of them")
        if self.calibrate and set(self.splits) == {"holdout"}:
            raise InputError("--calibrate fits the hold-out and shows what that does to val; name --split val or both")
        if self.save:
            can_hold(self.save)
        if self.save and several:
            raise InputError(f"--save-probabilities {self.save}: one file holds one set of views of one split at one "
                             f"size, not {', '.join(several)}; name one with --split, --size and --tta")


def evaluate(scorer: Scorable, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Rows of scores for every split, size, set of views and merge, plain first.

    A run keeps them, and the probabilities of every view, where the data is its own.
    Raises `InputError` for a size, view or split that there is not.
    """
    for split in (*wanted.splits, *(["holdout"] if wanted.calibrate else [])):
        scorer.pictures(split)  # all that can be refused is refused before anything is computed
    sets = {size: scorer.sets(dict.fromkeys(("none", *wanted.tta)), size) for size in wanted.sizes or [scorer.size]}
    for split, size in itertools.product(wanted.splits, sets):
        plain = None
        for chosen in sets[size]:
            found = scorer.score(split, chosen)
            held = scorer.score("holdout", chosen) if wanted.calibrate and split != "holdout" else None
            plain = plain or found
            for merge in wanted.merges if len(chosen) > 1 else ("mean",):
                named = {**scorer.named, "split": split, "views": chosen.name, "merge": merge, "size": size}
                yield from _rows(scorer, found, plain, held, named, wanted.per_class)
        if wanted.save:
            found.save(Path(wanted.save))


def _rows(scorer: Scorable, found: Probabilities, plain: Probabilities, held: Probabilities | None,
          named: dict[str, Any], per_class: bool) -> Iterator[dict[str, Any]]:
    """The rows of one set of views and one merge; `plain`: the picture alone, of the same split and size;
    `held`: the same views of the hold-out, where a temperature is to be fitted."""
    merge, labels = merging.get(named["merge"]), found.labels
    merged = found.merged(merge)
    beside = NOT_PAIRED if found is plain else paired(merged.argmax(1) == labels,
                                                      plain.log_probabilities[0].argmax(1) == labels)
    row = {**named, **score_row(found, merged), **beside}
    scorer.keep(row)
    yield from _class_rows(named, merged, labels, scorer.packed) if per_class else (row,)
    if held is not None:
        temperature = fit_temperature(held.merged(merge), held.labels)
        mended = {**row, "temperature": temperature, **score(at_temperature(merged, temperature), labels)}
        scorer.keep(mended)
        yield mended


NOT_PAIRED = dict.fromkeys(("gain", "gain_low", "gain_high", "p"))


def score_row(found: Probabilities, merged: np.ndarray) -> dict[str, Any]:
    """The scores of merged log-probabilities (N, C), and what their views cost."""
    rate = len(found.rows) / found.seconds.sum() if np.isfinite(found.seconds).all() else None
    return {**score(merged, found.labels), "precision": found.about.get("precision"), "forwards": len(found.views),
            "pictures_per_second": rate}


def paired(right: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """`gain` over `other`, its 95 % interval and `p`, for a row."""
    found = mcnemar(right, other)
    return {key: found[key] for key in NOT_PAIRED}


def _class_rows(named: dict[str, Any], merged: np.ndarray, labels: np.ndarray, packed: Packed) -> Iterator[dict]:
    names = [f"{wnid} {name}" for wnid, name in zip(packed.wnids, packed.names, strict=True)]
    for row in sorted(by_class(merged, labels), key=lambda row: row["top1"]):
        taken = row.pop("taken_for")
        yield {**named, "name": names[row.pop("label")], **row, "taken_for": None if taken is None else names[taken]}


def whole_part(packed: Packed, split: str) -> tuple[PackedPart, np.ndarray]:
    """A part and all of its rows; raises `InputError` where it has no pictures."""
    part = packed.part(split)
    if not len(part):
        raise InputError(f"{packed.manifest['source']}: has no {split} pictures; choose another --split")
    return part, np.arange(len(part))


class Scorer:
    """A finished stage, ready to say probabilities.

    `own`: whether the data is that of the run, which then keeps what is computed. `named`: what the rows call it.
    `plan`, `stage`: what it was trained by.
    Raises `InputError` where the stage cannot be read, or, once it is needed, was trained on other classes.
    """

    def __init__(self, folder: StageFolder, packed: Packed, device: Device):
        self.folder, self.packed = folder, packed
        stored = folder.read_recipe()
        self.plan = Plan.read(stored)
        self.stage = self.plan.recipe.stage(folder.stage)
        self._networks: dict[int | None, Classifier] = {}
        self._data = stored["data"]
        self.named = {"run": str(folder.run), "stage": folder.stage}
        # Convolutions that have learnt stay in floats.
        self.device = replace(device, int8=device.int8 and not self.plan.learns_convolutions(folder.stage))
        self.own = packed.contents == stored["data_digest"]
        if not self.own:
            cli.say(f"note: {packed.manifest['source']} is not the data of {folder.run}, "
                    "which does not keep these scores")

    @functools.cached_property
    def _loaded(self) -> tuple[Classifier, int, str]:
        model, size = load_model(self.folder.best, self.packed.wnids)
        return model, size, hashlib.sha256(self.folder.best.read_bytes()).hexdigest()[:16]

    @property
    def model(self) -> Classifier:
        """The network, in eval mode."""
        return self._loaded[0]

    @functools.cached_property
    def _head(self) -> nn.Module:
        """A copy on the device: whoever asks for `model` finds all of it in one place."""
        return copy.deepcopy(self.model.head).to(self.device.device)

    @property
    def size(self) -> int:
        """Side in pixels of the pictures that the network was trained on."""
        return self._loaded[1]

    def pictures(self, split: str) -> tuple[PackedPart, np.ndarray]:
        """The part and the rows of a split; the hold-out is the one that this run held out.

        Raises `InputError` where the data is not that of the run, so that its hold-out cannot be known.
        """
        if split != "holdout":
            return whole_part(self.packed, split)
        if not self.own:
            raise InputError(f"{self.folder.run}: its hold-out was taken from other data ({self._data}); name that "
                             "with --data, or score --split val alone")
        return self.packed.train, split_of(self.plan, self.packed).holdout

    def sets(self, texts: Iterable[str], size: int) -> list[ViewSet]:
        """The sets of views that `texts` write, for a network that sees `size` pixels.

        Raises `InputError` unless every view can be made and seen.
        """
        check_side(size)
        probe = torch.zeros(1, 3, self.packed.side, self.packed.side)
        made = [view_set(text, size) for text in texts]
        for number, chosen in enumerate(made):
            distinct = {effect(view, self.packed.side): name for name, view in reversed(chosen.views.items())}
            if len(distinct) < len(chosen):
                cli.say(f"note: {len(chosen)} views of {chosen.name} are {len(distinct)} different ones here; each "
                        "counts once")
                kept = {name: view for name, view in chosen.views.items() if name in distinct.values()}
                made[number] = chosen = replace(chosen, views=kept)
            for seen in chosen(probe).values():
                check_side(min(seen.shape[-2:]), f"--tta {chosen.name}: side")
                if chosen.dense:
                    Dense(self.model, self.size).check(seen)
        return made

    def keep(self, row: dict[str, Any]) -> None:
        """Put a row into the run's scores, if they are of its own data."""
        if self.own:
            runs.put_scores(self.folder.scores, [row])

    def score(self, split: str, chosen: ViewSet) -> Probabilities:
        """Log-probabilities of every view of `chosen`; what the run has kept of them is not computed again."""
        part, rows = self.pictures(split)
        labels = None if part.labels is None else part.labels[rows]
        about = {"run": str(self.folder.run), "stage": self.folder.stage, "split": split, "tta": chosen.name,
                 "data": self.packed.contents, "weights": self._loaded[2], "precision": self.device.precision,
                 "device": self.device.device.type}
        found = []
        with cli.progress(total=len(chosen) * len(rows), label=f"{split}, {chosen.name}", unit="views") as bar:
            for name, view in chosen.views.items():
                found.append(self._one(name, view, chosen.dense, part, rows, labels, about, bar.update))
                bar.n = len(found) * len(rows)
        return Probabilities(tuple(chosen.views), np.concatenate([f.log_probabilities for f in found]), rows, labels,
                             self.packed.wnids, np.concatenate([f.seconds for f in found]), about)

    def _one(self, name: str, view: View, dense: bool, part: PackedPart, rows: np.ndarray,
             labels: np.ndarray | None, about: dict[str, Any], advance: Callable[[int], Any]) -> Probabilities:
        """One view: as the run keeps it, or computed, and then kept."""
        key = effect(view, self.packed.side) + ("-dense" if dense else "")
        path = self.folder.probabilities / f"{about['split']}-{key}.npz"
        mine = {name: about[name] for name in ("data", "weights", "precision", "device")}
        with suppress(InputError):  # what is kept and cannot be read is computed again
            kept = Probabilities.load(path)
            if np.array_equal(kept.rows, rows) and mine.items() <= kept.about.items():
                return kept
        side = min(view(torch.zeros(1, 3, self.packed.side, self.packed.side)).shape[-2:])
        values, seconds = self._compute(name, view, side, dense, part, rows, advance)
        made = Probabilities((name,), values[None], rows, labels, self.packed.wnids, np.array([seconds]),
                             {**about, "side": side, "dense": dense})
        if self.own:
            made.save(path)
        return made

    def _compute(self, name: str, view: View, side: int, dense: bool, part: PackedPart, rows: np.ndarray,
                 advance: Callable[[int], Any]) -> tuple[np.ndarray, float]:
        """Log-probabilities (N, C) of one view, and the seconds they took; nan where features were kept.

        A head that learnt from kept features is scored on kept features of the plain and the mirrored picture:
        other seeds and heads on the same frozen backbone then take seconds.
        """
        if self.stage.views and side == self.size and name in (PLAIN, "mirror") and not dense:
            stage = replace(self.stage, size=side)
            kept = view_features(self.model, self.packed, part, rows, view, stage, self.device)
            return head_probabilities(self._head, kept.in_order(self.device.device)), float("nan")
        network, at_once = self._network(side), fitting(side, self.device.device)
        network = Dense(network, self.size) if dense else network

        def watched() -> Iterator:
            for batch in batches(part, rows, size=at_once, device=self.device.device):
                yield batch
                advance(len(batch.rows))

        started = time.perf_counter()
        return view_probabilities(network, watched(), view), time.perf_counter() - started

    def _network(self, side: int) -> Classifier:
        """The network as it runs fastest on pictures of `side` pixels, on which the ranges of integers depend."""
        key = side if self.device.int8 else None
        if key not in self._networks:
            running = self._networks[key] = self.model.for_inference(self.device.device, self.device.dtype)
            if self.device.int8:
                running.backbone = frozen_backbone(self.model, self.packed, side, self.device)
        return self._networks[key]
