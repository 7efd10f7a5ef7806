"""Compare settings of `finetune` on the hold-out, each from the same finished base.

    python -m tinynet.train --stage base --arch timm/tf_efficientnet_lite0 --weights lite0.pth \\
        --per-class 125 --holdout 0.2 --size 128 --out runs/small
    python -m benchmarks.finetunes runs/small --out small.json --flags --epochs 2 --size 128

Every candidate is a run of `tinynet train` with some flags, and is compared with the first one on
the same held-out images (McNemar's exact paired test). The score is that of each run's best epoch
on these images, so all scores are a little too high. Val is not used. Runs are written next to RUN;
those of the same flags are continued or used again, and then `seconds` means nothing. `--flags`
takes flags for all candidates; it comes last.
"""

import argparse
import hashlib
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import facts
from tinynet import console, train
from tinynet.compute import choose_compute
from tinynet.data.copies import open_packed
from tinynet.data.download import find_data
from tinynet.evaluation.predictor import Predictor
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, run_command, user_path
from tinynet.runs import StageFolder
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import score
from tinynet.score.views import view_set

CANDIDATES = {
    "as it is": "",
    "no decay by layer": "--lr-decay 1",
    "decay by layer 0.65": "--lr-decay 0.65",
    "rate 2e-4": "--lr 2e-4",
    "rate 1e-3": "--lr 1e-3",
    "rate 2e-3": "--lr 2e-3",
    "no average": "--ema 0",
    "whole images": "--crop-side",
    "wider crops": "--crop-side 36 64",
    "dropout 0.5": "--dropout 0.5",
    "no weight decay": "--weight-decay 0",
    "head alone": "--trainable head",
}


def main() -> None:
    """Run the command."""
    parser = Parser("benchmarks.finetunes", __doc__)
    parser.add_argument("base", type=Path, metavar="RUN", help="a run with a finished base")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="candidates to compare with the first"
    )
    add_common(parser, "data", "cache", "device", "precision")
    parser.add_argument("--out", type=user_path, required=True, help="file for the result")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="for all candidates")
    options = parser.parse_args()
    packed = open_packed(find_data(options.data), options.cache)
    compute = choose_compute(options.device, options.precision)
    rows, first = [], None
    for name, flags in CANDIDATES.items():
        if options.only and rows and name not in options.only:
            continue
        words = [*options.flags, *shlex.split(flags)]
        digest = hashlib.sha256(shlex.join(words).encode()).hexdigest()[:6]
        run = options.base.with_name(f"{options.base.name}-{name.replace(' ', '-')}-{digest}")
        folder = StageFolder(run, "finetune")
        started = time.perf_counter()
        if folder.started and not folder.finished:
            train.main(["--resume", str(run)])
        elif not folder.finished:
            where = ["--data", str(packed.manifest["source"]), "--cache", str(packed.cache)]
            start = ["--stage", "finetune", "--run", str(options.base), "--out", str(run)]
            train.main([*start, *where, *words])
        seconds = time.perf_counter() - started
        row, hits = result(Predictor(folder, packed, compute))
        first = hits if first is None else first
        rows.append(
            {"candidate": name, "flags": flags, **row, **mcnemar(hits, first).to_json()}
            | {"seconds": seconds}
        )
        console.log(f"{name}: {row['top1']:.2%}, {rows[-1]['gain']:+.2%} (p = {rows[-1]['p']:.2g})")
    what = f"finetune from {options.base.name}, {' '.join(options.flags)}, on the hold-out"
    write_json(options.out, {"what": what, "machine": facts(compute), "rows": rows})
    print(options.out)


def result(predictor: Predictor) -> tuple[dict[str, Any], np.ndarray]:
    """The hold-out score of a run with one view, and (N,) booleans: is each prediction correct?"""
    probabilities = predictor.predict("holdout", view_set("none", predictor.size))
    values, labels = probabilities.log_probabilities[0], probabilities.labels
    return score(values, labels).to_json(), values.argmax(1) == labels


if __name__ == "__main__":
    run_command(main)
