"""The mean of several runs' weights, with the check that it is better (model soups, Wortsman et al. 2022)."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tinynet import cli, runs
from tinynet.data.packed import Packed
from tinynet.device import Device
from tinynet.errors import InputError
from tinynet.files import whole_folder
from tinynet.fit.checkpoint import load_model, save_model
from tinynet.models.vgg import Classifier
from tinynet.runs import StageFolder
from tinynet.scoring import NOT_PAIRED, Scorer, paired, score_row


def cook(folders: Sequence[StageFolder], packed: Packed, device: Device, out: str | None) -> list[dict[str, Any]]:
    """Rows of the hold-out's scores: each run, then the soup; `gain` and `p` are over the best of the runs.

    `out`: the run to write the soup to, only where it is better than the best of them.
    Raises `InputError` where the runs do not fit: other networks, sizes, pictures or hold-outs.
    """
    if out and Path(out).exists():
        raise InputError(f"--out {out}: is there already; name a new folder")
    models, size = _alike(folders, packed)
    with tempfile.TemporaryDirectory() as room:
        soup = StageFolder(Path(room), folders[0].stage)
        soup.make()
        shutil.copy(folders[0].recipe, soup.recipe)
        save_model(soup.best, mean_weights(models), packed.wnids, size)
        rows, right = [], []
        for folder in (*folders, soup):
            scorer = Scorer(folder, packed, device)
            found = scorer.score("holdout", *scorer.sets(["none"], size))
            right.append(found.log_probabilities[0].argmax(1) == found.labels)
            rows.append({**scorer.named, "split": "holdout", "views": "none", "merge": "mean", "size": size,
                         **score_row(found, found.log_probabilities[0]), **NOT_PAIRED})
        best = max(range(len(folders)), key=lambda i: rows[i]["top1"])
        rows[-1] |= {"run": out or f"mean of {len(folders)} runs' weights", **paired(right[-1], right[best])}
        better = rows[-1]["gain"] > 0
        cli.say(f"the mean of the weights is {'better' if better else 'not better'} than {folders[best].run}: "
                f"{rows[-1]['gain']:+.2%} on the hold-out, p = {rows[-1]['p']:.2g}"
                f"{'; nothing was written' if out and not better else ''}")
        if out and better:
            runs.put_scores(soup.scores, rows[-1:])
            with whole_folder(out) as made:
                shutil.copytree(soup.path, made / soup.stage, dirs_exist_ok=True)
    return rows


def mean_weights(models: Sequence[Classifier]) -> Classifier:
    """A network whose weights and running statistics are the means of those of `models`, in eval mode."""
    states = [model.state_dict() for model in models]
    mean = {name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
            for name, value in states[0].items()}
    made = Classifier(type(models[0].backbone)(), **models[0].shape)
    made.load_state_dict(mean)
    return made.eval()


def _alike(folders: Sequence[StageFolder], packed: Packed) -> tuple[list[Classifier], int]:
    """The networks of `folders` and the size they share."""
    first, loaded = folders[0].read_recipe(), [load_model(folder.best, packed.wnids) for folder in folders]
    for folder, (model, size) in zip(folders, loaded, strict=True):
        for key, what in (("data_digest", "data"), ("split_digest", "split")):
            if folder.read_recipe()[key] != first[key]:
                raise InputError(f"--soup {folder.run}: was trained on other {what} than {folders[0].run}; weights are "
                                 "averaged over runs that hold out the same pictures")
        if (model.shape, size) != (loaded[0][0].shape, loaded[0][1]):
            raise InputError(f"--soup {folder.run}: has another network or size than {folders[0].run}; weights are "
                             "averaged over runs of one recipe")
    return [model for model, _ in loaded], loaded[0][1]
