"""Average the weights of several runs and keep the average if it is better than each of them.

Model soups, Wortsman et al. 2022.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tinynet import console, runs
from tinynet.compute import AutoBatch, Compute
from tinynet.data.batches import batches
from tinynet.data.packed import Packed
from tinynet.errors import InputError
from tinynet.evaluation.evaluate import paired, score_row
from tinynet.evaluation.predictor import Predictor
from tinynet.files import (
    atomic_folder,
    check_writable,
    refuse_existing,
    temporary_folder,
    write_json,
)
from tinynet.models.checkpoint import load_model, save_model
from tinynet.models.classifier import BN_IMAGES, Classifier, update_bn
from tinynet.records import NOT_COMPARED, Gain, ScoreRow
from tinynet.runs import StageFolder
from tinynet.score.views import resize
from tinynet.training.config import RunConfig, split_of


def make_soup(
    folders: Sequence[StageFolder], packed: Packed, compute: Compute, out: str | None
) -> list[ScoreRow]:
    """Score each run and their soup on the hold-out; the soup's gain is over the best run.

    `out`: the run to write the soup to; it is written only if it is better than the best run.
    Raises `InputError` if the runs differ in network, size, data or hold-out.
    """
    if out:
        refuse_existing("--out", out)
        check_writable(out)
    models, size = _compatible_models(folders, packed)
    origin = {
        "soup": [str(folder.path) for folder in folders],
        "command": console.current_command(),
    }
    with temporary_folder(Path(tempfile.gettempdir()) / "tinynet-soup") as temporary:
        soup = StageFolder(temporary, folders[0].stage)
        soup.make()
        write_json(soup.recipe, folders[0].read_recipe() | origin)
        average = _with_updated_bn(mean_weights(models), folders[0], packed, compute, size)
        save_model(soup.best, average, packed.wnids, size)
        results = [_score(folder, packed, compute, size) for folder in (*folders, soup)]
        *rows, soup_row = (row for row, _ in results)
        best = max(range(len(folders)), key=lambda i: rows[i].top1)
        gain = paired(results[-1][1], results[best][1])
        name = out or f"mean of {len(folders)} runs' weights"
        soup_row = replace(soup_row, run=name, gain=gain)
        better = (gain.gain or 0) > 0
        _log_gain(gain, folders[best], written=bool(out) and better, requested=bool(out))
        if out and better:
            # its gain is over another run
            runs.put_scores(soup.scores, [replace(soup_row, gain=NOT_COMPARED).to_json()])
            shutil.rmtree(soup.probabilities, ignore_errors=True)  # they name the temporary folder
            with atomic_folder(out) as target:
                shutil.copytree(soup.path, target / soup.stage, dirs_exist_ok=True)
    return [*rows, soup_row]


def _score(
    folder: StageFolder, packed: Packed, compute: Compute, size: int
) -> tuple[ScoreRow, np.ndarray]:
    """A row for the hold-out, and (N,) bool: whether each image is classified right."""
    predictor = Predictor(folder, packed, compute)
    probabilities = predictor.predict("holdout", *predictor.sets(["none"], size))
    plain = probabilities.log_probabilities[0]
    row = replace(predictor.source, split="holdout", views="none", merge="mean", size=size)
    right = plain.argmax(1) == probabilities.required_labels
    return score_row(row, probabilities, plain), right


def _log_gain(gain: Gain, best: StageFolder, written: bool, requested: bool) -> None:
    assert gain.gain is not None and gain.p is not None  # the soup was compared
    better = gain.gain > 0
    console.log(
        f"the mean of the weights is {'better' if better else 'not better'} than "
        f"{best.run}: {gain.gain:+.2%} on the hold-out, p = {gain.p:.2g}"
        f"{', which may be chance' if better and gain.p >= 0.05 else ''}"
        f"{'; nothing was written' if requested and not written else ''}"
    )


def mean_weights(models: Sequence[Classifier]) -> Classifier:
    """Return a network, in eval mode, whose weights are the means of those of `models`.

    The running statistics of its batch norms are means too, so they do not fit the network yet.
    """
    states = [model.state_dict() for model in models]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in states[0].items()
    }
    model = Classifier(type(models[0].backbone)(), **models[0].shape)
    model.load_state_dict(mean)
    return model.eval()


def _with_updated_bn(
    model: Classifier, folder: StageFolder, packed: Packed, compute: Compute, size: int
) -> Classifier:
    """Recompute the running statistics of the head's batch norms on training images.

    Averaged weights need statistics of their own (Izmailov et al. 2018).
    """
    rows = np.random.RandomState(0).permutation(split_of(RunConfig.of(folder), packed).train)
    images = batches(packed.train, rows[:BN_IMAGES], batch_size=64, device=compute.device)
    network = model.to(compute.device)
    with torch.inference_mode():
        features = list(
            map(AutoBatch(network.features), (resize(batch.images, size) for batch in images))
        )
    update_bn(network.head, features)
    return network.cpu().eval()


def _compatible_models(
    folders: Sequence[StageFolder], packed: Packed
) -> tuple[list[Classifier], int]:
    """The networks of `folders` and their size; raises `InputError` if the runs differ."""
    first, *_ = folders
    recipe = first.read_recipe()
    loaded = [load_model(folder.best, packed.wnids, folder.origin) for folder in folders]
    shape, size = loaded[0][0].shape, loaded[0][1]
    for folder, (model, side) in zip(folders, loaded, strict=True):
        for key, what in (("data_digest", "data set"), ("split_digest", "split")):
            if folder.read_recipe()[key] != recipe[key]:
                raise InputError(
                    f"{folder.run}: was trained on a different {what} from {first.run}; use runs "
                    "with the same hold-out"
                )
        if folder.stage != first.stage:
            raise InputError(
                f"{folder.run}: its last finished stage is {folder.stage}, that of {first.run} is "
                f"{first.stage}; name one with --stage"
            )
        if (model.shape, side) != (shape, size):
            raise InputError(
                f"{folder.run}: its network or size differs from that of {first.run}; use runs of "
                "one recipe"
            )
    return [model for model, _ in loaded], size
