"""One stage of a run after another: from a plan to a folder with weights, log, curves and score.

This ties the rooms together for whoever trains: the command `tinynet.train`, the demo, the notebooks.
"""

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import cli, runs
from tinynet.errors import InputError
from tinynet.files import write_json
from tinynet.fit.recipes import DataPlan, Network, Recipe, Stage
from tinynet.runs import StageFolder

if TYPE_CHECKING:
    from torch import nn

    from tinynet.data.packed import Packed
    from tinynet.data.splits import Split
    from tinynet.device import Device
    from tinynet.fit.loop import Stream, Training
    from tinynet.models.vgg import Classifier

_SAVE_EVERY = 600.0  # seconds of training that a crash may cost


@dataclass(frozen=True)
class Plan:
    """What a run was asked to do; `recipe.json` holds it, and resuming reads it back."""

    recipe: Recipe
    data: str
    stages: tuple[str, ...] = runs.STAGES
    weights: str = "IMAGENET1K_V1"
    seed: int = 0
    cache: str | None = None
    base_run: str | None = None  # whose base a finetune goes on from; None: this run's own

    @classmethod
    def read(cls, stored: dict[str, Any]) -> "Plan":
        """The plan that `recipe.json` holds."""
        parts = stored["recipe"]
        tuples = {name: _tuples(parts[name]) for name in ("data", "network", "base", "finetune")}
        recipe = Recipe(name=parts["name"], data=DataPlan(**tuples["data"]), network=Network(**tuples["network"]),
                        base=Stage(**tuples["base"]), finetune=Stage(**tuples["finetune"]))
        same = {name: stored[name] for name in ("data", "weights", "seed", "cache", "base_run")}
        return cls(recipe, stages=tuple(stored["stages"]), **same)


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def open_data(data: str | None, cache: str | None, plan: Plan) -> "Packed":
    """The pictures named by `data` and `cache`, or else those that `plan` was made for."""
    from tinynet.data.download import find_data
    from tinynet.data.packed import open_packed

    if data is None and Path(plan.data).exists():
        data = plan.data
    return open_packed(find_data(data), cache or plan.cache)


def split_of(plan: Plan, packed: "Packed") -> "Split":
    """The pictures that the plan learns from and holds out."""
    from tinynet.data.splits import split_train

    chosen = plan.recipe.data
    return split_train(packed.train.labels, chosen.split_kind, chosen.holdout, chosen.split_seed, chosen.per_class)


def train(run: Path, plan: Plan, device: "Device", *, resume: bool = False,
          summary: bool = False) -> list[dict[str, Any]]:
    """Train the stages of `plan` that are not finished; returns the hold-out's score of each.

    Raises `InputError` for unusable input, and `KeyboardInterrupt` once what was done is saved.
    """
    try:
        return _train(run, plan, device, resume, summary)
    except KeyboardInterrupt:
        if any(StageFolder(run, name).started for name in plan.stages):
            cli.say(f"\nstopped and saved; continue with: python -m tinynet.train --resume {run}")
        raise


def _train(run: Path, plan: Plan, device: "Device", resume: bool, summary: bool) -> list[dict[str, Any]]:
    from tinynet.fit.inputs import check_crops
    from tinynet.models.vgg import check_side
    from tinynet.report.figures import save_figure, training_curves

    for name in plan.stages:
        check_side(plan.recipe.stage(name).size)
    packed = open_data(plan.data, plan.cache, plan)
    for name in plan.stages:
        check_crops(plan.recipe.stage(name), packed.side)
    rows = []
    for name in plan.stages:
        folder = StageFolder(run, name)
        if not folder.finished:
            row = _train_stage(folder, plan, packed, device, resume, summary)
            if row is None:
                return []
            save_figure(training_curves(runs.read_rows(folder.log), f"{run.name}: {name}, {plan.recipe.name}"),
                        folder.curves)
            runs.append_rows(folder.scores, [row])  # last: it says that the stage is finished
            cli.say(f"{name} is finished: {folder.best}, curves in {folder.curves}")
        rows += runs.read_rows(folder.scores)[:1]
    return rows


