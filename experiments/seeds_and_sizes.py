"""Train several finetunes of VGG16 on one GPU, and score them and their merges in pairs.

    PYTHONPATH=. python experiments/seeds_and_sizes.py ZIP WEIGHTS OUT

Each job trains `finetune` from a base at the same size, then `fixres`, if the job has a size for
it. The file `OUT/rows.json` has a row for each job: top-1 of one view, and of the mean over the
image and its horizontal flip. The other rows are pairs of jobs, with flips. "second minus first"
compares the two. "gain" is top-1 of the mean of both jobs' probabilities minus top-1 of the job
that is better on the hold-out. Both have p of McNemar's paired test. Choices are made on the
hold-out; val is only reported.

Several processes share the GPU, so the times in the logs do not measure speed.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import facts
from tinynet.compute import choose_compute
from tinynet.files import write_json
from tinynet.score.compare import mcnemar

LATE = ("conv4", "conv5", "head")
SPLITS = ("holdout", "val")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """A finetune of three epochs at `size` pixels.

    `fixres`: the size at which its head is trained again; None: not at all. `mixup`: the parameter
    of the beta distribution; 0: no mixup.
    """

    name: str
    size: int
    seed: int = 0
    trainable: tuple[str, ...] = LATE
    fixres: int | None = None
    mixup: float = 0.0


JOBS = (
    Job("late96 s0", 96, 0, fixres=112),
    Job("late96 s1", 96, 1, fixres=112),
    Job("late112 s0", 112, 0),
    Job("late112 s1", 112, 1),
    Job("late112 mixup", 112, mixup=0.2),
    Job("all112", 112, trainable=("all",)),
)


@dataclass(frozen=True)
class Place:
    """Where the data and the results are."""

    data: str
    weights: str
    out: Path

    def run(self, name: str) -> str:
        """The folder of a run."""
        return str(self.out / "runs" / name.replace(" ", "-"))

    def scores(self, name: str) -> Path:
        """The file of a job's probabilities."""
        return self.out / "scores" / f"{name}.npz"


def train_base(place: Place, size: int) -> None:
    """Train the head on the features of the frozen network."""
    from tinynet import train

    flags = f"--stage base --size {size} --cached-epochs 1".split()
    paths = ("--out", place.run(f"{size}"), "--data", place.data, "--weights", place.weights)
    train.main([*flags, *paths])


def train_job(place: Place, job: Job) -> str:
    """Train the stages of a job; return its run."""
    import mixup

    from tinynet import train
    from tinynet.training import single_stage

    run = place.run(job.name)
    flags = f"--stage finetune --size {job.size} --epochs 3 --seed {job.seed} --trainable".split()
    plain = single_stage.Training
    if job.mixup:
        mixup.Mixing.alpha = job.mixup
        single_stage.Training = mixup.Mixing
    try:
        train.main([*flags, *job.trainable, "--run", place.run(f"{job.size}"), "--out", run])
    finally:
        single_stage.Training = plain
    if job.fixres is None:
        return run
    other = f"{run}-{job.fixres}"
    train.main(f"--stage fixres --size {job.fixres} --run {run} --out {other}".split())
    return other


def score(run: str) -> Arrays:
    """Classes (N,) from one view, and probabilities (N, C) of images and their flips, by split."""
    import tinynet

    arrays = {}
    for split in SPLITS:
        values = tinynet.Run(run).probabilities(split, tta="flip").log_probabilities
        arrays |= {f"{split}, one view": values[0].argmax(1)}
        arrays |= {f"{split}, flip": np.exp(values).mean(0)}
    return arrays


def work(place: Place, job: Job) -> str | None:
    """Train and score a job in a worker; return what went wrong."""
    place.scores(job.name).unlink(missing_ok=True)  # of an earlier start
    log = place.out / "logs" / f"{job.name}.txt"
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            np.savez(place.scores(job.name), **score(train_job(place, job)))
        except BaseException:
            traceback.print_exc()
            return f"{job.name}: {traceback.format_exc(limit=1)}; see {log}"
    return None


def rows(stored: dict[str, Arrays], labels: Arrays) -> list[dict[str, Any]]:
    """Rows of the jobs, then of their merges in pairs."""

    def correct(names: tuple[str, ...], split: str) -> np.ndarray:
        mean = np.mean([stored[name][f"{split}, flip"].astype(np.float32) for name in names], 0)
        return mean.argmax(1) == labels[split]

    def flip_scores(names: tuple[str, ...]) -> dict[str, float]:
        return {f"{split}, flip": float(correct(names, split).mean()) for split in SPLITS}

    results: list[dict[str, Any]] = []
    for name, arrays in stored.items():
        one_view = {
            f"{split}, one view": float((arrays[f"{split}, one view"] == labels[split]).mean())
            for split in SPLITS
        }
        results.append({"job": name, **one_view, **flip_scores((name,))})
    for names in itertools.combinations(stored, 2):
        better = max(names, key=lambda name: correct((name,), "holdout").mean())
        row: dict[str, Any] = {"merge": names, "better alone": better, **flip_scores(names)}
        for split in SPLITS:
            first, second, both = (correct(group, split) for group in (names[:1], names[1:], names))
            gain = mcnemar(both, second if better == names[1] else first)
            row |= {f"{split}, gain": gain.gain, f"{split}, p of gain": gain.p}
            change = mcnemar(second, first)
            row |= {
                f"{split}, second minus first": change.gain,
                f"{split}, p of second minus first": change.p,
            }
        results.append(row)
    return results


def arguments(text: str, workers: int) -> argparse.Namespace:
    """Read `data`, `weights`, `out` and `workers`, and make the folders of the results.

    `text`: what the experiment does, in its first line, which is returned as `what`.
    """
    what, *_ = text.splitlines()
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("data")
    parser.add_argument("weights")
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=workers, help="jobs at once")
    args = parser.parse_args(namespace=argparse.Namespace(what=what))
    args.out = args.out.resolve()
    for folder in ("runs", "logs", "scores"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    os.environ["TINYNET_PROGRESS"] = "0"
    return args


def main() -> None:
    """Train the bases, then the jobs, and write the rows."""
    import tinynet

    args = arguments(__doc__ or "", workers=4)
    place = Place(args.data, args.weights, args.out)
    for size in sorted({job.size for job in JOBS}):
        train_base(place, size)
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        failures = pool.starmap(work, [(place, job) for job in JOBS], chunksize=1)
    run = tinynet.Run(place.run(f"{JOBS[0].size}"))
    labels = {split: run.probabilities(split).required_labels for split in SPLITS}
    stored = {
        job.name: dict(np.load(place.scores(job.name)))
        for job in JOBS
        if place.scores(job.name).is_file()
    }
    about = {"what": args.what, "machine": facts(choose_compute())}
    write_json(place.out / "rows.json", {**about, "rows": rows(stored, labels)})
    if any(failures):
        sys.exit("\n".join(filter(None, failures)))


if __name__ == "__main__":
    main()
