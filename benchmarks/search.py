"""Compare settings of `base` on the hold-out: layers, head, learning rate, schedule.

    python -m benchmarks.search depths --data DATA --weights data/vgg16-features.pth
    python -m benchmarks.search stages --arch timm/tf_efficientnet_lite0 --weights lite0.pth

Every candidate is the network's recipe with some fields changed, for 8 epochs (`--epochs`), trained
on the cached features of every fifth training image (all images with `--every 1`). All candidates
of a group are compared with its first one on the same held-out images (McNemar's exact paired
test). Val is not used.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.machine import facts
from tinynet import console
from tinynet.compute import Compute, choose_compute
from tinynet.data.batches import seeded_generator
from tinynet.data.copies import open_packed
from tinynet.data.download import find_data
from tinynet.data.packed import Packed
from tinynet.data.splits import split_train
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, run_command, user_path
from tinynet.models.backbone import Backbone
from tinynet.models.backbones import VGG, compute_for, load_backbone
from tinynet.models.classifier import Classifier
from tinynet.records import Score
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import score
from tinynet.score.probabilities import head_probabilities
from tinynet.score.views import resize
from tinynet.training.features import FeatureCache, Features
from tinynet.training.loop import Training, fit, weight_groups
from tinynet.training.order import steps_per_epoch
from tinynet.training.recipes import Recipe, recipe_for


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
LAST = ["last:mean", *both("last-1")]
# All features of a group of candidates, which are extracted in one pass.
SUPERSETS = {
    "depths": [
        *both(*EVERY_RELU),
        *(f"{node}:grid2" for node in ("pool5", "relu5_3", "relu4_3", "relu3_3")),
    ],
    "stages": ["last:grid2", *both("last", "last-1", "last-2", "last-3"), "last-1:grid2"],
}

GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "depths": {
        "as it is": dict(features=FIVE),
        "pool5 alone": dict(features=["pool5:grid2"]),
        "pool5, relu4_3": dict(features=["pool5:grid2", *both("relu4_3")]),
        "pool5, relu4_3, relu3_3": dict(features=["pool5:grid2", *both("relu4_3", "relu3_3")]),
        "as it is, relu2_2": dict(features=[*FIVE, *both("relu2_2")]),
        "as it is, relu4_2, relu5_2": dict(features=[*FIVE, *both("relu4_2", "relu5_2")]),
        "as it is, grid of relu3_3": dict(features=[*FIVE, "relu3_3:grid2"]),
        "as it is, grid of relu5_3": dict(features=[*FIVE, "relu5_3:grid2"]),
        "every relu, pool5": dict(features=[*both(*EVERY_RELU), "pool5:grid2"]),
        "every relu, pool5, grid of relu4_3": dict(
            features=[*both(*EVERY_RELU), "pool5:grid2", "relu4_3:grid2"]
        ),
        "everything": dict(features=SUPERSETS["depths"]),
        "means only": dict(features=["pool5:grid2", *(f"{d}:mean" for d in EVERY_RELU)]),
        "maxima only": dict(features=["pool5:grid2", *(f"{d}:max" for d in EVERY_RELU)]),
    },
    "stages": {
        "as it is": dict(features=LAST),
        "last": dict(features=["last:mean"]),
        "last, its maxima": dict(features=both("last")),
        "means of last, last-1": dict(features=["last:mean", "last-1:mean"]),
        "last, last-1, their maxima": dict(features=both("last", "last-1")),
        "last, last-1, last-2": dict(features=[*LAST, *both("last-2")]),
        "last to last-3": dict(features=[*LAST, *both("last-2", "last-3")]),
        "grid of last, last-1": dict(features=["last:grid2", *both("last-1")]),
        "last, grid of last-1": dict(features=["last:mean", "last-1:grid2", "last-1:max"]),
        "everything": dict(features=SUPERSETS["stages"]),
    },
    "head": {
        "as it is": {},
        "one layer": dict(hidden=(1024,)),
        "two layers": dict(hidden=(1024, 1024)),
        "one wide layer": dict(hidden=(2048,)),
        "wider": dict(hidden=(2048, 1024)),
        "linear": dict(hidden=()),
        "dropout 0.3": dict(dropout=0.3),
        "dropout 0.7": dict(dropout=0.7),
        "not standardised": dict(standardise=False),
        "rate 1e-3": dict(lr=1e-3),
        "rate 4e-3": dict(lr=4e-3),
        "rate 5e-4": dict(lr=5e-4),
        "weight decay 0.2": dict(weight_decay=0.2),
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
    parser.add_argument("--arch", default=VGG, metavar="NAME", help="network (default: vgg16)")
    parser.add_argument("--size", type=int, metavar="N", help="pixels (default: the recipe's)")
    parser.add_argument("--weights", default="DEFAULT", help="as of tinynet train")
    add_common(parser, "data", "cache", "device", "precision")
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        help="file for the result (default: benchmarks/results/search-GROUP.json)",
    )
    options = parser.parse_args()
    recipe = recipe_for(options.arch).override(
        {"arch": options.arch, "epochs": options.epochs}
        | ({"size": options.size} if options.size else {}),
        ("base",),
    )
    compute = choose_compute(options.device, options.precision)
    search = Search(
        open_packed(find_data(options.data), options.cache),
        load_backbone(options.arch, options.weights),
        recipe,
        compute_for(compute, options.arch),
        options.every,
    )
    if superset := SUPERSETS.get(options.group):
        search.features(recipe.override({"features": superset}, ("base",)), 0)
    rows, first = [], {}
    for name, changes in GROUPS[options.group].items():
        if options.only and rows and name not in options.only:
            continue
        for seed in range(options.seeds):
            row, hits = search.candidate(changes, seed)
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
    result = {
        "what": f"{recipe.name} base of {options.arch}, {recipe.base.size} px, every "
        f"{options.every}th image, {options.epochs} epochs, accuracy on the hold-out",
        "machine": facts(search.compute),
        "rows": rows,
    }
    write_json(path, result)
    print(path)


@dataclass(frozen=True)
class Search:
    """The images and the network of all candidates; `every`: train on every Nth image."""

    packed: Packed
    backbone: Backbone
    recipe: Recipe
    compute: Compute
    every: int

    def features(self, recipe: Recipe, seed: int) -> tuple[Classifier, Features, Features]:
        """A new network, and the features of the training images and the hold-out."""
        stage, network = recipe.base, recipe.network
        torch.manual_seed(seeded_generator("cpu", seed, "search").initial_seed())
        model = Classifier(
            self.backbone,
            network.features,
            network.hidden,
            len(self.packed.wnids),
            stage.dropout,
            network.standardise,
        )
        model.to(self.compute.device).train_only(stage.trainable)
        split = split_train(self.packed.train.labels)
        cache = FeatureCache(model, self.packed, self.compute)
        train = cache.train_features(split.train[:: self.every], stage, seed)
        holdout = cache.view_features(
            self.packed.train, split.holdout, lambda x: resize(x, stage.size), stage
        )
        return model, in_memory(train), holdout

    def candidate(self, changes: dict[str, Any], seed: int) -> tuple[dict[str, Any], np.ndarray]:
        """The hold-out score of a candidate, and (N,) booleans: is each prediction correct?"""
        recipe = self.recipe.override(changes, ("base",))
        stage, device = recipe.base, self.compute.device
        model, features, holdout = self.features(recipe, seed)
        steps = steps_per_epoch(len(features.labels), stage.batch)
        training = Training(model.head, weight_groups(model, stage), stage, steps, self.compute)
        started = time.perf_counter()
        results = []

        def check(head: torch.nn.Module) -> Score:
            results.append(head_probabilities(head.eval(), holdout.in_order(device)))
            return score(results[-1], holdout.labels)

        for _ in fit(
            training,
            lambda epoch, start: features.epoch(seed, epoch, stage.batch, device, start),
            check,
        ):
            pass
        # The last epoch, not the best: choosing the best epoch on the hold-out would overestimate.
        row = {
            "seed": seed,
            "features": sum(a.shape[2] for a in features.arrays),
            **score(results[-1], holdout.labels).to_json(),
            "seconds": time.perf_counter() - started,
        }
        return row, results[-1].argmax(1) == holdout.labels


def in_memory(features: Features) -> Features:
    """Copies of memory-mapped features, which are read in random order."""
    return Features(tuple(np.array(a) for a in features.arrays), features.labels)


if __name__ == "__main__":
    run_command(main)
