"""A finished stage is scored: its splits at any sizes, over views, to rows and stored probabilities.

This ties the rooms together for whoever scores: the commands `tinynet.evaluate` and `tinynet.predict`,
the demo, the notebooks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinynet import cli, runs
from tinynet.errors import InputError
from tinynet.fit.recipes import Stage
from tinynet.runs import STAGES, StageFolder
from tinynet.stages import Plan, split_of

if TYPE_CHECKING:
    import numpy as np

    from tinynet.data.packed import Packed, PackedPart
    from tinynet.device import Device
    from tinynet.models.vgg import Classifier
    from tinynet.score.probabilities import Probabilities

_PIXELS = 64 * 64 * 64  # a batch, so that memory does not grow with the size


def finished_stage(run: str | None, stage: str | None) -> StageFolder:
    """The stage to score: as named, or the last finished one of the newest finished run."""
    wanted = (stage,) if stage else STAGES
    found = runs.find_run(run, lambda path: any(StageFolder(path, s).finished for s in wanted),
                          f"train one to its end before: python -m tinynet.train --stage {wanted[0]}")
    return [StageFolder(found, s) for s in wanted if StageFolder(found, s).finished][-1]


def evaluate(folder: StageFolder, packed: "Packed", device: "Device", splits: Sequence[str],
             sizes: Sequence[int] | None, tta: str) -> list[dict[str, Any]]:
    """Rows of scores for every split and size, plain first; kept in the run with their probabilities."""
    from tinynet.score.merges import MERGES
    from tinynet.score.metrics import score

    rows = []
    for split, size, found in probabilities_of(folder, packed, device, splits, sizes, tta):
        found.save(folder.probabilities / f"{split}-{tta}-{size}.npz")
        common = {"run": str(folder.run), "stage": folder.stage, "split": split}
        plain = found.log_probabilities[found.views.index("plain")]
        rows.append({**common, "views": "none", "merge": "mean", "size": size, **score(plain, found.labels)})
        if tta != "none":
            merged = MERGES["mean"](found.log_probabilities)
            rows.append({**common, "views": tta, "merge": "mean", "size": size, **score(merged, found.labels)})
    runs.append_rows(folder.scores, rows)
    return rows


def probabilities_of(folder: StageFolder, packed: "Packed", device: "Device", splits: Sequence[str],
                     sizes: Sequence[int] | None, tta: str) -> "Iterator[tuple[str, int, Probabilities]]":
    """Split, size and probabilities of every view, for every split and size (default: the training size).

    A head that learnt from kept features is scored on kept features: other seeds and heads on the same
    frozen backbone then take seconds.
    """
    from tinynet.data.batches import batches
    from tinynet.fit.checkpoint import load_model
    from tinynet.models.vgg import check_side
    from tinynet.score.probabilities import view_probabilities
    from tinynet.score.views import VIEWS

    for size in sizes or ():
        check_side(size)
    model, trained_size = load_model(folder.best, packed.wnids)
    plan = Plan.read(folder.read_recipe())
    stage = plan.recipe.stage(folder.stage)
    running = model.for_inference(device.device, device.dtype)
    for split in splits:
        part, chosen = pictures_of(split, folder, packed)
        for size in sizes or [trained_size]:
            if stage.views:
                sized = replace(stage, size=size)
                yield split, size, _kept_probabilities(model, packed, part, chosen, sized, tta, device)
                continue
            at_once = max(1, _PIXELS // size**2)
            stream = batches(part, chosen, size=at_once, device=device.device)
            bar = cli.progress(stream, total=-(-len(chosen) // at_once), label=f"{split}, {size} px, {tta}",
                               unit="batches")
            yield split, size, view_probabilities(running, bar, VIEWS[tta], size, packed.wnids)


def _kept_probabilities(model: "Classifier", packed: "Packed", part: "PackedPart", rows: "np.ndarray", stage: Stage,
                        tta: str, device: "Device") -> "Probabilities":
    """Probabilities of every view from kept features, which are extracted where they are missing."""
    import numpy as np
    import torch

    from tinynet.fit.features import view_features
    from tinynet.score.probabilities import Probabilities, head_probabilities
    from tinynet.score.views import VIEWS, resize

    def views(pictures):
        return VIEWS[tta](resize(pictures, stage.size))

    names = tuple(views(torch.zeros(1, 3, stage.size, stage.size)))
    head = model.head.to(device.device)
    found = []
    for name in names:
        kept = view_features(model, packed, part, rows, name, lambda pictures, name=name: views(pictures)[name],
                             stage, device, packed.cache)
        found.append(head_probabilities(head, kept.in_order(device.device)))
    return Probabilities(names, np.stack(found), rows, None if part.labels is None else part.labels[rows], packed.wnids)


def pictures_of(split: str, folder: StageFolder, packed: "Packed") -> tuple["PackedPart", "np.ndarray"]:
    """The part and the rows of a split; the hold-out is the one that this run held out.

    Raises `InputError` where the data is not that of the run, so that its hold-out cannot be known.
    """
    import numpy as np

    if split != "holdout":
        part = packed.part(split)
        if not len(part):
            raise InputError(f"{packed.manifest['source']}: has no {split} pictures; choose another --split")
        return part, np.arange(len(part))
    stored = folder.read_recipe()
    if packed.digest != stored["data_digest"]:
        raise InputError(f"{folder.run}: its hold-out was taken from other data ({stored['data']}); name that "
                         "with --data, or score --split val alone")
    return packed.train, split_of(Plan.read(stored), packed).holdout
