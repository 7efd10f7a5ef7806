"""What the tests of several processes start with torchrun: one job after another, on every rank.

    torchrun --nproc-per-node N tests/ranks.py OUT JOB ...

Each job returns values that rank R writes to OUT/JOB-R.pt.
"""

import contextlib
import io
import os
import sys
from pathlib import Path

import pytest
import torch
from support import ON_CPU, argv, thin_network
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from tinynet import evaluate, folder, pick, predict, train
from tinynet.compute import choose_compute
from tinynet.distributed import get_world, join
from tinynet.errors import InputError
from tinynet.models.backbones import load_backbone
from tinynet.models.classifier import Classifier, update_bn
from tinynet.models.global_batch import GlobalBatch
from tinynet.records import EpochRow
from tinynet.runs import WHOLE
from tinynet.score.metrics import score
from tinynet.training.loop import Training, WeightGroup, fit, weight_groups
from tinynet.training.order import Shuffle
from tinynet.training.recipes import Stage

NETWORK = [
    *argv("--arch resnet18 --weights none --size 32 --hidden 8 --holdout 0.25 --batch 10"),
    *argv("--epochs 2 --crop-side 48 64"),
    *ON_CPU,
]


def network():
    """Batch norm, dropout, stochastic depth: all that depends on the whole batch."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),  # before batch norm a bias has no gradient but noise
        nn.BatchNorm2d(4),
        StochasticDepth(0.3, "row"),
        nn.Flatten(),
        nn.BatchNorm1d(4 * 6 * 6, momentum=None),
        nn.Dropout(0.4),
        nn.Linear(4 * 6 * 6, 5),
    ).double()


def step(world, count):
    """Two training steps on `count` images: outputs, gradients, statistics, random state."""
    model, images = network(), torch.randn(count, 3, 8, 8, dtype=torch.float64)
    labels, share = torch.arange(count) % 5, world.share(count)
    outputs = []
    for _ in range(2):
        with GlobalBatch(world, count):
            # A rank without images has one that does not count.
            empty = share.start == share.stop
            logits = model(torch.zeros_like(images[:1]) if empty else images[share])
        logits = logits[: share.stop - share.start]
        F.cross_entropy(logits, labels[share], reduction="sum").backward()
        outputs.append(logits.detach())
    gradients = [world.sum(weight.grad) for weight in model.parameters()]
    return {
        "logits": torch.cat([torch.from_numpy(world.gather(each.numpy())) for each in outputs]),
        "gradients": gradients,
        "statistics": list(model.buffers()),
        "random": torch.get_rng_state(),
    }


def steps(world):
    """Batches that every rank has a part of, and one of fewer images than ranks."""
    return [step(world, count) for count in (7, 2)]


def norms(world):
    """Recomputed batch norms, of batches that are not equal."""
    model, batches = network(), torch.randn(13, 3, 8, 8, dtype=torch.float64).split(5)
    shares = [batch[world.share(len(batch))] for batch in batches]
    counts = iter([len(batch) for batch in batches])
    update_bn(model, shares, lambda: GlobalBatch(world, next(counts)), least=1)
    return list(model.buffers())


def hundred_steps(world):
    """A hundred steps with an average of the weights, and what is decided after each epoch."""
    model, images, labels = network().float(), torch.randn(95, 3, 8, 8), torch.arange(95) % 5
    stage = Stage(epochs=10, batch=10, optimizer="adamw", ema=0.9, max_grad_norm=1.0)
    groups = [WeightGroup(list(model.parameters()), 1.0)]
    training = Training(model, groups, stage, 10, choose_compute("cpu", "float32"))

    def stream(epoch, start):
        order = Shuffle().epoch(labels.numpy(), 0, epoch, 10)
        for first in range(10 * start, 95, 10):
            rows = order[first : first + 10]
            yield images[rows[world.share(len(rows))]], labels[rows[world.share(len(rows))]]

    def check(module):
        with torch.no_grad():
            share = F.log_softmax(module.eval()(images[world.share(95)]), 1)
        return score(world.gather(share.numpy()), labels.numpy())

    rows = list(fit(training, stream, check))
    return {
        "weights": torch.cat([weight.detach().flatten() for weight in model.parameters()]),
        "average": torch.cat([value.flatten().float() for value in training.result.buffers()]),
        "losses": torch.tensor([row.loss for row in rows]),
        "improved": [row.improved for row in rows if isinstance(row, EpochRow)],
        "random": torch.get_rng_state(),
    }


def agreement(world):
    """What `World` promises."""
    results = {
        "from main": world.from_main(lambda: torch.tensor(world.rank)),
        "gathered": world.gather_objects(world.rank),
        "any": tuple(world.agree(world.rank == world.size - 1, False)),
        "sum": world.sum(torch.tensor([1.0, float(world.rank)])),
    }

    def refuse(rank):
        if world.rank == rank:
            raise InputError(f"refused by rank {rank}")

    for name, call in {
        "main refuses": lambda: world.from_main(lambda: refuse(0)),
        "another refuses": lambda: world.agreed(lambda: refuse(world.size - 1)),
        "first refuses": lambda: world.main_first(lambda: refuse(0)),
        "differ": lambda: world.check_equal(world.rank > 0, "data"),
    }.items():
        try:
            call()
        except InputError as error:
            results[name] = str(error)
    return results


def printed(command, *words):
    """What a command prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        command.main([*map(str, words), "--json", *ON_CPU])
    return text.getvalue()


