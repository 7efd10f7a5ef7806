"""Collect the contents of a run's page from its folder and its data.

Nothing is computed that needs a trained network, except heat maps. The page says what is missing,
and which command creates it.
"""

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tinynet import runs
from tinynet.console import advice, option, shell_command
from tinynet.data.packed import Packed
from tinynet.errors import InputError
from tinynet.records import NOT_COMPARED, EpochRow, Score, ScoreRow, short_name
from tinynet.report.figures import reliability_diagram, training_curves
from tinynet.report.gallery import add_images
from tinynet.report.label_checks import add_label_checks
from tinynet.report.page import (
    ClassDifference,
    ClassRow,
    Pair,
    RunReport,
    write_comparison,
    write_page,
)
from tinynet.runs import StageFolder
from tinynet.score import merges
from tinynet.score.calibration import at_temperature, fit_temperature
from tinynet.score.compare import mcnemar
from tinynet.score.confusions import (
    by_class,
    confused_pairs,
    confusion,
    reliability,
    similar_order,
)
from tinynet.score.metrics import score
from tinynet.score.probabilities import Probabilities, same_images
from tinynet.score.views import PLAIN
from tinynet.training.averages import training_folders
from tinynet.training.config import RunConfig, open_data
from tinynet.values import counted

_PAIRS, _DIFFERENCES = 12, 40
_METADATA = {"weights", "precision", "split"}  # that saved probabilities must have
_PLAIN, _FLIP = "plain", "+ mirror"  # names of curves in the reliability diagram
_SPLITS = {"val": "val", "holdout": "hold-out"}  # in sentences

_Saved = dict[tuple[str, str], Probabilities]  # by split and view


