"""Study a run at several test sizes: the best size, the best correction, and their cost."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tinynet import console, runs
from tinynet.compute import AutoBatch
from tinynet.data.batches import Batch, batches, default_batch_size
from tinynet.errors import InputError
from tinynet.evaluation.predictor import Predictor
from tinynet.files import atomic_folder, check_writable, refuse_existing, write_json, write_text
from tinynet.models.checkpoint import save_model
from tinynet.models.vgg import Backbone
from tinynet.plotting import save_figure
from tinynet.records import MISSING, Gain, Json, Score, ScoreRow, to_json
from tinynet.resolution import figures
from tinynet.resolution.crops import Policy, draw_shares
from tinynet.resolution.resize import METHOD
from tinynet.resolution.study import (
    AS_IS,
    CONTROL,
    FITTED,
    NORMS,
    Study,
    compare_methods,
    sweep,
)
from tinynet.runs import StageFolder
from tinynet.training.config import upgrade
from tinynet.training.extraction import frozen_backbone
from tinynet.training.inputs import augment_images
from tinynet.training.observers import Observer
from tinynet.training.recipes import RECIPES, Stage
from tinynet.training.stages import train

_CROPS = 20_000  # in a histogram

# (run, side in pixels) -> seconds of one forward pass of an image
Cost = dict[tuple[str, int], float]


@dataclass(frozen=True)
class SizeRequest:
    """What to study, and where to write it.

    `sizes`: test sizes in pixels; the training size is always included. `fit`: sizes to fine-tune
    the head at. `methods`: ways to resize; the first is used everywhere, the others are compared
    with it at the best size. `out`: the folder for JSON, figures and conclusions. `keep`: a new
    folder for the run with its batch norms recomputed at the best size for them.
    """

    sizes: Sequence[int]
    out: Path
    fit: Sequence[int] = ()
    methods: Sequence[str] = (METHOD,)
    keep: Path | None = None


@dataclass(frozen=True)
class Findings:
    """The results of a run at several test sizes.

    `rows`: of the run. `others`: of other runs, uncorrected. `methods`: of ways to resize.
    `activations`: of features. `costs`: of time. `conclusions`: sentences.
    """

    rows: list[ScoreRow]
    others: list[ScoreRow]
    methods: list[ScoreRow]
    activations: list[Json]
    costs: list[ScoreRow]
    conclusions: list[str]

    def to_json(self) -> Json:
        """Return all findings as a JSON object."""
        return {
            "rows": to_json(self.rows),
            "beside": to_json(self.others),
            "methods": to_json(self.methods),
            "activations": self.activations,
            "costs": to_json(self.costs),
            "conclusions": self.conclusions,
        }


@dataclass(frozen=True)
class _SavedScore:
    """A score that a run has saved, and the sides in pixels of the views it was scored over."""

    predictor: Predictor
    row: ScoreRow
    sides: list[int]


def investigate(
    predictors: Sequence[Predictor], request: SizeRequest, observers: Sequence[Observer] = ()
) -> Findings:
    """Study the first of `predictors` at several test sizes, compared with the others, uncorrected.

    The best size is the one with the best hold-out accuracy. `observers`: notified of the training
    of heads. Raises `InputError`, before anything is computed, for an unknown method, for another
    first method than the default together with `fit` or `keep`, and if there is nothing to keep.
    """
    first, *others = predictors
    method = request.methods[0]
    study, *_ = (Study(first, name) for name in request.methods)
    sizes = sorted({first.size, *request.sizes, *request.fit})
    _check(request, study, sizes)
    console.log(
        f"{first.folder.path} at {', '.join(map(str, sizes))} px, on {first.compute}; results in "
        f"{request.out}"
    )
    other_studies = [Study(predictor, method) for predictor in others]
    fitted = _fitted(first, request.fit, method, request.out, observers)
    rows = list(sweep(study, sizes, fitted, study.corrections))
    activations = [row for size in sizes for row in study.activations(size)]
    best = _best(rows)
    methods = _method_rows(first, request.methods, rows)
    other_rows = [row for other in other_studies for row in sweep(other, sizes, {}, ())]
    saved = [score for predictor in predictors for score in _saved_scores(predictor)]
    cost = _cost(predictors, sizes, saved)
    rows, other_rows = (
        [replace(row, images_per_second=1 / cost[row.run, row.size]) for row in group]
        for group in (rows, other_rows)
    )
    policy = Policy.of(first.stage, first.packed.side)
    findings = Findings(
        rows,
        other_rows,
        methods,
        activations,
        list(_cost_rows([*rows, *other_rows], saved, cost)),
        _conclusions(rows, activations, policy, best, cost),
    )
    _write(findings, policy, first, request.out)
    if request.keep:
        _save_run(study, rows, request.keep)
    return findings


def _method_rows(
    predictor: Predictor, methods: Sequence[str], rows: Sequence[ScoreRow]
) -> list[ScoreRow]:
    """Compare ways to resize at the best size that differs from the size of the images."""
    resized = [row for row in rows if row.size != predictor.packed.side]
    if len(methods) < 2 or not resized:
        return []
    return list(compare_methods(predictor, methods, _best(resized)))


def _check(request: SizeRequest, study: Study, sizes: Sequence[int]) -> None:
    """Raise `InputError` if heads cannot be trained, or the run cannot be saved, as requested."""
    method, keep = request.methods[0], request.keep
    if (request.fit or keep) and method != METHOD:
        raise InputError(
            f"--methods {method}: heads are fine-tuned and saved for images resized by {METHOD}; "
            f"name {METHOD} first, or use --no-fit without --keep"
        )
    if keep is None:
        return
    refuse_existing("--keep", keep)
    if NORMS not in study.corrections:
        raise InputError(
            f"--keep {keep}: the head of {study.predictor.folder.path} has no batch norms to "
            "recompute; leave out --keep"
        )
    if set(sizes) == {study.predictor.size}:
        raise InputError(
            f"--keep {keep}: {study.predictor.size} px is the training size, so the batch norms "
            "would not change; name another --size"
        )
    check_writable(keep)


def _save_run(study: Study, rows: Sequence[ScoreRow], keep: Path) -> None:
    """Save the run with the batch norms recomputed at the size with the best hold-out accuracy."""
    best = max(
        (row for row in rows if (row.split, row.correction) == ("holdout", NORMS)),
        key=lambda row: row.top1,
    )
    predictor, size = study.predictor, best.size
    recipe = upgrade(predictor.folder.read_recipe())
    recipe["recipe"][predictor.folder.stage]["size"] = size
    row = ScoreRow(
        run=str(keep),
        stage=predictor.folder.stage,
        split="holdout",
        views="none",
        merge="mean",
        size=size,
        **{field.name: getattr(best, field.name) for field in fields(Score)},
        precision=predictor.compute.precision,
    )
    origin = {"norms_of": str(predictor.folder.path), "command": console.current_command()}
    with atomic_folder(keep) as path:
        folder = StageFolder(path, predictor.folder.stage)
        folder.make()
        write_json(folder.recipe, {**recipe, **origin})
        save_model(folder.best, study.with_bn_of(size), predictor.packed.wnids, size)
        runs.put_scores(folder.scores, [row.to_json()])
    console.log(f"saved {keep}, with batch norms recomputed at {size} px")


def _fitted(
    predictor: Predictor,
    sizes: Sequence[int],
    method: str,
    out: Path,
    observers: Sequence[Observer],
) -> dict[int, Study]:
    """Return the run with its head fine-tuned, for each size, from the run `out/<size>`.

    A run that does not exist is trained; one that was stopped is continued.
    """
    studies = {}
    folders = {size: StageFolder(out / str(size), "fixres") for size in sizes}
    # Existing folders first: they may be of another run, which raises.
    for size, folder in sorted(folders.items(), key=lambda item: not item[1].started):
        stage = replace(
            RECIPES[predictor.config.recipe.name].fixres,
            size=size,
            feature_dtype=predictor.stage.feature_dtype,
        )
        config = replace(
            predictor.config,
            recipe=replace(predictor.config.recipe, fixres=stage),
            stages=("fixres",),
            start_run=str(predictor.folder.run.resolve()),
            start_stage=predictor.folder.stage,
            data=predictor.packed.manifest["source"],
            cache=str(predictor.packed.cache),
        )
        compute = predictor.training_compute
        train(folder.run, config, compute, resume=folder.started, observers=observers)
        studies[size] = Study(Predictor(folder, predictor.packed, predictor.compute), method)
    return studies


def _best(rows: Sequence[ScoreRow]) -> int:
    """The test size at which the uncorrected run has the highest hold-out accuracy."""
    holdout = [row for row in rows if (row.split, row.correction) == ("holdout", AS_IS)]
    return max(holdout, key=lambda row: row.top1).size


def _cost(
    predictors: Sequence[Predictor], sizes: Sequence[int], saved: Sequence[_SavedScore]
) -> Cost:
    """Seconds per image at every side that the runs are scored at, in this study or earlier."""
    cost = {}
    for predictor in predictors:
        sides = {side for score in saved if score.predictor is predictor for side in score.sides}
        for side, seconds in seconds_per_image(predictor, sorted({*sizes, *sides})).items():
            cost[str(predictor.folder.run), side] = seconds
    return cost


def seconds_per_image(
    predictor: Predictor, sides: Sequence[int], turns: int = 3
) -> dict[int, float]:
    """Time one forward pass of an image at each side in pixels: the median of `turns`.

    The sides are timed in turn, so that all are affected by other load alike.
    """
    work = {side: _work(predictor, side) for side in sides}
    times: dict[int, list[float]] = {side: [] for side in sides}
    with torch.inference_mode():
        for turn in range(turns + 1):
            for side, (classify, images) in work.items():
                start = time.perf_counter()
                classify(images).tolist()  # a list waits for the device
                if turn:  # the first turn warms up, and finds the batch size that fits in memory
                    times[side].append((time.perf_counter() - start) / len(images))
    return {side: statistics.median(values) for side, values in times.items()}


def _work(predictor: Predictor, side: int) -> tuple[AutoBatch, Tensor]:
    """The network at a side, and a batch of images for it."""
    model, compute = predictor.model, predictor.compute
    network = model.for_inference(compute.device, compute.dtype)
    backbone = frozen_backbone(model, predictor.packed, side, compute)
    network.backbone = cast(Backbone, backbone)  # an Int8Backbone is called like a Backbone
    stage = Stage(size=side)

    def augment(images: Tensor, rows: Tensor, _: int) -> Tensor:
        return augment_images(images, rows, stage)

    batch: Batch = next(
        batches(
            predictor.packed.train,
            predictor.images("holdout")[1],
            batch_size=default_batch_size(side, compute.device),
            device=compute.device,
            augment=augment,
        )
    )
    return AutoBatch(partial(_classes, network)), batch.images


def _classes(network: nn.Module, images: Tensor) -> Tensor:
    return network(images).argmax(1)


def _saved_scores(predictor: Predictor) -> list[_SavedScore]:
    """The saved scores of the run over any views, in the present precision."""
    rows = map(ScoreRow.from_json, predictor.folder.read_scores())
    return [
        _SavedScore(predictor, row, _sides(row, predictor))
        for row in rows
        if row.precision == predictor.compute.precision
        and row.merge == "mean"
        and row.temperature is MISSING
    ]


def _sides(row: ScoreRow, predictor: Predictor) -> list[int]:
    """The side in pixels of every view that a row was scored over."""
    probe = torch.zeros(1, 3, predictor.packed.side, predictor.packed.side)
    assert row.views is not None
    (views,) = predictor.sets([row.views], row.size)
    return [min(image.shape[-2:]) for image in views(probe).values()]


def _cost_rows(
    rows: Sequence[ScoreRow], saved: Sequence[_SavedScore], cost: Cost
) -> Iterator[ScoreRow]:
    """Yield accuracy and seconds per image of every size, correction and set of views.

    The time that a correction adds to a forward pass is too short to measure. Controls are left
    out.
    """
    for row in rows:
        at_own_size = (row.correction, row.size) == (FITTED, row.trained)
        if row.correction != CONTROL and not at_own_size:
            seconds = cost[row.run, row.size]
            yield _cost_row(row, views="none", correction=row.correction, seconds=seconds)
    for score in saved:
        if score.row.views != "none":
            row = replace(score.row, run=str(score.predictor.folder.run))
            seconds = sum(cost[row.run, side] for side in score.sides)
            yield _cost_row(row, views=row.views, correction=AS_IS, seconds=seconds)


def _cost_row(row: ScoreRow, views: str | None, correction: str, seconds: float) -> ScoreRow:
    return ScoreRow(
        run=row.run,
        split=row.split,
        size=row.size,
        n=row.n,
        top1=row.top1,
        low=row.low,
        high=row.high,
        views=views,
        correction=correction,
        seconds=seconds,
    )


def _conclusions(
    rows: Sequence[ScoreRow], activations: Sequence[Json], policy: Policy, best: int, cost: Cost
) -> list[str]:
    """Three sentences: the best test size, the best correction, and how features differ."""
    own, run = policy.train, rows[0].run
    by_key = {(row.split, row.size, row.correction): row for row in rows}
    corrected = [
        row
        for row in rows
        if row.split == "holdout" and row.correction not in (AS_IS, CONTROL) and row.size != own
    ]
    correction = max(corrected, key=lambda row: row.top1) if corrected else None
    sizes = ", ".join(str(size) for size in dict.fromkeys(row.size for row in rows))
    first = f"The best hold-out accuracy of {sizes} px is at {best} px: "
    first += f"val top-1 {_interval(by_key['val', best, AS_IS])}"
    if best != own:
        gain = _gain(by_key["val", best, AS_IS].over["own"])
        ratio = cost[run, best] / cost[run, own]
        first += f", {gain} over the training size of {own} px, at {ratio:.1f} times the cost"
    features = dict.fromkeys((own, best, *([correction.size] if correction else [])))
    return [
        f"{first}.",
        f"{_correction_sentence(correction, by_key)}.",
        f"{_feature_sentence(activations, policy, list(features))}.",
    ]


def _correction_sentence(
    correction: ScoreRow | None, by_key: dict[tuple[str | None, int, str], ScoreRow]
) -> str:
    if correction is None:
        return "No correction was tried"
    val = by_key["val", correction.size, correction.correction]
    sentence = (
        f"The best correction on the hold-out is {val.correction!r} at {val.size} px: val top-1 "
        f"{_interval(val)}, {_gain(val.gain)} over the uncorrected run at that size, "
        f"{_gain(val.over['own'])} over the run at its training size"
    )
    if val.over["control"].gain is not None:
        sentence += f", {_gain(val.over['control'])} over equal training at the training size"
    return sentence


def _feature_sentence(activations: Sequence[Json], policy: Policy, sizes: Sequence[int]) -> str:
    """The share of zeros and the distance of features at each size, the training size first."""
    apparent = policy.resize * policy.cure
    sentence = f"Objects in training are as large as in whole images of {apparent:.0f} px"
    for size in sizes:
        zeros = _mean_over_features(activations, size, "zeros")
        sentence += f"; at {size} px {zeros:.1%} of the features are exactly zero"
        if size != policy.train:
            distance = _mean_over_features(activations, size, "ks")
            sentence += f" (Kolmogorov-Smirnov distance to the training size {distance:.3f})"
    return sentence


def _interval(row: ScoreRow) -> str:
    return f"{row.top1:.2%} ({row.low:.2%} .. {row.high:.2%})"


def _gain(gain: Gain) -> str:
    return f"{gain.gain:+.2%} ({f'p = {gain.p:.2g}' if gain.p else 'p < 1e-300'})"


def _mean_over_features(activations: Sequence[Json], size: int, key: str) -> float:
    """The mean of a statistic, each feature weighted by its count of values."""
    rows = [row for row in activations if row["size"] == size]
    return sum(row[key] * row["numbers"] for row in rows) / sum(row["numbers"] for row in rows)


def _write(findings: Findings, policy: Policy, predictor: Predictor, out: Path) -> None:
    """Write JSON, conclusions and figures to `out`."""
    name = predictor.folder.run.name
    recipe = predictor.folder.read_recipe()
    about = {
        "command": console.current_command(),
        "device": predictor.compute.facts(),
        "data_digest": recipe["data_digest"],
        "split_digest": recipe["split_digest"],
    }
    write_json(out / "sizes.json", {**about, **findings.to_json()})
    write_text(out / "conclusions.txt", "\n".join(findings.conclusions) + "\n")
    shares = draw_shares(policy, _CROPS, predictor.packed.side)
    as_is = [row for row in (*findings.rows, *findings.others) if row.correction == AS_IS]
    images = {
        "accuracy": figures.accuracy_against_size(
            findings.rows, f"{name}: accuracy against test size"
        ),
        "activations": figures.cumulative_curves(
            findings.activations, policy.train, f"{name}: pooled features"
        ),
        "cost": figures.accuracy_against_seconds(findings.costs, "Accuracy against cost"),
        "seen": figures.crop_shares([("training and testing", shares, policy.test_share)], name),
    }
    if findings.others:
        images["grid"] = figures.heat_map(as_is, "Training against test size")
    for title, figure in images.items():
        save_figure(figure, out / f"{title}.png")