def data():
    """The flags of ARCHIVE, with a cache in the present folder."""
    return ["--data", os.environ["ARCHIVE"], "--cache", "cache"]


def run(world):
    """A run of all stages on ARCHIVE in the present folder, and its scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "whole_run", lambda recipe: WHOLE)
        train.main([*["--stage", "all", "--out", "run"], *NETWORK, *data()])
    fixres = argv("--stage fixres --run run --size 48 --epochs 1 --batch 10")
    train.main([*fixres, *ON_CPU, *data()])
    train.main([*["--stage", "all", "--out", "whole"], *NETWORK, *data()])
    return printed(evaluate, "--run", "run", "--tta", "flip", *data())


def images(world):
    """Scores and predictions of the images in the folder TREE, with random weights."""
    tree, network = os.environ["TREE"], argv("--arch resnet18 --weights none --size 32")
    torch.manual_seed(0)
    scores = printed(folder, "--data", tree, *network, *argv("--tta flip --workers 0 --resize 40"))
    torch.manual_seed(0)
    return scores, printed(predict, tree, *network, "--top", "2")


def pick_one(world):
    """Two sizes of a network with random weights."""
    torch.manual_seed(0)
    sizes = argv("--arch resnet18 --weights none --size 32 64 --minutes 5")
    return printed(pick, *sizes, *data())


def compiled_steps(world, compiled=True):
    """Three steps of a small VGG16, whose backbone is compiled; the graphs that torch has made."""
    with thin_network():
        torch.manual_seed(0)
        model = Classifier(load_backbone("vgg16", "none"), ["pool5:mean"], (8,), 5, 0.3, True)
    stage = Stage(epochs=1, batch=6, size=64, optimizer="adamw", lr_factors=(1.0,) * 6)
    model.train_only(["all"])
    compute = choose_compute("cpu", "float32", compiled=compiled)
    training = Training(model, weight_groups(model, stage), stage, 3, compute)
    images, labels = torch.rand(15, 3, 64, 64), torch.arange(15) % 5
    losses = []
    for first in (0, 6, 12):
        share = world.share(min(6, 15 - first))
        rows = slice(first + share.start, first + share.stop)
        model.train()
        losses.append(training.train_batch(images[rows], labels[rows]))
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    return {"losses": torch.stack(losses), "weights": weights, "graphs": graphs()}


def graphs():
    """How many graphs torch has compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


JOBS = {
    job.__name__: job for job in (steps, norms, hundred_steps, agreement, run, images, pick_one)
}
SLOW_JOBS = {compiled_steps.__name__: compiled_steps}


if __name__ == "__main__":
    place, *names = sys.argv[1:]
    rank = join().rank
    for name in names:
        result = (JOBS | SLOW_JOBS)[name](get_world())
        torch.save(result, Path(place) / f"{name}-{rank}.pt")
