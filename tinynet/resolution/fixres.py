"""Study a run at several test sizes: the best size, the best correction, and their cost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tinynet import console, runs
from tinynet.errors import InputError
from tinynet.evaluation.predictor import Predictor
from tinynet.files import atomic_folder, check_writable, refuse_existing, write_json, write_text
from tinynet.models.checkpoint import save_model
from tinynet.plotting import save_figure
from tinynet.records import Json, ScoreRow, to_json
from tinynet.resolution import figures
from tinynet.resolution.activations import FeatureRow
from tinynet.resolution.conclusions import best_size, conclude
from tinynet.resolution.costs import cost_rows, costs, saved_scores
from tinynet.resolution.crops import Policy, draw_shares
from tinynet.resolution.heads import fine_tuned
from tinynet.resolution.resize import METHOD
from tinynet.resolution.study import (
    AS_IS,
    NORMS,
    Study,
    compare_methods,
    sweep,
)
from tinynet.runs import StageFolder
from tinynet.training.config import upgrade
from tinynet.training.observers import Observer

_CROPS = 20_000  # in a histogram


@dataclass(frozen=True)
class SizeRequest:
    """What to study, and where to write it.

    `sizes`: test sizes in pixels; the training size is always included. `fit`: sizes to fine-tune
    the head at; the training size is added as the control. `methods`: ways to resize; the first is
    used everywhere, the others are compared
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
    activations: list[FeatureRow]
    costs: list[ScoreRow]
    conclusions: list[str]

    def to_json(self) -> Json:
        """Return all findings as a JSON object."""
        return {
            "rows": to_json(self.rows),
            "beside": to_json(self.others),
            "methods": to_json(self.methods),
            "activations": [row.to_json() for row in self.activations],
            "costs": to_json(self.costs),
            "conclusions": self.conclusions,
        }


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
    heads = sorted({first.size, *request.fit}) if request.fit else []  # own size: the control
    fitted = fine_tuned(first, heads, method, request.out, observers)
    rows = list(sweep(study, sizes, fitted, study.corrections))
    activations = [row for size in sizes for row in study.activations(size)]
    best = best_size(rows)
    methods = _method_rows(first, request.methods, rows)
    other_rows = [row for other in other_studies for row in sweep(other, sizes, {}, ())]
    saved = [score for predictor in predictors for score in saved_scores(predictor)]
    cost = costs(predictors, sizes, saved)
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
        list(cost_rows([*rows, *other_rows], saved, cost)),
        conclude(rows, activations, policy, best, cost),
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
    return list(compare_methods(predictor, methods, best_size(resized)))


def _check(request: SizeRequest, study: Study, sizes: Sequence[int]) -> None:
    """Raise `InputError` if the run, its heads or its copy cannot be studied as requested."""
    folder = study.predictor.folder
    if folder.stage == "fixres":
        raise InputError(
            f"{folder.path}: is already adapted to a size; choose base or finetune"
            + console.advice(" with --stage")
        )
    method, keep = request.methods[0], request.keep
    if (request.fit or keep) and method != METHOD:
        raise InputError(
            f"{console.option('methods')} {method}: heads are fine-tuned and saved for images "
            f"resized by {METHOD}; name {METHOD} first"
            + console.advice(", or use --no-fit without --keep")
        )
    if keep is None:
        return
    refuse_existing(console.option("keep"), keep)
    if NORMS not in study.corrections:
        raise InputError(
            f"{console.option('keep')} {keep}: {study.predictor.folder.path} has no trained batch "
            f"norms to recompute; leave out {console.option('keep')}"
        )
    if set(sizes) == {study.predictor.size}:
        raise InputError(
            f"{console.option('keep')} {keep}: {study.predictor.size} px is the training size, so "
            f"the batch norms would not change; name another {console.option('size')}"
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
        precision=predictor.compute.precision,
    ).with_score_of(best)
    origin = {"norms_of": str(predictor.folder.path), "command": console.current_command()}
    with atomic_folder(keep) as path:
        folder = StageFolder(path, predictor.folder.stage)
        folder.make()
        write_json(folder.recipe, {**recipe, **origin})
        save_model(folder.best, study.with_bn_of(size), predictor.packed.wnids, size)
        runs.put_scores(folder.scores, [row])
    console.log(f"saved {keep}, with batch norms recomputed at {size} px")


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