def _train_stage(folder: StageFolder, plan: Plan, packed: "Packed", device: "Device", resume: bool,
                 summary: bool) -> dict[str, Any] | None:
    """Train one stage to its end; returns the score of its best epoch, or None after a summary."""
    import torch

    from tinynet.data.batches import seeded
    from tinynet.fit import schedules
    from tinynet.fit.inputs import steps_per_epoch
    from tinynet.fit.loop import Training

    stage = plan.recipe.stage(folder.stage)
    split = split_of(plan, packed)
    torch.manual_seed(seeded("cpu", plan.seed, folder.stage).initial_seed())
    model = _start_model(folder, plan, packed)
    if summary:
        _print_summary(model, stage)
        return None
    facts = _facts(folder, plan, packed, split, model, device)
    if resume and folder.started:
        _same(folder, facts)
    folder.make()
    learning = model.to(device.device, memory_format=torch.channels_last).train_only(stage.learn)
    cli.say(f"{folder.stage}: {learning:,} weights learn from {len(split.train):,} pictures, "
            f"{len(split.holdout):,} held out")
    steps = steps_per_epoch(len(split.train), stage.batch)
    if warning := schedules.warning(stage, steps):
        cli.say(f"note: {warning}")
    module, stream, check = _inputs(model, packed, split, plan, stage, device)
    parts = {name: model.parts[name] for name in stage.learn}
    training = Training(module, parts, stage, steps, device)
    if not (resume and folder.started):
        write_json(folder.recipe, facts)  # only now, so that a run that cannot begin leaves none behind
    _run(training, stream, check, folder, packed, model, resume)
    return _row(folder, stage, training.best["holdout"])


def _start_model(folder: StageFolder, plan: Plan, packed: "Packed") -> "Classifier":
    from tinynet.fit.checkpoint import load_model
    from tinynet.models.vgg import Classifier, load_backbone

    if folder.stage == "finetune":
        base = StageFolder(Path(plan.base_run) if plan.base_run else folder.run, "base")
        return load_model(base.best, packed.wnids)[0]
    network = plan.recipe.network
    return Classifier(load_backbone(plan.weights), network.taps, network.hidden, len(packed.wnids),
                      network.dropout, network.standardise)


def _print_summary(model: "Classifier", stage: Stage) -> None:
    import torchinfo

    model.train_only(stage.learn)
    print(torchinfo.summary(model, (stage.batch, 3, stage.size, stage.size), verbose=0, depth=3,
                            col_names=("output_size", "num_params", "mult_adds", "trainable")))


def _facts(folder: StageFolder, plan: Plan, packed: "Packed", split: "Split", model: "Classifier",
           device: "Device") -> dict[str, Any]:
    """What `recipe.json` says of a stage: all that is needed to understand and repeat it."""
    import platform

    import torch
    import torchvision

    from tinynet import __version__

    return {"stage": folder.stage, **asdict(plan), "split_digest": split.digest, "data_digest": packed.digest,
            "start_digest": model.backbone.digest(),
            "pictures": {"train": len(split.train), "holdout": len(split.holdout)}, "device": str(device),
            "versions": {"tinynet": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__,
                         "python": platform.python_version()},
            "command": sys.argv}


def _same(folder: StageFolder, facts: dict[str, Any]) -> None:
    """Raise `InputError` where a run would be resumed on other pictures, another split or other weights."""
    before = folder.read_recipe()
    for key, what in (("data_digest", "data"), ("split_digest", "split"), ("start_digest", "starting weights")):
        if before[key] != facts[key]:
            raise InputError(f"{folder.path}: was started with other {what} ({before[key][:12]}, now "
                             f"{facts[key][:12]}); resume it with the {what} it was started with")


