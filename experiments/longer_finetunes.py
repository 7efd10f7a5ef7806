"""Train settings and lengths of `finetune` on one GPU, and compare them in pairs on the hold-out.

    PYTHONPATH=. python experiments/longer_finetunes.py ZIP WEIGHTS OUT [--workers 5]

A `Training` is a finetune of conv4, conv5 and the head at 96 px from a base, unless its flags name
others. An `Average` is the mean of the weights of two trainings, whose head `fixres` trains again
at 112 px. Each is scored on the hold-out and on val, and `OUT/rows.json` has a row for each, with
the difference from another one and p of McNemar's paired test. Choices are made on the hold-out;
val is only reported.

A row of several seeds has their images one after the other; so p is a little too small there. Jobs
that have been scored are skipped. `--workers 0` writes the rows of those alone. Several processes
share the GPU, so the times in the logs do not measure speed.
"""

import contextlib
import multiprocessing
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tinynet.training.recipes import Stage

SPLITS = ("holdout", "val")
FIXRES = "--size 112"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Training:
    """A finetune, with more `flags` of `tinynet train`.

    `base`: flags of the base that it starts from. `change`: a name of `CHANGES`, with its value.
    `against`: the training to compare it with.
    """

    name: str
    epochs: float
    seed: int = 0
    flags: str = ""
    base: str = "--size 96"
    change: str = ""
    against: str = ""


@dataclass(frozen=True)
class Average:
    """The mean of the weights of `members`, then `fixres` with `flags`."""

    name: str
    members: tuple[str, ...]
    flags: str = FIXRES
    against: str = ""


def seeds(name: str, epochs: float, count: int, against: str = "", **fields: str) -> list[Training]:
    """Trainings that differ in their seed alone, each compared with the same seed of `against`."""
    return [
        Training(
            f"{name}, seed {seed}",
            epochs,
            seed,
            against=against and f"{against}, seed {seed}",
            **fields,
        )
        for seed in range(count)
    ]


def average(name: str, of: str, flags: str = FIXRES) -> Average:
    """The average of the first two seeds of a training."""
    return Average(name, (f"{of}, seed 0", f"{of}, seed 1"), flags, PLAN)


COLOUR, CONV3 = "--saturation 0.7 1.4 --hue 0.03", "--trainable conv3 conv4 conv5 head"
PLAN, THREE = "two of 3.75 epochs", "3 epochs"
GROWING = "3 at 64 px, 2.4 at 96 px"
# "3.75 epochs" and "3 at 64 px, 2.4 at 96 px" have the same work, counted in pixels. So have "3
# epochs" and "2 at 64 px, 2.1 at 96 px", and "2.4 epochs of conv3" by their operations.
JOBS: tuple[Training | Average, ...] = (
    *seeds("3.75 epochs", 3.75, 2),
    *seeds("2.4 epochs of conv3", 2.4, 2, flags=CONV3, against="3.75 epochs"),
    *seeds(THREE, 3, 2),
    *seeds(GROWING, 5.4, 2, change="growing 3", against="3.75 epochs"),
    *seeds("2.5 epochs", 2.5, 2, against=THREE),
    average(PLAN, "3.75 epochs"),
    average("two of 2.4 epochs of conv3", "2.4 epochs of conv3"),
    average(f"two of {GROWING}", GROWING),
    average("two of 3.75 epochs, two cached epochs", "3.75 epochs", f"{FIXRES} --cached-epochs 2"),
    *seeds("colour", 3, 2, flags=COLOUR, against=THREE),
    *seeds("crops from 36 px", 3, 2, flags="--crop-side 36 64", against=THREE),
    *seeds("rate 1e-3", 3, 2, flags="--lr 1e-3", against=THREE),
    *seeds("batch 128", 3, 1, flags="--batch 128 --lr 7e-4 --ema 0.996", against=THREE),
    *seeds("no average of weights", 3, 1, flags="--ema 0", against=THREE),
    *seeds("average of the tail", 3, 1, flags="--ema 0.9995", against=THREE),
    *seeds("no label smoothing", 3, 1, flags="--label-smoothing 0", against=THREE),
    *seeds("cosine logits", 3, 1, change="cosine", against=THREE),
    *seeds("pool5 alone", 3, 1, base="--size 96 --features pool5:grid2", against=THREE),
    *seeds("base at 64 px", 3, 1, base="--size 64", against=THREE),
    *seeds("2 at 64 px, 2.1 at 96 px", 4.1, 1, change="growing 2", against=THREE),
)


