"""Search the tuned recipe's `base` on the hold-out: depths, head, rate, schedule. Val is never
looked at.

    python -m benchmarks.search depths --data DATA --weights data/vgg16-features.pth

Every candidate is the tuned recipe with some fields changed, trained on the same kept features of
every fifth picture (all with --every 1). The first candidate of a group is what the others are
compared with, by the exact paired McNemar test on the same held-out pictures.
"""

import time
from typing import Any

import numpy as np
import torch

from benchmarks.machine import facts
from tinynet import console
from tinynet.compute import Compute, choose_compute
from tinynet.data.batches import seeded_generator
from tinynet.data.download import find_data
from tinynet.data.packed import Packed, open_packed
from tinynet.data.splits import split_train
from tinynet.evaluation.evaluate import paired
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, run_command
from tinynet.models.classifier import Classifier
from tinynet.models.vgg import Backbone
from tinynet.models.weights import load_backbone
from tinynet.score.metrics import score
from tinynet.score.probabilities import head_probabilities
from tinynet.score.views import resize
from tinynet.training.config import WEIGHTS
from tinynet.training.features import FeatureCache, Features
from tinynet.training.inputs import steps_per_epoch
from tinynet.training.loop import Training, fit
from tinynet.training.recipes import TUNED


def both(*nodes: str) -> list[str]:
    """Mean and maximum of each depth."""
    return [f"{node}:{statistic}" for node in nodes for statistic in ("mean", "max")]


EVERY_RELU = [
    "relu1_2",
    "relu2_2",
    "relu3_1",
    "relu3_2",
    "relu3_3",
    "relu4_1",
    "relu4_2",
    "relu4_3",
    "relu5_1",
    "relu5_2",
    "relu5_3",
]
FIVE = ["pool5:grid2", *both("relu5_3"), "relu4_3:grid2", *both("relu4_3", "relu3_3")]
SUPERSET = [*both(*EVERY_RELU), "pool5:grid2", "relu5_3:grid2", "relu4_3:grid2", "relu3_3:grid2"]

GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "depths": {
        "five depths": dict(features=FIVE),
        "pool5 alone": dict(features=["pool5:grid2"]),
        "pool5, relu4_3": dict(features=["pool5:grid2", *both("relu4_3")]),
        "pool5, relu4_3, relu3_3": dict(features=["pool5:grid2", *both("relu4_3", "relu3_3")]),
        "five depths, relu2_2": dict(features=[*FIVE, *both("relu2_2")]),
        "five depths, relu4_2, relu5_2": dict(features=[*FIVE, *both("relu4_2", "relu5_2")]),
        "five depths, grid of relu3_3": dict(features=[*FIVE, "relu3_3:grid2"]),
        "five depths, grid of relu5_3": dict(features=[*FIVE, "relu5_3:grid2"]),
        "every relu, pool5": dict(features=[*both(*EVERY_RELU), "pool5:grid2"]),
        "every relu, pool5, grid of relu4_3": dict(
            features=[*both(*EVERY_RELU), "pool5:grid2", "relu4_3:grid2"]
        ),
        "everything": dict(features=SUPERSET),
        "means only": dict(features=["pool5:grid2", *(f"{d}:mean" for d in EVERY_RELU)]),
        "maxima only": dict(features=["pool5:grid2", *(f"{d}:max" for d in EVERY_RELU)]),
    },
    "head": {
        "as it is": {},
        "one layer": dict(hidden=(1024,)),
        "one wide layer": dict(hidden=(2048,)),
        "wider": dict(hidden=(2048, 1024)),
        "linear": dict(hidden=()),
        "dropout 0.3": dict(dropout=0.3),
        "dropout 0.7": dict(dropout=0.7),
        "not standardised": dict(standardise=False),
        "rate 1e-3": dict(lr=1e-3),
        "rate 4e-3": dict(lr=4e-3),
        "decay 0.2": dict(weight_decay=0.2),
        "no smoothing": dict(label_smoothing=0.0),
        "smoothing 0.2": dict(label_smoothing=0.2),
        "batch 128": dict(batch=128),
        "batch 512": dict(batch=512),
        "average of late weights": dict(ema=0.99),
    },
    "schedule": {
        "cyclic, 1 cycle": {},
        "cyclic, 2 cycles": dict(cycles=2.0),
        "onecycle": dict(schedule="onecycle"),
        "cosine": dict(schedule="cosine"),
        "constant": dict(schedule="constant"),
    },
}


