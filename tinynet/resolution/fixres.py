"""The whole story of a run and its test sizes: what to test at, what mends it, what it costs, in
one folder.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tinynet import console, runs
from tinynet.compute import AutoBatch
from tinynet.data.batches import batches, fitting
from tinynet.errors import InputError
from tinynet.evaluation.predictor import Predictor
from tinynet.files import atomic_folder, can_hold, refuse_existing, write_json, write_text
from tinynet.models.checkpoint import save_model
from tinynet.plotting import save_figure
from tinynet.resolution import figures
from tinynet.resolution.crops import Policy, draw_shares
from tinynet.resolution.resize import METHOD
from tinynet.resolution.study import (
    AS_IS,
    CONTROL,
    FITTED,
    NORMS,
    Row,
    Study,
    compare_methods,
    sweep,
)
from tinynet.runs import StageFolder
from tinynet.training.config import upgrade
from tinynet.training.features import frozen_backbone
from tinynet.training.inputs import augment_images
from tinynet.training.observers import Observer
from tinynet.training.recipes import RECIPES, Stage
from tinynet.training.stages import train

_DRAWN = 20_000  # crops drawn for a histogram

# run, side in pixels -> seconds of one forward pass of a picture
Cost = dict[tuple[str, int], float]
# a row that a run was scored by before, and the sides of its views
Scored = Sequence[tuple[Predictor, Row, list[int]]]


@dataclass(frozen=True)
class Found:
    """Rows: of the run, of runs beside it as they are, of ways to enlarge, of features a tap, of
    cost; and in words.
    """

    rows: list[Row]
    beside: list[Row]
    methods: list[Row]
    activations: list[Row]
    costs: list[Row]
    conclusions: list[str]


def investigate(
    predictors: Sequence[Predictor],
    sizes: Sequence[int],
    fit: Sequence[int],
    methods: Sequence[str],
    out: Path,
    keep: Path | None = None,
    observers: Sequence[Observer] = (),
) -> Found:
    """All about the first of `scorers` at `sizes`, the others beside it; its head is trained on at
    the sizes `fit`.

    `methods`: how pictures are enlarged, the first everywhere, the others compared with it at
    the size that the hold-out chooses of those that pictures do not have by themselves. Writes
    JSON, figures and conclusions to `out`. `observers`: told of the training. `keep`: a new
    folder for the run with its batch norms measured at the size where the hold-out likes that
    best. Raises `InputError` for a method that there is not, or another first one where heads
    are trained on or kept, or where there is nothing to keep, before anything is computed.
    """
    first, *others = predictors
    study, *_ = (Study(first, method) for method in methods)
    if (fit or keep) and methods[0] != METHOD:
        raise InputError(
            f"--methods {methods[0]}: heads are trained on at pictures enlarged by {METHOD}, and "
            "kept for them; name that first, or give --no-fit and no --keep"
        )
    sizes = sorted({first.size, *sizes, *fit})
    if keep:
        _can_keep(study, sizes, keep)
    console.log(
        f"{first.folder.path} at {', '.join(map(str, sizes))} px, on {first.compute}; results in "
        f"{out}"
    )
    beside = [Study(predictor, methods[0]) for predictor in others]
    rows = list(
        sweep(study, sizes, _fitted(first, fit, methods[0], out, observers), study.corrections)
    )
    activations = [row for size in sizes for row in study.activations(size)]
    best = _best(rows)
    resized = [row for row in rows if row["size"] != first.packed.side]
    compared = (
        list(compare_methods(first, methods, _best(resized)))
        if len(methods) > 1 and resized
        else []
    )
    shown = [row for one in beside for row in sweep(one, sizes, {}, ())]
    scored = [
        (predictor, row, _sides(row, predictor))
        for predictor in predictors
        for row in _scored(predictor)
    ]
    cost = _cost(predictors, sizes, scored)
    for row in (*rows, *shown):
        row["pictures_per_second"] = 1 / cost[row["run"], row["size"]]
    policy = Policy.of(first.stage, first.packed.side)
    said = _conclusions(rows, activations, policy, best, cost)
    found = Found(
        rows, shown, compared, activations, list(_cost_rows([*rows, *shown], scored, cost)), said
    )
    _write(found, policy, first, out)
    if keep:
        _keep(study, rows, keep)
    return found


def _can_keep(study: Study, sizes: Sequence[int], keep: Path) -> None:
    """Raise `InputError` where there will be nothing to keep, or no place for it."""
    refuse_existing("--keep", keep)
    if NORMS not in study.corrections:
        raise InputError(
            f"--keep {keep}: the head of {study.predictor.folder.path} has no batch norms to "
            "measure"
        )
    if set(sizes) == {study.predictor.size}:
        raise InputError(
            f"--keep {keep}: at {study.predictor.size} px the batch norms are what training "
            "measured; name other --sizes"
        )
    can_hold(keep)


def _keep(study: Study, rows: Sequence[Row], keep: Path) -> None:
    """A run in `keep`, with the batch norms of the size at which they do best on the hold-out."""
    best = max(
        (row for row in rows if (row["split"], row["correction"]) == ("holdout", NORMS)),
        key=lambda row: row["top1"],
    )
    predictor, size = study.predictor, best["size"]
    stored = upgrade(predictor.folder.read_recipe())
    stored["recipe"][predictor.folder.stage]["size"] = size
    score = {key: best[key] for key in ("n", "top1", "top5", "loss", "ece", "low", "high")}
    with atomic_folder(keep) as made:
        folder = StageFolder(made, predictor.folder.stage)
        folder.make()
        write_json(
            folder.recipe,
            {
                **stored,
                "norms_of": str(predictor.folder.path),
                "command": console.current_command(),
            },
        )
        save_model(folder.best, study.with_bn_of(size), predictor.packed.wnids, size)
        runs.put_scores(
            folder.scores,
            [
                {
                    **predictor.named,
                    "run": str(keep),
                    "split": "holdout",
                    "views": "none",
                    "merge": "mean",
                    "size": size,
                    **score,
                    "precision": predictor.compute.precision,
                }
            ],
        )
    console.log(f"with its batch norms measured at {size} px: {keep}")


def _fitted(
    predictor: Predictor,
    sizes: Sequence[int],
    method: str,
    out: Path,
    observers: Sequence[Observer],
) -> dict[int, Study]:
    """The run with its head trained on at each of `sizes`: a run in `out/<size>`, made where it is
    not there yet.
    """
    made = {}
    folders = {size: StageFolder(out / str(size), "fixres") for size in sizes}
    # which may be another run's
    for size, folder in sorted(folders.items(), key=lambda one: not one[1].started):
        chosen = replace(
            RECIPES[predictor.config.recipe.name].fixres,
            size=size,
            feature_dtype=predictor.stage.feature_dtype,
        )
        config = replace(
            predictor.config,
            recipe=replace(predictor.config.recipe, fixres=chosen),
            stages=("fixres",),
            start_run=str(predictor.folder.run.resolve()),
            start_stage=predictor.folder.stage,
            data=predictor.packed.manifest["source"],
            cache=str(predictor.packed.cache),
        )
        train(
            folder.run,
            config,
            predictor.training_device,
            resume=folder.started,
            observers=observers,
        )
        made[size] = Study(Predictor(folder, predictor.packed, predictor.compute), method)
    return made


def _best(rows: Sequence[Row]) -> int:
    """The test size at which the run as it is gets most of the hold-out right."""
    held = [row for row in rows if (row["split"], row["correction"]) == ("holdout", AS_IS)]
    return max(held, key=lambda row: row["top1"])["size"]


def _cost(predictors: Sequence[Predictor], sizes: Sequence[int], scored: Scored) -> Cost:
    """Seconds a picture at every side that the runs were or are scored at."""
    cost = {}
    for predictor in predictors:
        before = {side for one, _, sides in scored if one is predictor for side in sides}
        for side, seconds in seconds_per_image(predictor, sorted({*sizes, *before})).items():
            cost[str(predictor.folder.run), side] = seconds
    return cost


def seconds_per_image(
    predictor: Predictor, sides: Sequence[int], turns: int = 3
) -> dict[int, float]:
    """What one forward pass of a picture costs at each side in pixels: the median of `turns`, the
    sides in turn.
    """
    model, compute = predictor.model, predictor.compute
    rows = predictor.images("holdout")[1]
    work = {}
    for side in sides:
        network = model.for_inference(compute.device, compute.dtype)
        network.backbone = frozen_backbone(model, predictor.packed, side, compute)
        stage = Stage(size=side)
        shown = next(
            batches(
                predictor.packed.train,
                rows,
                batch_size=fitting(side, compute.device),
                device=compute.device,
                augment=lambda images, at, _, stage=stage: augment_images(images, at, stage),
            )
        )
        # The turn that is not counted finds out how many at once the memory holds.
        work[side] = AutoBatch(partial(_called, network)), shown.images
    taken: dict[int, list[float]] = {side: [] for side in sides}
    with torch.inference_mode():
        for turn in range(turns + 1):
            for side, (calls, images) in work.items():
                started = time.perf_counter()
                calls(images).tolist()  # a list waits for the device
                if turn:  # the first one warms up
                    taken[side].append((time.perf_counter() - started) / len(images))
    return {side: statistics.median(times) for side, times in taken.items()}


def _called(network: nn.Module, images: Tensor) -> Tensor:
    return network(images).argmax(1)


def _scored(predictor: Predictor) -> list[Row]:
    """What the run was scored at before, over views, in the precision of now."""
    return [
        row
        for row in predictor.folder.read_scores()
        if row.get("precision") == predictor.compute.precision
        and row["merge"] == "mean"
        and "temperature" not in row
    ]


def _sides(row: Row, predictor: Predictor) -> list[int]:
    """The side in pixels of every view of the set that a row was scored over."""
    probe = torch.zeros(1, 3, predictor.packed.side, predictor.packed.side)
    (chosen,) = predictor.sets([row["views"]], row["size"])
    return [min(seen.shape[-2:]) for seen in chosen(probe).values()]


def _cost_rows(rows: Sequence[Row], scored: Scored, cost: Cost) -> Iterator[Row]:
    """Accuracy and seconds a picture: of every size and correction, and of every set of views that
    a run was scored over. What a correction adds to a forward pass is not to be seen beside it;
    controls are left out.
    """
    for row in rows:
        if row["correction"] != CONTROL and (row["correction"], row["size"]) != (
            FITTED,
            row["trained"],
        ):
            yield {
                **_named(row),
                "views": "none",
                "correction": row["correction"],
                "seconds": cost[row["run"], row["size"]],
            }
    for predictor, row, sides in scored:
        if row["views"] != "none":
            run = str(predictor.folder.run)
            yield {
                **_named(row),
                "run": run,
                "views": row["views"],
                "correction": AS_IS,
                "seconds": sum(cost[run, side] for side in sides),
            }


def _named(row: Row) -> Row:
    return {key: row[key] for key in ("run", "split", "size", "n", "top1", "low", "high")}


def _conclusions(
    rows: Sequence[Row], activations: Sequence[Row], policy: Policy, best: int, cost: Cost
) -> list[str]:
    """Three plain sentences: the size to test at, what the corrections are worth, what the features
    say.
    """
    own, run = policy.train, rows[0]["run"]
    found = {(row["split"], row["size"], row["correction"]): row for row in rows}
    sizes = ", ".join(str(size) for size in dict.fromkeys(row["size"] for row in rows))
    chosen = found["val", best, AS_IS]
    first = f"Of {sizes} px the hold-out chooses {best} px: {_share(chosen)} of val"
    if best != own:
        first += (
            f", {_gain(chosen, '_over_own')} over the training size of {own} px, at "
            f"{cost[run, best] / cost[run, own]:.1f} times the cost"
        )

    tried = [
        row
        for row in rows
        if row["split"] == "holdout"
        and row["correction"] not in (AS_IS, CONTROL)
        and row["size"] != own
    ]  # at its own size more training is the control
    mended, second = None, "No correction was tried"
    if tried:
        mended = max(tried, key=lambda row: row["top1"])
        seen = found["val", mended["size"], mended["correction"]]
        second = (
            f"Of corrections it chooses {mended['correction']!r} at {mended['size']} px: "
            f"{_share(seen)} of val, {_gain(seen)} over the run as it is at that size, "
            f"{_gain(seen, '_over_own')} over its own"
        )
        if seen["gain_over_control"] is not None:
            second += f", {_gain(seen, '_over_control')} over as much more training at its own"

    apparent = policy.resize * policy.cure
    third = f"Training shows objects as large as whole pictures of {apparent:.0f} px do"
    for size in dict.fromkeys((own, best, *([mended["size"]] if mended else []))):
        zeros = _mean_over_features(activations, size, "zeros")
        third += f"; at {size} px {zeros:.1%} of the features are exactly zero"
        if size != own:
            distance = _mean_over_features(activations, size, "ks")
            third += f", {distance:.3f} away (Kolmogorov-Smirnov, mean over features)"
    return [f"{sentence}." for sentence in (first, second, third)]


def _share(row: Row) -> str:
    return f"{row['top1']:.2%} ({row['low']:.2%} .. {row['high']:.2%})"


def _gain(row: Row, over: str = "") -> str:
    p = row["p" + over]
    return f"{row['gain' + over]:+.2%} ({f'p = {p:.2g}' if p else 'p < 1e-300'})"


def _mean_over_features(activations: Sequence[Row], size: int, key: str) -> float:
    """The mean over taps, each as often as it has numbers."""
    mine = [row for row in activations if row["size"] == size]
    return sum(row[key] * row["numbers"] for row in mine) / sum(row["numbers"] for row in mine)


def _write(found: Found, policy: Policy, predictor: Predictor, out: Path) -> None:
    """Everything into `out`: numbers, words and pictures."""
    name = predictor.folder.run.name
    about = {key: predictor.folder.read_recipe()[key] for key in ("data_digest", "split_digest")}
    write_json(
        out / "sizes.json",
        {
            "command": console.current_command(),
            "device": predictor.compute.facts(),
            **about,
            **asdict(found),
        },
    )
    write_text(out / "conclusions.txt", "\n".join(found.conclusions) + "\n")
    drawn = draw_shares(policy, _DRAWN, predictor.packed.side)
    as_is = [row for row in (*found.rows, *found.beside) if row["correction"] == AS_IS]
    drawings = {
        "accuracy": figures.accuracy_against_size(
            found.rows, f"{name}: accuracy against test size"
        ),
        "activations": figures.cumulative_curves(
            found.activations, policy.train, f"{name}: pooled features"
        ),
        "cost": figures.accuracy_against_seconds(found.costs, "Accuracy against cost"),
        "seen": figures.shares_seen([("training and testing", drawn, policy.seen_in_test)], name),
    }
    if found.beside:
        drawings["grid"] = figures.heat_map(as_is, "Training against test size")
    for title, figure in drawings.items():
        save_figure(figure, out / f"{title}.png")