@contextlib.contextmanager
def growing(epochs: str) -> Iterator[None]:
    """Show images of 64 px in the first `epochs`."""
    from tinynet.training import inputs

    plain = inputs.augment_images

    def augment(images: Tensor, rows: Tensor, stage: Stage, draws: inputs.Draws) -> Tensor:
        small = replace(stage, size=64) if draws.epoch < int(epochs) else stage
        return plain(images, rows, small, draws)

    inputs.augment_images = augment  # type: ignore[assignment]
    try:
        yield
    finally:
        inputs.augment_images = plain


@contextlib.contextmanager
def cosine(_: str) -> Iterator[None]:
    """Make the logits 16 times the cosine between the last hidden layer and a class's weights."""
    from tinynet.models.classifier import Head

    def forward(self: Head, features: Tensor) -> Tensor:
        *hidden, last = self
        for layer in hidden:
            features = layer(features)
        return 16 * F.linear(F.normalize(features), F.normalize(last.weight)) + last.bias

    Head.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del Head.forward


CHANGES: dict[str, Callable[[str], contextlib.AbstractContextManager]] = {
    "": contextlib.nullcontext,
    "growing": growing,
    "cosine": cosine,
}
OF_NETWORK = ("cosine",)  # changes that base has, too


@dataclass(frozen=True)
class Place:
    """Where the data and the results are."""

    data: str
    weights: str
    out: Path

    def folder(self, kind: str, name: str) -> Path:
        """A folder of a run, a log or scores."""
        return self.out / kind / name.replace(",", "").replace(" ", "-")

    def scores(self, name: str) -> Path:
        """The file of a job's predicted classes."""
        return self.folder("scores", f"{name}.npz")


def train_base(place: Place, flags: str, change: str = "") -> Path:
    """Train the head on the features of the frozen network, unless there is such a run."""
    from tinynet import train

    run = place.folder("runs", f"base {flags} {change}".rstrip())
    if not (run / "base" / "scores.jsonl").is_file():
        shutil.rmtree(run, ignore_errors=True)  # of an earlier start
        paths = ("--out", str(run), "--data", place.data, "--weights", place.weights)
        with CHANGES[change](""):
            train.main([*f"--stage base --cached-epochs 1 {flags}".split(), *paths])
    return run


def train_job(place: Place, job: Training) -> None:
    """Train a finetune and store what it predicts."""
    from tinynet import train

    run, (change, _, value) = place.folder("runs", job.name), job.change.partition(" ")
    shutil.rmtree(run, ignore_errors=True)
    base = train_base(place, job.base, change if change in OF_NETWORK else "")
    late = f"--stage finetune --size 96 --epochs {job.epochs} --seed {job.seed} {job.flags}"
    with CHANGES[change](value):
        train.main([*late.split(), "--run", str(base), "--out", str(run)])
        store(place, job.name, run, ["flip"])


def average_job(place: Place, job: Average) -> None:
    """Average the members' weights, train the head again and store what it predicts."""
    from tinynet import train
    from tinynet.training.plans import larger_size

    mean, run = place.folder("runs", f"mean {job.name}"), place.folder("runs", job.name)
    for folder in (mean, run):
        shutil.rmtree(folder, ignore_errors=True)
    write_average([place.folder("runs", name) for name in job.members], mean)
    train.main([*f"--stage fixres {job.flags}".split(), "--run", str(mean), "--out", str(run)])
    size = int(job.flags.split()[1])
    store(place, job.name, run, ["flip", f"flip+scales:{size},{larger_size(size)}"])


def write_average(members: list[Path], run: Path) -> None:
    """Write the mean of the weights of finetunes as a run, with recomputed batch norms."""
    from tinynet.compute import choose_compute
    from tinynet.models.checkpoint import load_model, save_model
    from tinynet.runs import StageFolder
    from tinynet.training.averages import mean_weights, with_updated_norms
    from tinynet.training.config import RunConfig, open_data

    folders = [StageFolder(member, "finetune") for member in members]
    config = RunConfig.of(folders[0])
    packed = open_data(None, None, config)
    loaded = [load_model(folder.best, packed.wnids, folder.origin) for folder in folders]
    mean, size = mean_weights([model for model, _ in loaded]), loaded[0][1]
    mean = with_updated_norms(mean, config, "finetune", packed, size, choose_compute())
    shutil.copytree(members[0], run)
    folder = StageFolder(run, "finetune")
    save_model(folder.best, mean, packed.wnids, size, origin=folder.origin)


