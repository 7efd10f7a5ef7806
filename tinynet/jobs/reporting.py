"""What a run has to show, gathered from its folder and its data: everything that a page is made of.

Only what the run has kept is read; what is missing is named, with the command that makes it.
"""

import base64
import io
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tinynet import runs
from tinynet.data.batches import to_float
from tinynet.data.packed import Packed
from tinynet.data.verify import same_pixels
from tinynet.errors import InputError
from tinynet.fit.checkpoint import load_model
from tinynet.jobs.plan import Plan, open_data
from tinynet.jobs.scoring import NOT_PAIRED, paired
from tinynet.report.figures import accuracy_by_object_size, reliability_diagram, training_curves
from tinynet.report.page import write_comparison, write_page
from tinynet.runs import StageFolder
from tinynet.score import merges
from tinynet.score.calibration import at_temperature, fit_temperature
from tinynet.score.heat import heat, share_inside
from tinynet.score.metrics import by_class, score
from tinynet.score.mistakes import (
    box_areas,
    by_object_size,
    confused_pairs,
    confusion,
    reliability,
    similar_order,
    surest_mistakes,
)
from tinynet.score.probabilities import Probabilities, same_pictures
from tinynet.score.views import PLAIN, resize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MISTAKES, _PAIRS, _HARDEST, _EACH, _HEATED, _APART = 96, 12, 8, 8, 12, 40
_DEPTH = "relu4_3"  # 8 x 8 places at 64 px, where relu5_3 has 4 x 4
_INSIDE = 256  # pictures whose heat is measured against their boxes

Row = dict[str, Any]


