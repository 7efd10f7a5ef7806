"""What a run has to show, gathered from its folder and its data: everything that a page is made of.

Only what the run has kept is read; what is missing is named, with the command that makes it.
"""

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from tinynet import runs
from tinynet.console import shell_command
from tinynet.data.packed import Packed
from tinynet.errors import InputError
from tinynet.evaluation.evaluate import NOT_PAIRED, paired
from tinynet.report.figures import reliability_diagram, training_curves
from tinynet.report.gallery import add_images
from tinynet.report.page import Row, RunReport, write_comparison, write_page
from tinynet.runs import StageFolder
from tinynet.score import merges
from tinynet.score.calibration import at_temperature, fit_temperature
from tinynet.score.confusions import confused_pairs, confusion, reliability, similar_order
from tinynet.score.metrics import by_class, score
from tinynet.score.probabilities import Probabilities, same_images
from tinynet.score.views import PLAIN
from tinynet.training.config import RunConfig, open_data

_PAIRS, _DIFFERENCES = 12, 40
_ABOUT = {"weights", "precision", "split"}  # what kept probabilities must say of themselves


def gather(
    run: Path, data: str | None, cache: str | None, results: Path | None = None
) -> RunReport:
    """What `run` has to show, of its last finished stage, or of what there is of it.

    `results`: where else evaluation may have kept scores and probabilities.
    Raises `InputError` where it is no run.
    """
    started = [folder.with_results(results) for folder in runs.started(run)]
    if not started:
        raise InputError(f"{run}: {runs.NOT_A_RUN}; name a folder that tinynet.train wrote")
    shown = RunReport(run.resolve().name)
    for folder in started:
        _learning(shown, folder)
    finished = [folder for folder in started if folder.finished]
    last = (finished or started)[-1]
    config = RunConfig.of(last)
    _facts(shown, last, config)
    if unfinished := [folder.stage for folder in started if not folder.finished]:
        shown.missing.append(
            f"Not finished: {', '.join(unfinished)}; continue with: "
            + shell_command("tinynet.train", "--resume", run)
        )
    if not finished:
        return shown
    try:
        packed = open_data(data, cache, config)
        if packed.contents != last.read_recipe()["data_digest"]:
            raise InputError(f"{packed.manifest['source']} is not the data of this run")
    except InputError as error:
        packed = None
        shown.missing.append(f"No pictures: {error}")
    found = _stored(last, config)
    shown.split = next((split for split in ("val", "holdout") if (split, PLAIN) in found), "")
    if not shown.split:
        shown.missing.append(
            "There are no results of single images; run: "
            + shell_command(
                "tinynet.evaluate",
                "--run",
                run,
                "--tta",
                "flip",
                *(("--out", results) if results else ()),
            )
        )
        return shown
    shown.plain = found[shown.split, PLAIN]
    _mistakes(shown, shown.plain, packed)
    _calibration(shown, found)
    if packed is not None:
        add_images(shown, packed, last)
    return shown


def _learning(shown: RunReport, folder: StageFolder) -> None:
    rows = folder.read_log()
    epochs = [row for row in rows if row["kind"] == "epoch"]
    if epochs:
        best = max(epochs, key=lambda row: row["holdout"]["top1"])
        said = (
            f"Loss, hold-out accuracy and learning rate of {folder.stage}: {len(epochs)} epochs, "
            f"the best hold-out top-1 {best['holdout']['top1']:.2%} after epoch {best['epoch'] + 1}"
        )
        shown.figures[f"curves-{folder.stage}"] = training_curves(rows, folder.stage), said
        shown.curves.append(f"curves-{folder.stage}")
    shown.epochs += [
        {
            "stage": folder.stage,
            "epoch": row["epoch"] + 1,
            "train_loss": row["loss"],
            "top1": row["holdout"]["top1"],
            "low": row["holdout"]["low"],
            "high": row["holdout"]["high"],
            "top5": row["holdout"]["top5"],
            "loss": row["holdout"]["loss"],
        }
        for row in epochs
    ]
    shown.scores += folder.read_scores()