def write_reports(
    folders: Sequence[Path], data: str | None, cache: str | None, out: Path | None
) -> list[Path]:
    """Write a page for each run, and one that compares several; return their paths.

    `out`: the folder for the pages; for one run, also a file that ends in .html. By default each
    page is report.html in its run, and the comparison, which is the last path, is in the first run.
    Raises `InputError` for a folder that is not a run, for two runs with one name, and for several
    runs with one file.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names) or "comparison" in names:
        raise InputError(
            f"runs {', '.join(names)}: pages are named after their runs, so two runs cannot have "
            "the same name, and none can be called comparison; rename a run"
        )
    pages = _places(folders, names, out)
    results = None if out in pages else out
    reports = [gather(folder, data, cache, results) for folder in folders]
    for run, page in zip(reports, pages, strict=True):
        write_page(run, page)
    if len(reports) > 1:
        pages.append((out or folders[0]) / "comparison.html")
        links = [os.path.relpath(page, pages[-1].parent) for page in pages[:-1]]
        rows = compare_runs(reports)
        write_comparison(reports, links, rows, class_differences(reports, rows), pages[-1])
    return pages


def _places(folders: Sequence[Path], names: Sequence[str], out: Path | None) -> list[Path]:
    """The file of each page; `names`: of the runs."""
    if out is None:
        return [folder / "report.html" for folder in folders]
    if out.suffix.lower() in (".html", ".htm") and not out.is_dir():
        if len(folders) > 1:
            raise InputError(
                f"{option('out')} {out}: is one file, but {len(folders)} runs have a page each; "
                "name a folder"
            )
        return [out]
    if out.exists() and not out.is_dir():
        raise InputError(
            f"{option('out')} {out}: is a file; name a folder, or a file that ends in .html"
        )
    return [out / f"{name}.html" for name in names]


def gather(
    run: Path, data: str | None, cache: str | None, results: Path | None = None
) -> RunReport:
    """Collect everything about a run and its last finished stage.

    `results`: another folder that evaluation has saved scores and probabilities in. Raises
    `InputError` if the folder is not a run.
    """
    started = [folder.with_results(results) for folder in runs.started_stages(run)]
    if not started:
        raise InputError(f"{run}: {runs.NOT_A_RUN}; name the folder of a run")
    report = RunReport(run.resolve().name)
    for folder in started:
        _add_training(report, folder)
    finished = [folder for folder in started if folder.finished]
    last = (finished or started)[-1]
    config = RunConfig.of(last)
    report.facts = run_facts(last, config)
    if unfinished := [folder.stage for folder in started if not folder.finished]:
        report.missing.append(
            f"Not finished: {', '.join(unfinished)}; continue with: "
            + shell_command("tinynet.train", "--resume", run)
        )
    if finished:
        packed = _open_data(report, last, config, data, cache)
        saved = _saved_probabilities(last, config)
        report.split = next((split for split in _SPLITS if (split, PLAIN) in saved), "")
        if report.split:
            plain = report.plain = saved[report.split, PLAIN]
            _add_mistakes(report, plain, packed)
            _add_calibration(report, saved)
            scored = {split: saved[split, PLAIN] for split in _SPLITS if (split, PLAIN) in saved}
            add_label_checks(report, scored, packed)
            if packed is not None:
                add_images(report, plain, packed, last)
        else:
            out = ("--out", results) if results else ()
            command = shell_command("tinynet.evaluate", "--run", run, "--tta", "flip", *out)
            report.missing.append(f"There are no saved probabilities; run: {command}")
    report.answer = _answer(
        report, f"{config.recipe.network.arch}, stage {last.stage} of {run}", last.stage
    )
    return report


def _answer(report: RunReport, network: str, stage: str) -> str:
    """One sentence: the network and its accuracy, and what it is compared with."""
    rows = {row.views: row for row in report.calibration}
    if _PLAIN in rows:
        row = rows[_PLAIN]
        answer = f"{network}: {_SPLITS[report.split]} top-1 {_interval(row)} with one view"
        if _FLIP in rows:
            answer += f", {rows[_FLIP].top1:.1%} with horizontal flip"
        return f"{answer}."
    epochs = report.epochs.get(stage)
    if not epochs:  # the average of several trainings has none of its own
        for row in report.scores:
            if (row.stage, row.split, row.views) == (stage, "holdout", "none"):
                return f"{network}: hold-out top-1 {_interval(row)} with one view."
        return f"{network}: it is not finished, so there is no accuracy yet."
    best = max(epochs, key=lambda row: row.holdout.top1)
    return (
        f"{network}: hold-out top-1 {_interval(best.holdout)} with one view after epoch "
        f"{best.epoch + 1}, the best of {len(epochs)}."
    )


def _interval(row: Score | ScoreRow) -> str:
    return f"{row.top1:.1%} ({row.low * 100:.1f} .. {row.high * 100:.1f})"


def _open_data(
    report: RunReport, folder: StageFolder, config: RunConfig, data: str | None, cache: str | None
) -> Packed | None:
    """The data of the run; None if it is missing, which the report says."""
    try:
        packed = open_data(data, cache, config)
        if packed.contents != folder.read_recipe()["data_digest"]:
            raise InputError(
                f"{packed.manifest['source']}: not the data of this run; name its data"
                + advice(" with --data")
            )
        return packed
    except InputError as error:
        report.missing.append(f"No images: {error}")
        return None


def _add_training(report: RunReport, folder: StageFolder) -> None:
    """Add the learning curves, epochs and scores of a stage."""
    rows = folder.read_log()
    epochs = [row for row in rows if isinstance(row, EpochRow)]
    if epochs:
        best = max(epochs, key=lambda row: row.holdout.top1)
        caption = (
            f"Loss, hold-out accuracy and learning rate of {folder.stage}: "
            f"{counted(len(epochs), 'epoch')}, the best hold-out top-1 "
            f"{best.holdout.top1:.2%} after epoch {best.epoch + 1}"
        )
        name = f"curves-{folder.stage}"
        report.figures[name] = training_curves(rows, folder.stage), caption
        report.curves.append(name)
        report.epochs[folder.stage] = epochs
    report.scores += folder.read_scores()


def run_facts(folder: StageFolder, config: RunConfig) -> list[tuple[str, str]]:
    """Return how a stage was trained: names and values."""
    recipe, stage = folder.read_recipe(), config.recipe.stage(folder.stage)
    logs, times, seeds = [folder], "", f"{config.seed}"
    if stage.soup > 1:
        trainings = training_folders(folder, config)
        logs = list(trainings.values())
        times = f" in each of {stage.soup} trainings, weights averaged"
        seeds = ", ".join(map(str, trainings))
    seconds = sum(
        row.seconds for log in logs for row in log.read_log() if isinstance(row, EpochRow)
    )
    counts, versions = recipe["pictures"], recipe["versions"]
    return [
        ("recipe", f"{config.recipe.name}, {folder.stage}"),
        ("training size", f"{stage.size} px"),
        ("images", f"{counts['train']:,} trained on, {counts['holdout']:,} held out"),
        (
            "epochs",
            f"{stage.epochs:g}{times}, batch size {stage.batch}, {stage.optimizer}, "
            f"{stage.schedule}",
        ),
        ("time of the steps, without features", f"{seconds / 60:.1f} min"),
        ("seed" if stage.soup == 1 else "seeds", seeds),
        ("device", recipe["device"].get("name", "")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("digests", f"data {recipe['data_digest']}, split {recipe['split_digest'][:16]}"),
        ("command", shlex.join(recipe["command"])),
    ]


def _saved_probabilities(folder: StageFolder, config: RunConfig) -> _Saved:
    """The saved probabilities of single views at the training size.

    All are of one precision and of one network's weights: those of the newest plain images of val,
    or of the hold-out if there are none of val.
    """
    size = config.recipe.stage(folder.stage).size
    results = []
    for path in folder.probability_files("*.npz"):
        with suppress(InputError):
            result = Probabilities.load(path)
            about = result.about
            if about.get("side") == size and not about.get("dense") and set(about) >= _METADATA:
                results.append(result)

    def origin(result: Probabilities) -> tuple[str, str]:
        return result.about["weights"], result.about["precision"]

    plain = {
        result.about["split"]: origin(result) for result in results if result.views[0] == PLAIN
    }
    newest = plain.get("val", plain.get("holdout"))
    return {
        (result.about["split"], result.views[0]): result
        for result in results
        if origin(result) == newest
    }


def _add_mistakes(report: RunReport, plain: Probabilities, packed: Packed | None) -> None:
    """Add the accuracy of classes, the confusion matrix and the most confused pairs."""
    log_probabilities, labels = plain.log_probabilities[0], plain.required_labels
    names = list(plain.wnids)
    if packed is not None:
        names = list(map(short_name, packed.wnids, packed.names))
    report.names = names
    report.classes = [
        ClassRow(
            row,
            name=names[row.label],
            wnid=plain.wnids[row.label],
            taken_for=None if row.taken_for is None else names[row.taken_for],
        )
        for row in sorted(by_class(log_probabilities, labels), key=lambda row: row.top1)
    ]
    counts = confusion(log_probabilities, labels)
    report.order = similar_order(counts).tolist()
    report.counts = [(int(i), int(j), int(counts[i, j])) for i, j in np.argwhere(counts)]
    report.pairs = [
        Pair(pair, (names[pair.first], names[pair.second]))
        for pair in confused_pairs(counts, _PAIRS)
    ]


def _add_calibration(report: RunReport, saved: _Saved) -> None:
    """Add the reliability of the plain image and of the mean with its mirror image.

    Each is shown as it is, and at the temperature that fits the hold-out best.
    """
    labels = saved[report.split, PLAIN].required_labels
    curves = []
    for name, views in ((_PLAIN, [PLAIN]), (_FLIP, [PLAIN, "mirror"])):
        if any((report.split, view) not in saved for view in views):
            continue
        merged = _merged(saved, report.split, views)
        results = [(name, merged)]
        if report.split != "holdout" and all(("holdout", view) in saved for view in views):
            holdout_labels = saved["holdout", PLAIN].required_labels
            temperature = fit_temperature(_merged(saved, "holdout", views), holdout_labels)
            title = f"{name}, T = {temperature:.2f}"
            results.append((title, at_temperature(merged, temperature)))
        for title, values in results:
            row = ScoreRow(split=report.split, views=title).with_score(score(values, labels))
            curves.append((title, reliability(values, labels), row.ece))
            report.calibration.append(row)
    errors = "; ".join(f"{title} {error:.1%}" for title, _, error in curves)
    caption = f"Accuracy against confidence on {report.split}; calibration error: {errors}"
    report.figures["reliability"] = reliability_diagram(curves), caption


def _merged(saved: _Saved, split: str, views: Sequence[str]) -> np.ndarray:
    """(N, C) log-probabilities of the mean of views."""
    values = np.stack([saved[split, view].log_probabilities[0] for view in views])
    return merges.mean(torch.from_numpy(values)).numpy()


def compare_runs(reports: Sequence[RunReport]) -> list[ScoreRow]:
    """The plain score of each run; its gain is over the first run, if both are of the same images.

    A run that cannot be compared says so among what its report lacks.
    """
    rows = []
    first: tuple[str, Probabilities] | None = None
    for report in reports:
        plain = report.plain
        if plain is None:
            continue
        origin = ScoreRow(run=report.name, stage=plain.about.get("stage"), split=report.split)
        row = replace(origin, size=plain.about["side"], gain=NOT_COMPARED).with_score(
            score(plain.log_probabilities[0], plain.required_labels)
        )
        if first is None:
            first = report.name, plain
        else:
            try:
                same_images(first[1], plain, (first[0], report.name))
                row = replace(row, gain=mcnemar(_right(plain), _right(first[1])))
            except InputError as error:
                report.missing.append(f"Not compared in pairs: {error}")
        rows.append(row)
    return rows


def _right(plain: Probabilities) -> np.ndarray:
    """(N,) bool: whether each image is classified right."""
    return plain.log_probabilities[0].argmax(1) == plain.required_labels


def class_differences(
    reports: Sequence[RunReport], rows: Sequence[ScoreRow]
) -> list[ClassDifference]:
    """The classes on which the accuracies of the runs differ most, the largest difference first.

    The list is empty unless all runs were compared on the same images. `p` compares the best and
    the worst run on the class in pairs, multiplied by the number of classes and pairs of runs that
    it was selected from (Bonferroni).
    """
    if len(rows) < len(reports) or any(row.gain.gain is None for row in rows[1:]):
        return []
    results = [report.plain for report in reports if report.plain is not None]
    right, labels = np.stack([_right(plain) for plain in results]), results[0].required_labels
    names = reports[0].names
    comparisons = len(names) * len(reports) * (len(reports) - 1) // 2
    differences = []
    for label in np.unique(labels):
        of_class = right[:, labels == label]
        shares = of_class.mean(1)
        best, worst = of_class[shares.argmax()], of_class[shares.argmin()]
        differences.append(
            ClassDifference(
                name=names[label],
                n=of_class.shape[1],
                top1=shares.tolist(),
                difference=float(shares.max() - shares.min()),
                p=min(1.0, mcnemar(best, worst).p * comparisons),
            )
        )
    return sorted(differences, key=lambda row: -row.difference)[:_DIFFERENCES]