def store(place: Place, name: str, run: Path, views: list[str]) -> None:
    """Store the classes (N,) that each set of views predicts, and the labels, by split."""
    import tinynet

    arrays: Arrays = {}
    for split in SPLITS:
        for view in views:
            probabilities = tinynet.Run(run).probabilities(split, tta=view)
            values = probabilities.log_probabilities
            mean = np.exp(values.astype(np.float32)).mean(0)
            arrays[f"{split}, {view.partition(':')[0]}"] = mean.argmax(1).astype(np.int16)
            arrays[f"{split}, one view"] = values[0].argmax(1).astype(np.int16)
            arrays[f"{split}, labels"] = probabilities.required_labels.astype(np.int16)
    temporary = place.folder("scores", f"part {name}.npz")
    np.savez(temporary, **arrays)
    temporary.rename(place.scores(name))


def work(place: Place, job: Training | Average) -> str | None:
    """Do a job in a worker; return what went wrong."""
    if place.scores(job.name).is_file():
        return None
    if isinstance(job, Average):
        missing = [name for name in job.members if not place.scores(name).is_file()]
        if missing:
            return f"{job.name}: not done, because {missing[0]} is missing"
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    log = place.folder("logs", f"{job.name}.txt")
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            if isinstance(job, Average):
                average_job(place, job)
            else:
                train_job(place, job)
        except BaseException:
            traceback.print_exc()
            return f"{job.name}: {traceback.format_exc(limit=1)}; see {log}"
    return None


def rows(place: Place) -> list[dict[str, Any]]:
    """A row for each job that has been scored, and for two seeds of it together."""
    right = {
        job.name: right_images(dict(np.load(place.scores(job.name))))
        for job in JOBS
        if place.scores(job.name).is_file()
    }
    results, groups = [], dict[str, list[Training | Average]]()
    for job in JOBS:
        if job.name in right:
            groups.setdefault(job.name.partition(", seed")[0], []).append(job)
    for name, jobs in groups.items():
        results += [row(job.name, [job], right) for job in jobs]
        if len(jobs) > 1:
            results.append(row(f"{name}, {len(jobs)} seeds", jobs, right))
    return results


def right_images(stored: Arrays) -> Arrays:
    """Whether each image (N,) is classified right, by split and views."""
    return {
        key: classes == stored[f"{key.partition(', ')[0]}, labels"]
        for key, classes in stored.items()
        if not key.endswith("labels")
    }


def row(name: str, jobs: Sequence[Training | Average], right: dict[str, Arrays]) -> dict[str, Any]:
    """Top-1 over all images and seeds, and the difference from the jobs that these are against."""
    from tinynet.score.compare import mcnemar

    def together(names: Sequence[str], key: str) -> np.ndarray:
        return np.concatenate([right[name][key] for name in names])

    own, others = [job.name for job in jobs], [job.against for job in jobs]
    result: dict[str, Any] = {"job": name}
    compared = all(other in right for other in others) and others != own
    if compared:
        result["against"] = others if len(others) > 1 else others[0]
    for key in sorted(right[own[0]]):
        result[key] = float(together(own, key).mean())
        if compared and key in right[others[0]]:
            gain = mcnemar(together(own, key), together(others, key))
            result |= {f"{key}, gain": gain.gain, f"{key}, p": gain.p}
    return result


def main() -> None:
    """Do the jobs that are left, and write the rows."""
    from seeds_and_sizes import arguments

    from tinynet.files import read_json, write_json

    args = arguments(__doc__ or "", workers=5)
    place = Place(args.data, args.weights, args.out)
    failures = []
    machine = place.out / "machine.json"
    if args.workers:
        from benchmarks.machine import facts
        from tinynet.compute import choose_compute

        train_base(place, Training("", 0).base)
        write_json(machine, facts(choose_compute()))
        with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
            for kind in (Training, Average):
                jobs = [(place, job) for job in JOBS if isinstance(job, kind)]
                failures += pool.starmap(work, jobs, chunksize=1)
    about = {"what": args.what, "machine": read_json(machine)}
    write_json(place.out / "rows.json", {**about, "rows": rows(place)})
    if any(failures):
        sys.exit("\n".join(filter(None, failures)))


if __name__ == "__main__":
    main()