def _facts(shown: RunReport, folder: StageFolder, config: RunConfig) -> None:
    stored = folder.read_recipe()
    stage = config.recipe.stage(folder.stage)
    seconds = sum(row["seconds"] for row in folder.read_log() if row["kind"] == "epoch")
    shown.facts = [
        ("recipe", f"{config.recipe.name}, {folder.stage}"),
        ("training size", f"{stage.size} px"),
        (
            "pictures",
            f"{stored['pictures']['train']:,} learnt from, {stored['pictures']['holdout']:,} held "
            "out",
        ),
        (
            "epochs",
            f"{stage.epochs} of {stage.batch} pictures a step, {stage.optimizer}, {stage.schedule}",
        ),
        ("time of the steps, features apart", f"{seconds / 60:.1f} min"),
        ("seed", str(config.seed)),
        ("device", stored["device"].get("name", "")),
        (
            "versions",
            ", ".join(f"{name} {version}" for name, version in stored["versions"].items()),
        ),
        ("digests", f"data {stored['data_digest']}, split {stored['split_digest'][:16]}"),
        ("command", shlex.join(stored["command"])),
    ]


def _stored(folder: StageFolder, config: RunConfig) -> dict[tuple[str, str], Probabilities]:
    """What the stage has kept of plain and mirrored pictures at its own size, by split and view.

    All of it in one precision and of one network's weights, those of the newest plain pictures of
    val, or of the hold-out where there are none of val.
    """
    size = config.recipe.stage(folder.stage).size
    found = []
    for path in folder.kept_probabilities("*.npz"):
        with suppress(InputError):
            kept = Probabilities.load(path)
            if (
                kept.about.get("side") == size
                and not kept.about.get("dense")
                and set(kept.about) >= _ABOUT
            ):
                found.append(kept)

    def of(kept: Probabilities) -> tuple[str, str]:
        return kept.about["weights"], kept.about["precision"]

    plain = {kept.about["split"]: of(kept) for kept in found if kept.views[0] == PLAIN}
    chosen = plain.get("val", plain.get("holdout"))
    return {(kept.about["split"], kept.views[0]): kept for kept in found if of(kept) == chosen}


def _mistakes(shown: RunReport, plain: Probabilities, packed: Packed | None) -> None:
    """Classes, the confusion matrix in an order that can be read, and which classes are taken for
    which.
    """
    said, labels = plain.log_probabilities[0], plain.labels
    shown.names = [name.split(",")[0] for name in packed.names] if packed else list(plain.wnids)
    wnids = plain.wnids
    shown.classes = [
        {
            **row,
            "name": shown.names[row["label"]],
            "wnid": wnids[row["label"]],
            "taken_for": None if row["taken_for"] is None else shown.names[row["taken_for"]],
        }
        for row in sorted(by_class(said, labels), key=lambda row: row["top1"])
    ]
    counts = confusion(said, labels)
    shown.order = similar_order(counts).tolist()
    shown.counts = [(int(i), int(j), int(counts[i, j])) for i, j in np.argwhere(counts)]
    shown.pairs = [
        {**row, "first_name": shown.names[row["first"]], "second_name": shown.names[row["second"]]}
        for row in confused_pairs(counts, _PAIRS)
    ]


def _calibration(shown: RunReport, found: dict[tuple[str, str], Probabilities]) -> None:
    """The reliability diagram: plain, with the mirror image, and each at the temperature that fits
    the hold-out.
    """
    curves = []
    for name, views in (("plain", [PLAIN]), ("+ mirror", [PLAIN, "mirror"])):
        if any((shown.split, view) not in found for view in views):
            continue
        said, labels = _together(found, shown.split, views), found[shown.split, PLAIN].labels
        made = [(name, said)]
        if shown.split != "holdout" and all(("holdout", view) in found for view in views):
            held = _together(found, "holdout", views)
            temperature = fit_temperature(held, found["holdout", PLAIN].labels)
            made.append((f"{name}, T = {temperature:.2f}", at_temperature(said, temperature)))
        for title, values in made:
            row = score(values, labels)
            curves.append((title, reliability(values, labels), row["ece"]))
            shown.calibration.append({"split": shown.split, "views": title, **row})
    error = "; ".join(f"{title} {row:.1%}" for title, _, row in curves)
    said = f"Accuracy against confidence on {shown.split}; error: {error}"
    shown.figures["reliability"] = reliability_diagram(curves), said


