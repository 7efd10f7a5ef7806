"""Compare settings of the tuned `base` on the hold-out: layers, head, learning rate, schedule.

    python -m benchmarks.search depths --data DATA --weights data/vgg16-features.pth

Every candidate is the tuned recipe with some fields changed, trained on the same cached features of
every fifth image (all images with --every 1). All candidates of a group are compared with its first
one on the same held-out images (McNemar's exact paired test). Val is not used.
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
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, run_command, user_path
from tinynet.models.classifier import Classifier
from tinynet.models.vgg import VGG16
from tinynet.models.weights import load_vgg16
from tinynet.records import Score
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import score
from tinynet.score.probabilities import head_probabilities
from tinynet.score.views import resize
from tinynet.training.config import WEIGHTS
from tinynet.training.features import FeatureCache, Features
from tinynet.training.inputs import steps_per_epoch
from tinynet.training.loop import Training, fit, weight_groups
from tinynet.training.recipes import TUNED


def both(*nodes: str) -> list[str]:
    """Mean and maximum of each layer."""
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
    """Run the command."""
    parser = Parser("benchmarks.search", __doc__)
    parser.add_argument("group", choices=tuple(GROUPS), help="what to compare")
    parser.add_argument(
        "--every",
        type=int,
        default=5,
        metavar="N",
        help="train on every Nth image (default: 5)",
    )
    parser.add_argument(
        "--epochs", type=int, default=8, metavar="N", help="number of epochs (default: 8)"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="seeds per candidate (default: 1)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="candidates to compare with the first (default: all)",
    )
    add_common(parser, "data", "cache", "weights", "device", "precision")
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        help="file for the result (default: benchmarks/results/search-GROUP.json)",
    )
    options = parser.parse_args()
    compute = choose_compute(options.device, options.precision)
    packed, backbone = (
        open_packed(find_data(options.data), options.cache),
        load_vgg16(options.weights or WEIGHTS),
    )
    if options.group == "depths":  # extract the features of all layers in one pass
        candidate(packed, backbone, dict(features=SUPERSET), 50, 1, 0, compute)
    rows, first = [], {}
    for name, changes in GROUPS[options.group].items():
        if options.only and rows and name not in options.only:
            continue
        for seed in range(options.seeds):
            row, hits = candidate(
                packed, backbone, changes, options.every, options.epochs, seed, compute
            )
            first.setdefault(seed, hits)
            row = {
                "candidate": name,
                "changed": changes,
                **row,
                **mcnemar(hits, first[seed]).to_json(),
            }
            rows.append(row)
            console.log(
                f"{name}, seed {seed}: {row['top1']:.2%} ({row['low']:.2%} .. {row['high']:.2%}), "
                f"{row['gain']:+.2%} (p = {row['p']:.2g}), {row['features']:,} numbers, "
                f"{row['seconds']:.0f} s"
            )
    path = options.out or f"benchmarks/results/search-{options.group}.json"
    images = f"every {options.every}th image"
    what = f"tuned base, {images}, {options.epochs} epochs, accuracy on the hold-out"
    write_json(path, {"what": what, "machine": facts(compute), "rows": rows})
    print(path)


def candidate(
    packed: Packed,
    backbone: VGG16,
    changes: dict[str, Any],
    every: int,
    epochs: int,
    seed: int,
    compute: Compute,
) -> tuple[dict[str, Any], np.ndarray]:
    """The hold-out score of one candidate, and (N,) booleans: is each prediction correct?"""
    recipe = TUNED.override({"epochs": epochs, **changes}, ("base",))
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
    training = Training(model.head, weight_groups(model, stage), stage, steps, compute)
    started = time.perf_counter()
    results = []

    def check(head: torch.nn.Module) -> Score:
        results.append(head_probabilities(head.eval(), holdout.in_order(compute.device)))
        return score(results[-1], holdout.labels)

    for _ in fit(
        training,
        lambda epoch, start: features.epoch(seed, epoch, stage.batch, compute.device, start),
        check,
    ):
        pass
    # The last epoch, not the best: choosing the best epoch on the hold-out would overestimate it.
    row = {
        "seed": seed,
        "features": sum(a.shape[2] for a in features.arrays),
        **score(results[-1], holdout.labels).to_json(),
        "seconds": time.perf_counter() - started,
    }
    return row, results[-1].argmax(1) == holdout.labels


def thin(features: Features, every: int) -> Features:
    """Every Nth image of cached features, in memory."""
    if every == 1:
        return features
    return Features(
        tuple(np.ascontiguousarray(a[:, ::every]) for a in features.arrays),
        features.labels[::every],
    )


if __name__ == "__main__":
    run_command(main)
