"""The mean of several runs' weights, with the check that it is better (model soups, Wortsman et al.
2022).
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinynet import console, runs
from tinynet.compute import AutoBatch, Compute
from tinynet.data.batches import batches
from tinynet.data.packed import Packed
from tinynet.errors import InputError
from tinynet.evaluation.evaluate import NOT_PAIRED, paired, score_row
from tinynet.evaluation.predictor import Predictor
from tinynet.files import atomic_folder, refuse_existing, temporary_folder, write_json
from tinynet.models.checkpoint import load_model, save_model
from tinynet.models.classifier import FOR_STATISTICS, Classifier, update_bn
from tinynet.runs import StageFolder
from tinynet.score.views import resize
from tinynet.training.config import RunConfig, split_of


def make_soup(
    folders: Sequence[StageFolder], packed: Packed, compute: Compute, out: str | None
) -> list[dict[str, Any]]:
    """Rows of the hold-out's scores: each run, then the soup; `gain` and `p` are over the best of
    the runs.

    `out`: the run to write the soup to, only where it is better than the best of them.
    Raises `InputError` where the runs do not fit: other networks, sizes, pictures or hold-outs.
    """
    if out:
        refuse_existing("--out", out)
    models, size = _alike(folders, packed)
    made_of = {
        "soup": [str(folder.path) for folder in folders],
        "command": console.current_command(),
    }
    with temporary_folder(Path(tempfile.gettempdir()) / "tinynet-soup") as room:
        soup = StageFolder(room, folders[0].stage)
        soup.make()
        write_json(soup.recipe, folders[0].read_recipe() | made_of)
        save_model(
            soup.best,
            _normalised(mean_weights(models), folders[0], packed, compute, size),
            packed.wnids,
            size,
        )
        rows, right = [], []
        for folder in (*folders, soup):
            predictor = Predictor(folder, packed, compute)
            found = predictor.predict("holdout", *predictor.sets(["none"], size))
            right.append(found.log_probabilities[0].argmax(1) == found.labels)
            rows.append(
                {
                    **predictor.named,
                    "split": "holdout",
                    "views": "none",
                    "merge": "mean",
                    "size": size,
                    **score_row(found, found.log_probabilities[0]),
                    **NOT_PAIRED,
                }
            )
        best = max(range(len(folders)), key=lambda i: rows[i]["top1"])
        rows[-1] |= {
            "run": out or f"mean of {len(folders)} runs' weights",
            **paired(right[-1], right[best]),
        }
        better, sure = rows[-1]["gain"] > 0, rows[-1]["p"] < 0.05
        console.log(
            f"the mean of the weights is {'better' if better else 'not better'} than "
            f"{folders[best].run}: {rows[-1]['gain']:+.2%} on the hold-out, p = {rows[-1]['p']:.2g}"
            f"{'' if sure or not better else ', so chance could have done it'}"
            f"{'; nothing was written' if out and not better else ''}"
        )
        if out and better:
            # its gain is over another run
            runs.put_scores(soup.scores, [{**rows[-1], **NOT_PAIRED}])
            shutil.rmtree(soup.probabilities, ignore_errors=True)  # they name the temporary folder
            with atomic_folder(out) as made:
                shutil.copytree(soup.path, made / soup.stage, dirs_exist_ok=True)
    return rows


def mean_weights(models: Sequence[Classifier]) -> Classifier:
    """A network whose weights are the means of those of `models`, in eval mode.

    The running statistics of its batch norms are means too, which are not those of the mean
    network.
    """
    states = [model.state_dict() for model in models]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in states[0].items()
    }
    made = Classifier(type(models[0].backbone)(), **models[0].shape)
    made.load_state_dict(mean)
    return made.eval()


def _normalised(
    model: Classifier, folder: StageFolder, packed: Packed, compute: Compute, size: int
) -> Classifier:
    """The same, the running statistics of its batch norms measured anew on pictures it was trained
    on.

    Izmailov et al. 2018: averaged weights need statistics of their own.
    """
    rows = np.random.RandomState(0).permutation(split_of(RunConfig.of(folder), packed).train)
    shown = batches(packed.train, rows[:FOR_STATISTICS], batch_size=64, device=compute.device)
    running = model.to(compute.device)
    with torch.inference_mode():
        features = list(
            map(AutoBatch(running.features), (resize(batch.images, size) for batch in shown))
        )
    update_bn(running.head, features)
    return running.cpu().eval()


def _alike(folders: Sequence[StageFolder], packed: Packed) -> tuple[list[Classifier], int]:
    """The networks of `folders` and the size they share."""
    first = folders[0].read_recipe()
    loaded = [load_model(folder.best, packed.wnids, folder.origin) for folder in folders]
    for folder, (model, size) in zip(folders, loaded, strict=True):
        for key, what in (("data_digest", "data"), ("split_digest", "split")):
            if folder.read_recipe()[key] != first[key]:
                raise InputError(
                    f"--soup {folder.run}: was trained on other {what} than {folders[0].run}; "
                    "weights are averaged over runs that hold out the same pictures"
                )
        if folder.stage != folders[0].stage:
            raise InputError(
                f"--soup {folder.run}: its last finished stage is {folder.stage}, that of "
                f"{folders[0].run} is {folders[0].stage}; name one with --stage"
            )
        if (model.shape, size) != (loaded[0][0].shape, loaded[0][1]):
            raise InputError(
                f"--soup {folder.run}: has another network or size than {folders[0].run}; weights "
                "are averaged over runs of one recipe"
            )
    return [model for model, _ in loaded], loaded[0][1]
