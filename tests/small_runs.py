"""Small trainings for tests: a recipe, a classifier, a loop on a small module, interruptions."""

import copy
import itertools
import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from support import CPU, ON_CPU, SMALL, argv
from torch import nn

from tinynet import console, runs
from tinynet.models.classifier import Classifier
from tinynet.models.vgg import VGG16
from tinynet.runs import StageFolder
from tinynet.score.probabilities import Probabilities
from tinynet.training import features
from tinynet.training.config import RunConfig
from tinynet.training.loop import Training, WeightGroup
from tinynet.training.recipes import TUNED, Stage

# Flags of a base with crops, and of a finetune.
CROPPED = (*SMALL, *argv("--epochs 2 --crop-side 28 32 --taps pool5:grid2 relu4_3:mean"))
LATER_FLAGS = (*argv("--epochs 2 --batch 16 --size 32 --crop-side 28 32"), *ON_CPU)
# Keys of the rows that a training and an evaluation print.
SCORE_KEYS = argv(
    "run stage split views merge size n top1 top5 loss ece low high balanced worst worst_class"
)
TRAINED_KEYS = [*SCORE_KEYS, "precision"]
SCORED_KEYS = [
    *TRAINED_KEYS,
    *argv("forwards pictures_per_second gain gain_low gain_high p"),
]

TIMES = {"seconds", "pictures_per_second"}


def after(questions):
    """Says yes from the n-th question on."""
    numbers = itertools.count(1)
    return lambda: next(numbers) >= questions


def interrupt_at(patch, question):
    """Ctrl-C before the loop asks for the n-th time: after each step and once more after each
    epoch.
    """
    stop = after(question)
    patch.setattr(console, "stop_on_interrupt", lambda: nullcontext(stop))


def differences(one, other, place=""):
    """Where two nests of tensors and plain values differ, bit for bit; times aside."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{place}: keys {one.keys() ^ other.keys()}"]
        return [
            d
            for key in one
            if key not in TIMES
            for d in differences(one[key], other[key], f"{place}/{key}")
        ]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{place}: {len(one)} and {len(other)} entries"]
        return [
            d
            for i, pair in enumerate(zip(one, other, strict=True))
            for d in differences(*pair, f"{place}/{i}")
        ]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [f"{place}: {one} and {other}"]


TRAIN_ROWS = np.arange(1, 72, 3)  # 24 images of all classes
CROPPED_STAGE = Stage(
    size=32, batch=8, cached_epochs=2, feature_dtype="float32", flip="random", crop_side=(40, 64)
)


def small_classifier(feature_names=("pool5:grid2", "relu4_3:max"), seed=0):
    torch.manual_seed(seed)
    return Classifier(VGG16(), feature_names, (16,), 6, 0.5, True)


def with_cache(packed, folder):
    """The same images with another place for their features."""
    other = copy.copy(packed)
    other.folder = folder / packed.folder.name
    return other


def cached_features(
    packed, cache, model=None, stage=CROPPED_STAGE, seed=0, rows=TRAIN_ROWS, compute=CPU
):
    place = features.FeatureCache(model or small_classifier(), with_cache(packed, cache), compute)
    return place.train_features(rows, stage, seed)


def folders(cache_folder):
    return {path.name for path in cache_folder.glob("features-*")}


def toy():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def toy_training(compute=CPU, **changes):
    stage = Stage(**{"epochs": 2, "batch": 8, "schedule": "constant", "lr": 0.01, **changes})
    module = toy()
    return Training(module, [WeightGroup(list(module.parameters()), 1)], stage, 3, compute)


def of_kind(rows, kind):
    return [row for row in rows if row["kind"] == kind]


def small_recipe(base=(), finetune=(), **both):
    """The tuned recipe in small: two epochs of three steps in either stage, with all that depends
    on chance.
    """
    recipe = TUNED.override(
        {
            "hidden": (16,),
            "holdout": 0.2,
            "size": 32,
            "batch": 20,
            "epochs": 2,
            "features": ("pool5:grid2", "relu4_3:mean"),
            **both,
        }
    )
    base = {
        "flip": "random",
        "crop_side": (40, 64),
        "feature_dtype": "float32",
        "cached_epochs": 2,
        **dict(base),
    }
    layers = ("conv1", "conv2", "conv3", "conv4", "conv5", "head")
    finetune = {"trainable": layers, "crop_side": (40, 64), "ema": 0.7, **dict(finetune)}
    return recipe.override(base, ("base",)).override(finetune, ("finetune",))


def run_config(archive_path, cache_folder, **changes):
    recipe = small_recipe(**{k: changes.pop(k) for k in ("base", "finetune") if k in changes})
    return RunConfig(
        **{
            "recipe": recipe,
            "data": str(archive_path),
            "cache": str(cache_folder),
            "weights": "none",
            **changes,
        }
    )


def checkpoints(run):
    return {
        f"{stage}/{name}": torch.load(run / stage / name, weights_only=True)
        for stage in runs.WHOLE
        for name in ("best.pt", "last.pt")
    }


def score_rows(ran):
    assert ran.status == 0, ran.err
    rows = json.loads(ran.out)
    assert isinstance(rows, list) and all(list(row) in (TRAINED_KEYS, SCORED_KEYS) for row in rows)
    return rows


def stored_views(stage, split):
    """The probabilities that the finished run has kept, by the names of their views."""
    found = [
        Probabilities.load(path)
        for path in Path(f"runs/done/{stage}/probabilities").glob(f"{split}-*.npz")
    ]
    return {one.views[0]: one for one in found}


def copy_run(name, age, without=()):
    """A copy of the finished run, begun `age` seconds earlier than another."""
    shutil.copytree("runs/done", f"runs/{name}", ignore=shutil.ignore_patterns(*without))
    for recipe in Path("runs", name).rglob("recipe.json"):
        stamp = recipe.stat().st_mtime - age
        os.utime(recipe, (stamp, stamp))


def best_weights(run, stage="finetune"):
    return torch.load(StageFolder(run, stage).best, weights_only=True)["weights"]


def same_tensors(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
