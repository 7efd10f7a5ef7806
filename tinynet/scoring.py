"""A finished stage is scored: its splits at any sizes, over views, to rows and stored probabilities.

This ties the rooms together for whoever scores: the commands `tinynet.evaluate` and `tinynet.predict`,
the demo, the notebooks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tinynet import cli, runs
from tinynet.data.batches import batches, fitting
from tinynet.data.packed import Packed, PackedPart
from tinynet.device import Device
from tinynet.errors import InputError
from tinynet.fit.checkpoint import load_model
from tinynet.fit.features import view_features
from tinynet.fit.recipes import Stage
from tinynet.models.vgg import Classifier, check_side
from tinynet.plan import Plan, split_of
from tinynet.runs import StageFolder
from tinynet.score.merges import MERGES
from tinynet.score.metrics import score
from tinynet.score.probabilities import Probabilities, head_probabilities, view_probabilities
from tinynet.score.views import VIEWS, resize


def evaluate(folder: StageFolder, packed: Packed, device: Device, splits: Sequence[str],
             sizes: Sequence[int] | None, tta: str) -> list[dict[str, Any]]:
    """Rows of scores for every split and size (default: the training size), plain first.

    The run keeps them, and the probabilities of every view, where the data is its own.
    """
    rows = []
    own = packed.contents == folder.read_recipe()["data_digest"]
    if not own:
        cli.say(f"note: {packed.manifest['source']} is not the data of {folder.run}, which does not keep these scores")
    for split, size, found in probabilities_of(folder, packed, device, splits, sizes, tta):
        common = {"run": str(folder.run), "stage": folder.stage, "split": split}
        plain = found.log_probabilities[found.views.index("plain")]
        new = [{**common, "views": "none", "merge": "mean", "size": size, **score(plain, found.labels)}]
        if tta != "none":
            merged = MERGES["mean"](found.log_probabilities)
            new.append({**common, "views": tta, "merge": "mean", "size": size, **score(merged, found.labels)})
        if own:
            found.save(folder.probabilities / f"{split}-{tta}-{size}.npz")
            runs.put_scores(folder.scores, new)
        rows += new
    return rows


def probabilities_of(folder: StageFolder, packed: Packed, device: Device, splits: Sequence[str],
                     sizes: Sequence[int] | None, tta: str) -> Iterator[tuple[str, int, Probabilities]]:
    """Split, size and probabilities of every view, for every split and size (default: the training size).

    A head that learnt from kept features is scored on kept features: other seeds and heads on the same
    frozen backbone then take seconds.
    """
    for size in sizes or ():
        check_side(size)
    chosen = {split: _pictures_of(split, folder, packed) for split in splits}
    model, trained_size = load_model(folder.best, packed.wnids)
    stage = Plan.read(folder.read_recipe()).recipe.stage(folder.stage)
    for split, (part, rows) in chosen.items():
        for size in sizes or [trained_size]:
            kept_or_not = _from_features if stage.views else _from_pictures
            yield split, size, kept_or_not(model, packed, part, rows, replace(stage, size=size), tta, device)


def _from_features(model: Classifier, packed: Packed, part: PackedPart, rows: np.ndarray, stage: Stage, tta: str,
                   device: Device) -> Probabilities:
    """Probabilities of every view from kept features, which are extracted where they are missing."""

    def views(pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        return VIEWS[tta](resize(pictures, stage.size))

    names = tuple(views(torch.zeros(1, 3, packed.side, packed.side)))
    head = model.head.to(device.device)
    found = []
    for name in names:
        kept = view_features(model, packed, part, rows, lambda seen, name=name: views(seen)[name], stage, device)
        found.append(head_probabilities(head, kept.in_order(device.device)))
    labels = None if part.labels is None else part.labels[rows]
    return Probabilities(names, np.stack(found), rows, labels, packed.wnids)


def _from_pictures(model: Classifier, packed: Packed, part: PackedPart, rows: np.ndarray, stage: Stage, tta: str,
                   device: Device) -> Probabilities:
    at_once = fitting(stage.size)
    bar = cli.progress(batches(part, rows, size=at_once, device=device.device), total=-(-len(rows) // at_once),
                       label=f"{part.name}, {stage.size} px, {tta}", unit="batches")
    running = model.for_inference(device.device, device.dtype)
    return view_probabilities(running, bar, VIEWS[tta], stage.size, packed.wnids)


def _pictures_of(split: str, folder: StageFolder, packed: Packed) -> tuple[PackedPart, np.ndarray]:
    """The part and the rows of a split; the hold-out is the one that this run held out.

    Raises `InputError` where the data is not that of the run, so that its hold-out cannot be known.
    """
    if split != "holdout":
        part = packed.part(split)
        if not len(part):
            raise InputError(f"{packed.manifest['source']}: has no {split} pictures; choose another --split")
        return part, np.arange(len(part))
    stored = folder.read_recipe()
    if packed.contents != stored["data_digest"]:
        raise InputError(f"{folder.run}: its hold-out was taken from other data ({stored['data']}); name that "
                         "with --data, or score --split val alone")
    return packed.train, split_of(Plan.read(stored), packed).holdout
