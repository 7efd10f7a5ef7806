"""Average the weights of several runs and keep the average if it is better than each of them.

Model soups, Wortsman et al. 2022.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tinynet import console, runs
from tinynet.compute import Compute
from tinynet.data.packed import Packed
from tinynet.errors import InputError
from tinynet.evaluation.evaluate import score_row
from tinynet.evaluation.predictor import Predictor
from tinynet.files import (
    atomic_folder,
    check_writable,
    refuse_existing,
    temporary_folder,
    write_json,
)
from tinynet.models.checkpoint import load_model, save_model
from tinynet.models.classifier import Classifier, is_norm
from tinynet.records import MISSING, Gain, Json, ScoreRow
from tinynet.runs import StageFolder
from tinynet.score.compare import mcnemar
from tinynet.training.averages import mean_weights, with_updated_norms
from tinynet.training.config import RunConfig

AS_IS, BATCH_NORM = "as is", "batch norm"  # corrections, named as in the study of test sizes
_HOW = {AS_IS: "as it is", BATCH_NORM: "with recomputed batch norms"}


@dataclass(frozen=True)
class _Scored:
    """A row for the hold-out, and (N,) bool: whether each image is classified right."""

    row: ScoreRow
    right: np.ndarray


@dataclass(frozen=True)
class _Setting:
    """What all networks of a soup share: data, device, and the size of their images in pixels.

    `first`: the first run, whose hold-out is that of all.
    """

    first: StageFolder
    packed: Packed
    compute: Compute
    size: int

    def write(self, model: Classifier, run: Path, origin: Json) -> StageFolder:
        """Write a network as a run, with recomputed batch norms."""
        folder = StageFolder(run, self.first.stage)
        folder.make()
        write_json(folder.recipe, self.first.read_recipe() | origin)
        config = RunConfig.of(self.first)
        model = with_updated_norms(
            model, config, self.first.stage, self.packed, self.size, self.compute
        )
        save_model(folder.best, model, self.packed.wnids, self.size)
        return folder

    def score(self, folder: StageFolder, run: str, correction: str) -> _Scored:
        """Score a network on the hold-out; `run` and `correction` are for its row."""
        predictor = Predictor(folder, self.packed, self.compute)
        probabilities = predictor.predict("holdout", *predictor.sets(["none"], self.size))
        plain = probabilities.log_probabilities[0]
        row = replace(
            predictor.source,
            run=run,
            split="holdout",
            views="none",
            merge="mean",
            size=self.size,
            correction=correction,
        )
        right = plain.argmax(1) == probabilities.required_labels
        classes = self.packed.titles
        return _Scored(score_row(row, probabilities, plain, classes=classes), right)


def make_soup(
    folders: Sequence[StageFolder], packed: Packed, compute: Compute, out: str | None
) -> list[ScoreRow]:
    """Score each run, each run with recomputed batch norms, and their soup on the hold-out.

    The batch norms of a soup are recomputed, which changes the score of a single run too. So the
    soup's `gain` is over the best run as it is, and its gain over `control` is over the best run
    with batch norms recomputed in the same way.

    `out`: the run to write the soup to; it is written only if both gains are positive. Raises
    `InputError` if the runs differ in network, size, data or hold-out, or have the same weights.
    """
    if out:
        refuse_existing(console.option("out"), out)
        check_writable(out)
    models, size = _compatible_models(folders, packed)
    setting, average = _Setting(folders[0], packed, compute, size), mean_weights(models)
    origin = {
        "soup": [str(folder.path) for folder in folders],
        "command": console.current_command(),
    }
    with temporary_folder(Path(tempfile.gettempdir()) / "tinynet-soup") as temporary:
        as_is = [setting.score(folder, str(folder.run), AS_IS) for folder in folders]
        controls = []
        for number, model in enumerate(models if _has_batch_norms(average) else ()):
            control = setting.write(model, temporary / f"control-{number}", origin)
            controls.append(setting.score(control, str(folders[number].run), BATCH_NORM))
            shutil.rmtree(control.run)  # as large as a network
        soup = setting.write(average, temporary / "soup", origin)
        name = out or f"mean of {len(folders)} runs' weights"
        result = setting.score(soup, name, BATCH_NORM if controls else AS_IS)
        references = [max(runs, key=lambda one: one.row.top1) for runs in (as_is, controls) if runs]
        gains = [mcnemar(result.right, reference.right) for reference in references]
        better = all((gain.gain or 0) > 0 for gain in gains)
        _log_gains(gains, [reference.row for reference in references], better, out)
        if out and better:
            _save(soup, replace(result.row, correction=MISSING), Path(out))
    row = replace(result.row, gain=gains[0], over=dict(zip(["control"], gains[1:], strict=False)))
    return [*(scored.row for scored in (*as_is, *controls)), row]


def _save(soup: StageFolder, row: ScoreRow, out: Path) -> None:
    """Move the soup to its place; its row has no gain, because that is over other runs."""
    runs.put_scores(soup.scores, [row])
    shutil.rmtree(soup.probabilities, ignore_errors=True)  # they name the temporary folder
    with atomic_folder(out) as target:
        shutil.copytree(soup.path, target / soup.stage, dirs_exist_ok=True)


def _log_gains(
    gains: Sequence[Gain], references: Sequence[ScoreRow], better: bool, out: str | None
) -> None:
    texts = [
        f"{gain.gain or 0:+.2%} over {row.run} {_HOW[row.correction]} (p = {gain.p:.2g})"
        for gain, row in zip(gains, references, strict=True)
    ]
    chance = better and any((gain.p or 0) >= 0.05 for gain in gains)
    of_norms = not better and (gains[0].gain or 0) > 0
    console.log(
        f"the mean of the weights is {'better' if better else 'not better'} than the best run: "
        f"{', '.join(texts)}, on the hold-out"
        f"{', which may be chance' if chance else ''}"
        f"{'; the gain comes from the batch norms' if of_norms else ''}"
        f"{'; nothing was written' if out and not better else ''}"
    )


def _has_batch_norms(model: Classifier) -> bool:
    return any(map(is_norm, model.modules()))


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
                f"{first.stage}; name one" + console.advice(" with --stage")
            )
        if (model.shape, side) != (shape, size):
            raise InputError(
                f"{folder.run}: its network or size differs from that of {first.run}; use runs of "
                "one recipe"
            )
    models = [model for model, _ in loaded]
    for number, model in enumerate(models):
        for other, earlier in zip(folders, models[:number], strict=False):
            if _same_weights(model, earlier):
                raise InputError(
                    f"{folders[number].run}: has the same weights as {other.run}; use different "
                    "runs, for instance of other seeds"
                )
    return models, size


def _same_weights(model: Classifier, other: Classifier) -> bool:
    states = model.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())