def main() -> None:
    """The command."""
    parser = Parser("benchmarks.search", __doc__)
    parser.add_argument("group", choices=tuple(GROUPS))
    parser.add_argument(
        "--every",
        type=int,
        default=5,
        metavar="N",
        help="learn from every Nth picture (default: 5)",
    )
    parser.add_argument("--epochs", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="seeds of each candidate (default: 1)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="candidates to try, after the first (default: all)",
    )
    add_common(parser, "data", "cache", "weights", "out", "device", "precision")
    asked = parser.parse_args()
    compute = choose_compute(asked.device, asked.precision)
    packed, backbone = (
        open_packed(find_data(asked.data), asked.cache),
        load_backbone(asked.weights or WEIGHTS),
    )
    if asked.group == "depths":  # all of them in one pass, not one for each candidate
        candidate(packed, backbone, dict(features=SUPERSET), 50, 1, 0, compute)
    rows, first = [], {}
    for name, given in GROUPS[asked.group].items():
        if asked.only and rows and name not in asked.only:
            continue
        for seed in range(asked.seeds):
            row, right = candidate(
                packed, backbone, given, asked.every, asked.epochs, seed, compute
            )
            first.setdefault(seed, right)
            row = {
                "candidate": name,
                "changed": given,
                **row,
                **paired(right, first[seed]).to_json(),
            }
            rows.append(row)
            console.log(
                f"{name}, seed {seed}: {row['top1']:.2%} ({row['low']:.2%} .. {row['high']:.2%}), "
                f"{row['gain']:+.2%} (p = {row['p']:.2g}), {row['features']:,} numbers, "
                f"{row['seconds']:.0f} s"
            )
    out = asked.out or f"benchmarks/results/search-{asked.group}.json"
    what = (
        f"tuned base, every {asked.every}th picture, {asked.epochs} epochs, judged on the hold-out"
    )
    write_json(out, {"what": what, "machine": facts(compute), "rows": rows})
    print(out)


def candidate(
    packed: Packed,
    backbone: Backbone,
    given: dict[str, Any],
    every: int,
    epochs: int,
    seed: int,
    compute: Compute,
) -> tuple[dict[str, Any], np.ndarray]:
    """The hold-out's score of one candidate, and which held-out pictures it gets right."""
    recipe = TUNED.override({"epochs": epochs, **given}, ("base",))
    stage, network = recipe.base, recipe.network
    split = split_train(packed.train.labels)
    torch.manual_seed(seeded_generator("cpu", seed, "search").initial_seed())
    model = Classifier(
        backbone,
        network.features,
        network.hidden,
        len(packed.wnids),
        stage.dropout,
        network.standardise,
    )
    model.to(compute.device).train_only(stage.trainable)
    cache = FeatureCache(model, packed, compute)
    features = thin(cache.train_features(split.train, stage, seed), every)
    holdout = cache.view_features(
        packed.train, split.holdout, lambda x: resize(x, stage.size), stage
    )
    steps = steps_per_epoch(len(features.labels), stage.batch)
    training = Training(model.head, {"head": [model.head]}, stage, steps, compute)
    started = time.perf_counter()
    results = []

    def check(head: torch.nn.Module) -> dict[str, Any]:
        results.append(head_probabilities(head.eval(), holdout.in_order(compute.device)))
        return score(results[-1], holdout.labels)

    for _ in fit(
        training,
        lambda epoch, start: features.epoch(seed, epoch, stage.batch, compute.device, start),
        check,
    ):
        pass
    # The last epoch, not the best: the best of several looks at the hold-out would flatter.
    row = {
        "seed": seed,
        "features": sum(a.shape[2] for a in features.arrays),
        **score(results[-1], holdout.labels),
        "seconds": time.perf_counter() - started,
    }
    return row, results[-1].argmax(1) == holdout.labels


def thin(features: Features, every: int) -> Features:
    """Every Nth picture of cached features, in memory."""
    if every == 1:
        return features
    return Features(
        tuple(np.ascontiguousarray(a[:, ::every]) for a in features.arrays),
        features.labels[::every],
    )


if __name__ == "__main__":
    run_command(main)