def _together(
    found: dict[tuple[str, str], Probabilities], split: str, views: Sequence[str]
) -> np.ndarray:
    values = np.stack([found[split, view].log_probabilities[0] for view in views])
    return merges.mean(torch.from_numpy(values)).numpy()


def report(
    folders: Sequence[Path], data: str | None, cache: str | None, out: Path | None
) -> list[Path]:
    """Write a page a run, and one that compares several; returns where they are, the comparison
    last.

    `out`: the folder for them (default: each page in its run, as report.html, and a comparison in
    the first). Raises `InputError` where a folder is no run, or two have one name.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names) or "comparison" in names:
        raise InputError(
            f"runs called {', '.join(names)}: two pages would have one name, and comparison is "
            "that of another; rename one"
        )
    shown = [gather(folder, data, cache, out) for folder in folders]
    pages = [
        out / f"{one.name}.html" if out else folder / "report.html"
        for one, folder in zip(shown, folders, strict=True)
    ]
    for one, page in zip(shown, pages, strict=True):
        write_page(one, page)
    if len(shown) > 1:
        pages.append((out or folders[0]) / "comparison.html")
        links = [os.path.relpath(page, pages[-1].parent) for page in pages[:-1]]
        beside = _beside(shown)
        write_comparison(shown, links, beside, _differences(shown, beside), pages[-1])
    return pages


def _beside(shown: Sequence[RunReport]) -> list[Row]:
    """The plain score of each run, `gain` and `p` over the first where both are of the same
    pictures.
    """
    rows, first = [], None
    for one in shown:
        if one.plain is None:
            continue
        row = {
            "run": one.name,
            "split": one.split,
            **score(one.plain.log_probabilities[0], one.plain.labels),
        }
        try:
            first = first or one
            same_images(first.plain, one.plain, (first.name, one.name))
            rows.append(
                {**row, **(paired(_right(one), _right(first)) if one is not first else NOT_PAIRED)}
            )
        except InputError as error:
            one.missing.append(f"Not compared in pairs: {error}")
            rows.append({**row, **NOT_PAIRED})
    return rows


def _right(shown: RunReport) -> np.ndarray:
    return shown.plain.log_probabilities[0].argmax(1) == shown.plain.labels


def _differences(shown: Sequence[RunReport], beside: Sequence[Row]) -> list[Row]:
    """Classes, those first on which the accuracies of the runs differ most; none unless all saw the
    same pictures.

    `p`: of the best against the worst run on the class, in pairs, times the classes and pairs of
    runs that it was picked from (Bonferroni).
    """
    if len(beside) < len(shown) or any(row["gain"] is None for row in beside[1:]):
        return []
    right, labels = np.stack([_right(one) for one in shown]), shown[0].plain.labels
    picked_from = len(shown[0].names) * len(shown) * (len(shown) - 1) // 2
    rows = []
    for label in np.unique(labels):
        mine = right[:, labels == label]
        shares = mine.mean(1)
        best, worst = mine[shares.argmax()], mine[shares.argmin()]
        rows.append(
            {
                "name": shown[0].names[label],
                "n": mine.shape[1],
                "top1": shares.tolist(),
                "difference": float(shares.max() - shares.min()),
                "p": min(1.0, paired(best, worst)["p"] * picked_from),
            }
        )
    return sorted(rows, key=lambda row: -row["difference"])[:_DIFFERENCES]