@dataclass
class Shown:
    """All that a run shows: plain values and rows, pictures as data URIs, figures by name with a description.

    `plain`: what is said of the pictures of `split` as they are. `missing`: sentences that say what is not here, and
    what to run.
    """

    name: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)
    figures: dict[str, tuple["Figure", str]] = field(default_factory=dict)
    curves: list[str] = field(default_factory=list)
    epochs: list[Row] = field(default_factory=list)
    classes: list[Row] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    counts: list[tuple[int, int, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    mistakes: list[Row] = field(default_factory=list)
    hardest: list[Row] = field(default_factory=list)
    calibration: list[Row] = field(default_factory=list)
    sizes: list[Row] = field(default_factory=list)
    heats: list[Row] = field(default_factory=list)
    inside: Row | None = None
    duplicates: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    split: str = ""
    plain: Probabilities | None = None


def gather(run: Path, data: str | None, cache: str | None) -> Shown:
    """What `run` has to show, of its last finished stage, or of what there is of it.

    Raises `InputError` where it is no run.
    """
    started = runs.started(run)
    if not started:
        raise InputError(f"{run}: {runs.NOT_A_RUN}; name a folder that tinynet.train wrote")
    shown = Shown(run.resolve().name)
    for folder in started:
        _learning(shown, folder)
    finished = [folder for folder in started if folder.finished]
    last = (finished or started)[-1]
    plan = Plan.read(last.read_recipe())
    _facts(shown, last, plan)
    if unfinished := [folder.stage for folder in started if not folder.finished]:
        shown.missing.append(f"Not finished: {', '.join(unfinished)}; python -m tinynet.train --resume {run}")
    if not finished:
        return shown
    try:
        packed = open_data(data, cache, plan)
        if packed.contents != last.read_recipe()["data_digest"]:
            raise InputError(f"{packed.manifest['source']} is not the data of this run")
    except InputError as error:
        packed = None
        shown.missing.append(f"No pictures: {error}")
    found = _stored(last, plan)
    shown.split = next((split for split in ("val", "holdout") if (split, PLAIN) in found), "")
    if not shown.split:
        shown.missing.append(f"Nothing is known of single pictures: python -m tinynet.evaluate --run {run} --tta flip")
        return shown
    shown.plain = found[shown.split, PLAIN]
    _mistakes(shown, shown.plain, packed)
    _calibration(shown, found)
    if packed is not None:
        _pictures(shown, shown.plain, packed, last)
    return shown


def _learning(shown: Shown, folder: StageFolder) -> None:
    rows = runs.read_rows(folder.log)
    epochs = [row for row in rows if row["kind"] == "epoch"]
    if epochs:
        best = max(epochs, key=lambda row: row["holdout"]["top1"])
        said = (f"Loss, hold-out accuracy and learning rate of {folder.stage}: {len(epochs)} epochs, the best hold-out "
                f"top-1 {best['holdout']['top1']:.2%} after epoch {best['epoch'] + 1}")
        shown.figures[f"curves-{folder.stage}"] = training_curves(rows, folder.stage), said
        shown.curves.append(f"curves-{folder.stage}")
    shown.epochs += [{"stage": folder.stage, "epoch": row["epoch"] + 1, "train_loss": row["loss"],
                      "top1": row["holdout"]["top1"], "low": row["holdout"]["low"], "high": row["holdout"]["high"],
                      "top5": row["holdout"]["top5"], "loss": row["holdout"]["loss"]} for row in epochs]
    shown.scores += runs.read_rows(folder.scores)


def _facts(shown: Shown, folder: StageFolder, plan: Plan) -> None:
    stored = folder.read_recipe()
    stage = plan.recipe.stage(folder.stage)
    seconds = sum(row["seconds"] for row in runs.read_rows(folder.log) if row["kind"] == "epoch")
    shown.facts = [
        ("recipe", f"{plan.recipe.name}, {folder.stage}"), ("training size", f"{stage.size} px"),
        ("pictures", f"{stored['pictures']['train']:,} learnt from, {stored['pictures']['holdout']:,} held out"),
        ("epochs", f"{stage.epochs} of {stage.batch} pictures a step, {stage.optimizer}, {stage.schedule}"),
        ("time in the network", f"{seconds / 60:.1f} min"), ("seed", str(plan.seed)),
        ("device", stored["device"]["name"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in stored["versions"].items())),
        ("digests", f"data {stored['data_digest']}, split {stored['split_digest'][:16]}"),
        ("command", shlex.join(stored["command"]))]


def _stored(folder: StageFolder, plan: Plan) -> dict[tuple[str, str], Probabilities]:
    """What the stage has kept of plain and mirrored pictures at its own size, by split and view; newest weights."""
    size = plan.recipe.stage(folder.stage).size
    found = {}
    for path in sorted(folder.probabilities.glob("*.npz"), key=lambda path: path.stat().st_mtime):
        with suppress(InputError):
            kept = Probabilities.load(path)
            if kept.about.get("side") == size and not kept.about.get("dense"):
                found[kept.about["split"], kept.views[0]] = kept
    return found


def _mistakes(shown: Shown, plain: Probabilities, packed: Packed | None) -> None:
    """Classes, the confusion matrix in an order that can be read, and which classes are taken for which."""
    said, labels = plain.log_probabilities[0], plain.labels
    shown.names = [name.split(",")[0] for name in packed.names] if packed else list(plain.wnids)
    wnids = plain.wnids
    shown.classes = [{**row, "name": shown.names[row["label"]], "wnid": wnids[row["label"]],
                      "taken_for": None if row["taken_for"] is None else shown.names[row["taken_for"]]}
                     for row in sorted(by_class(said, labels), key=lambda row: row["top1"])]
    counts = confusion(said, labels)
    shown.order = similar_order(counts).tolist()
    shown.counts = [(int(i), int(j), int(counts[i, j])) for i, j in np.argwhere(counts)]
    shown.pairs = [{**row, "first_name": shown.names[row["first"]], "second_name": shown.names[row["second"]]}
                   for row in confused_pairs(counts, _PAIRS)]


def _calibration(shown: Shown, found: dict[tuple[str, str], Probabilities]) -> None:
    """The reliability diagram: plain, with the mirror image, and each at the temperature that fits the hold-out."""
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
            shown.calibration.append({"views": title, **row})
    error = "; ".join(f"{title} {row:.1%}" for title, _, row in curves)
    shown.figures["reliability"] = reliability_diagram(curves), f"Accuracy against confidence; error: {error}"


def _together(found: dict[tuple[str, str], Probabilities], split: str, views: Sequence[str]) -> np.ndarray:
    values = np.stack([found[split, view].log_probabilities[0] for view in views])
    return merges.mean(torch.from_numpy(values)).numpy()


def _pictures(shown: Shown, plain: Probabilities, packed: Packed, folder: StageFolder) -> None:
    """Everything that needs the pictures themselves."""
    part = packed.train if shown.split == "holdout" else packed.val
    said, labels, rows = plain.log_probabilities[0], plain.labels, plain.rows
    called, right = said.argmax(1), said.argmax(1) == labels

    def card(at: int) -> Row:
        return {"picture": _uri(part.pictures[rows[at]]), "file": part.files[rows[at]], "name": shown.names[labels[at]],
                "called": shown.names[called[at]], "sure": float(np.exp(said[at].max())), "right": bool(right[at])}

    shown.mistakes = [card(at) for at in surest_mistakes(said, labels, _MISTAKES)]
    shown.hardest = [{**row, "cards": [card(at) for at in np.flatnonzero(labels == row["label"])[:_EACH]]}
                     for row in shown.classes[:_HARDEST]]
    for row in shown.pairs:
        row["cards"] = [card(at) for at in _examples(row, said, labels)]
    shown.sizes = by_object_size(right, part.boxes[rows], packed.side)
    if shown.sizes:
        least, most = shown.sizes[0], shown.sizes[-1]
        shown.figures["object-size"] = accuracy_by_object_size(shown.sizes), (
            f"Top-1 by size of the object: {least['top1']:.1%} of the smallest, {most['top1']:.1%} of the largest")
    _heats(shown, packed, folder, part, plain, card)
    shown.duplicates = list(_conflicts(packed, shown, plain))


def _examples(pair: Row, said: np.ndarray, labels: np.ndarray) -> Iterator[int]:
    """A picture of each class that is called by the other's name, the surest, or else any of the class."""
    called = said.argmax(1)
    for label, other in ((pair["first"], pair["second"]), (pair["second"], pair["first"])):
        mine = np.flatnonzero(labels == label)
        wrong = mine[called[mine] == other]
        if len(mine):
            yield int((wrong if len(wrong) else mine)[np.argmax(said[wrong if len(wrong) else mine, other])])


def _heats(shown: Shown, packed: Packed, folder: StageFolder, part: Any, plain: Probabilities, card: Any) -> None:
    """Grad-CAM of the class that is said, for pictures spread over the split, and how much of it lies in the boxes."""
    network, size = load_model(folder.best, packed.wnids)
    at = np.linspace(0, len(plain.rows) - 1, min(_INSIDE, len(plain.rows))).astype(int)
    heats = []
    for some in np.array_split(at, max(1, len(at) // 16)):
        pictures = to_float(torch.from_numpy(part.pictures[plain.rows[some]]))
        classes = torch.from_numpy(plain.log_probabilities[0, some].argmax(1))
        try:
            found = heat(network, resize(pictures, size), classes, _DEPTH)
        except InputError as error:
            shown.missing.append(f"No heat maps: {error}")
            return
        heats.append(resize(found[:, None], packed.side)[:, 0].numpy())
    maps = np.concatenate(heats)
    boxes = part.boxes[plain.rows[at]]
    inside = share_inside(maps, boxes)
    known = ~np.isnan(inside)
    if known.any():
        shown.inside = {"n": int(known.sum()), "inside": float(inside[known].mean()),
                        "area": float(box_areas(boxes[known]).mean() / packed.side**2), "depth": _DEPTH}
    for place in np.linspace(0, len(at) - 1, min(_HEATED, len(at))).astype(int):
        row = plain.rows[at[place]]
        shown.heats.append({**card(at[place]), "heat": _heated(part.pictures[row], maps[place]), "side": packed.side,
                            "box": boxes[place].tolist() if boxes[place, 0] >= 0 else None,
                            "inside": None if np.isnan(inside[place]) else float(inside[place])})


def _conflicts(packed: Packed, shown: Shown, plain: Probabilities) -> Iterator[Row]:
    """Pictures of the split that stand in train too, under another label: a network can only get one of them right."""
    name = "train" if shown.split == "holdout" else "val"
    place = {int(row): at for at, row in enumerate(plain.rows)}
    called = plain.log_probabilities[0].argmax(1)
    for first, second in same_pixels(packed):
        for (part, row), (other, twin) in ((first, second), (second, first)):
            if part != name or row not in place or other != "train":
                continue
            mine, theirs = packed.part(part), packed.part(other)
            if mine.labels[row] != theirs.labels[twin]:
                yield {"picture": _uri(mine.pictures[row]), "file": mine.files[row], "other": theirs.files[twin],
                       "name": shown.names[mine.labels[row]], "other_name": shown.names[theirs.labels[twin]],
                       "called": shown.names[called[place[row]]]}


def _uri(pixels: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _heated(pixels: np.ndarray, warmth: np.ndarray) -> str:
    """The picture with its heat over it, as a data URI."""
    from matplotlib import colormaps

    strength = (warmth / max(warmth.max(), 1e-12))[..., None]
    colours = colormaps["inferno"](strength[..., 0])[..., :3] * 255
    return _uri((pixels * (1 - 0.6 * strength) + colours * 0.6 * strength).round().clip(0, 255).astype(np.uint8))


def report(folders: Sequence[Path], data: str | None, cache: str | None, out: Path | None) -> list[Path]:
    """Write a page a run, and one that compares several; returns where they are, the comparison last.

    `out`: the folder for them (default: each page in its run, as report.html, and a comparison in the first).
    Raises `InputError` where a folder is no run, or two have one name.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names) or "comparison" in names:
        raise InputError(f"runs called {', '.join(names)}: two pages would have one name, and comparison is that of "
                         "another; rename one")
    shown = [gather(folder, data, cache) for folder in folders]
    pages = [out / f"{one.name}.html" if out else folder / "report.html"
             for one, folder in zip(shown, folders, strict=True)]
    for one, page in zip(shown, pages, strict=True):
        write_page(one, page)
    if len(shown) > 1:
        pages.append((out or folders[0]) / "comparison.html")
        links = [os.path.relpath(page, pages[-1].parent) for page in pages[:-1]]
        write_comparison(shown, links, _beside(shown), _apart(shown), pages[-1])
    return pages


def _beside(shown: Sequence[Shown]) -> list[Row]:
    """The plain score of each run, `gain` and `p` over the first where both are of the same pictures."""
    rows, first = [], None
    for one in shown:
        if one.plain is None:
            continue
        row = {"run": one.name, "split": one.split, **score(one.plain.log_probabilities[0], one.plain.labels)}
        try:
            first = first or one
            same_pictures(first.plain, one.plain, (first.name, one.name))
            rows.append({**row, **(paired(_right(one), _right(first)) if one is not first else NOT_PAIRED)})
        except InputError as error:
            one.missing.append(f"Not compared in pairs: {error}")
            rows.append({**row, **NOT_PAIRED})
    return rows


def _right(shown: Shown) -> np.ndarray:
    return shown.plain.log_probabilities[0].argmax(1) == shown.plain.labels


def _apart(shown: Sequence[Shown]) -> list[Row]:
    """Classes that all runs know, those first on which their accuracies are farthest apart."""
    known = [{row["wnid"]: row for row in one.classes} for one in shown]
    if not all(known):
        return []
    rows = [{"name": known[0][wnid]["name"], "top1": [classes[wnid]["top1"] for classes in known]}
            for wnid in known[0] if all(wnid in classes for classes in known)]
    rows = [{**row, "apart": max(row["top1"]) - min(row["top1"])} for row in rows]
    return sorted(rows, key=lambda row: -row["apart"])[:_APART]