def _inputs(model: "Classifier", packed: "Packed", split: "Split", plan: Plan, stage: Stage,
            device: "Device") -> "tuple[nn.Module, Stream, Callable[[nn.Module], dict[str, Any]]]":
    """What is trained, what it learns from and what judges it: on kept features, or on pictures."""
    from tinynet.data.batches import batches
    from tinynet.fit.features import train_features, view_features
    from tinynet.fit.inputs import epoch_batches
    from tinynet.score.metrics import score
    from tinynet.score.probabilities import head_probabilities, view_probabilities
    from tinynet.score.views import VIEWS, resize

    if stage.views:
        kept = train_features(model, packed, split.train, stage, plan.seed, device, packed.cache)
        held = view_features(model, packed, packed.train, split.holdout, "plain",
                             lambda pictures: resize(pictures, stage.size), stage, device, packed.cache)

        def kept_epoch(epoch, start):
            return kept.epoch(plan.seed, epoch, stage.batch, device.device, start)

        def check_head(head):
            return score(head_probabilities(head.eval(), held.in_order(device.device)), held.labels)

        return model.head, kept_epoch, check_head

    def stream(epoch, start):
        for batch in epoch_batches(packed.train, split.train, stage, plan.seed, epoch, device.device, start):
            yield batch.pictures, batch.labels

    def check_model(whole):
        found = view_probabilities(whole.for_inference(device.device, device.dtype),
                                   batches(packed.train, split.holdout, size=64, device=device.device),
                                   VIEWS["none"], stage.size, packed.wnids)
        return score(found.log_probabilities[0], found.labels)

    return model, stream, check_model


def _run(training: "Training", stream: "Stream", check: Callable, folder: StageFolder, packed: "Packed",
         model: "Classifier", resume: bool) -> None:
    """The loop with everything around it: log, progress, checkpoints, Ctrl-C."""
    from tinynet.fit.checkpoint import load_training, save_model, save_training
    from tinynet.fit.loop import fit

    if resume and folder.last.is_file():
        training.load_state_dict(load_training(folder.last, packed.wnids))
        cli.say(f"resumed at epoch {training.epoch + 1}, step {training.step} of {training.steps}")
    runs.cut_log(folder.log, training.total_steps)
    saved = time.monotonic()
    total = training.stage.epochs * training.steps
    with cli.stop_on_interrupt() as stop, cli.progress(total=total, done=training.total_steps, label=folder.stage,
                                                       unit="steps") as bar:
        for row in fit(training, stream, check, stop):
            runs.append_rows(folder.log, [row])
            if row["kind"] == "step":
                bar.update(row["step"] - bar.n)
                bar.set_postfix(epoch=row["epoch"] + 1, loss=f"{row['loss']:.3f}", refresh=False)
            if row["kind"] == "epoch":
                if row["improved"]:
                    save_model(folder.best, _whole(model, training.result), packed.wnids, training.stage.size)
                bar.write(_epoch_line(row, training.stage), file=sys.stderr)
            # Rows come some at a time: a checkpoint must not be ahead of the log, nor lack its epoch's row alone.
            within = row["step"] == training.total_steps and training.step < training.steps
            if row["kind"] != "step" or (within and time.monotonic() - saved > _SAVE_EVERY):
                save_training(folder.last, training.state_dict(), packed.wnids)
                saved = time.monotonic()
            if row["kind"] == "stopped":
                raise KeyboardInterrupt


def _whole(model: "Classifier", result: "nn.Module") -> "Classifier":
    """The whole network of what was trained: itself, or the backbone with the head trained alone."""
    from tinynet.models.vgg import Classifier

    if isinstance(result, Classifier):
        return result
    whole = copy.copy(model)  # shares the backbone; the head in training stays as it is
    whole._modules = {**model._modules, "head": result}
    return whole


def _epoch_line(row: dict[str, Any], stage: Stage) -> str:
    held = row["holdout"]
    return (f"epoch {row['epoch'] + 1}/{stage.epochs}: loss {row['loss']:.3f}, hold-out top-1 {held['top1']:.2%} "
            f"(95 %: {held['low']:.2%} .. {held['high']:.2%}), top-5 {held['top5']:.2%}, "
            f"{row['pictures_per_second']:,.0f} pictures/s{', best so far' if row['improved'] else ''}")


def _row(folder: StageFolder, stage: Stage, held: dict[str, Any]) -> dict[str, Any]:
    return {"run": str(folder.run), "stage": folder.stage, "split": "holdout", "views": "none", "merge": "mean",
            "size": stage.size, **held}
