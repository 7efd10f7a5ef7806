"""Compare networks and sizes within a budget of time, by heads on their frozen features.

Successive halving (Jamieson & Talwalkar 2016): every candidate gets a head on few training images;
the worse half is dropped, and the others get more images. The rounds are log2 of the candidates,
and share the time equally. All accuracies are of the hold-out; the official val is not used.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from tinynet import console
from tinynet.compute import Compute
from tinynet.data.batches import seeded_generator
from tinynet.data.packed import Packed
from tinynet.data.splits import split_train
from tinynet.distributed import get_world
from tinynet.errors import InputError
from tinynet.models.backbone import Backbone
from tinynet.models.backbones import backbone_template, compute_for, load_backbone
from tinynet.models.classifier import Classifier
from tinynet.records import EpochRow, Json, Score, ScoreRow
from tinynet.score.compare import PairedGain, mcnemar
from tinynet.score.metrics import score
from tinynet.score.probabilities import head_probabilities
from tinynet.score.views import resize
from tinynet.training.features import FeatureCache, Features
from tinynet.training.loop import Training, fit, weight_groups
from tinynet.training.order import steps_per_epoch
from tinynet.training.rates import frozen_rate
from tinynet.training.recipes import Recipe, Stage, recipe_for
from tinynet.values import counted

_LEAST = 4  # training images per class in the first round, and as many of the hold-out
MEASURED = 1.0  # seconds of work on images that a candidate's cost is measured by
# The share of the time that is spent on features; heads take the rest.
_FOR_FEATURES = 0.8


@dataclass(frozen=True)
class Candidate:
    """A network at a size in pixels; `weights` as in `load_backbone`."""

    arch: str
    size: int
    weights: str = "DEFAULT"

    def __str__(self) -> str:
        return f"{self.arch} at {self.size} px"

    @property
    def recipe(self) -> Recipe:
        """The recipe of this network, at this size."""
        values = {"arch": self.arch, "size": self.size}
        return recipe_for(self.arch).override(values, ("base",))


@dataclass(frozen=True)
class PickRow:
    """The last result of a candidate.

    `images`: the training images of its head. `score`: on the hold-out images of its last round.
    `gain`: over the best candidate of that round; None for the best itself. `seconds`: of one
    image, loaded and resized, in `compute`. `minutes`: to extract the features of a whole base run.
    """

    candidate: Candidate
    images: int
    score: Score
    gain: PairedGain | None
    seconds: float
    minutes: float
    compute: Compute

    def to_json(self) -> Json:
        """Return the row as a JSON object."""
        gain = self.gain
        return {
            "arch": self.candidate.arch,
            "size": self.candidate.size,
            "images": self.images,
            # Without the worst class: in a round a class has few images, so it is chance.
            **ScoreRow().with_score(self.score).to_json(),
            "gain": gain and gain.gain,
            "gain_low": gain and gain.low,
            "gain_high": gain and gain.high,
            "p": gain and gain.p,
            "milliseconds": 1000 * self.seconds,
            "minutes": self.minutes,
            "precision": self.compute.precision,
            "engine": self.compute.engine,
        }


def candidates(
    archs: Sequence[str], sizes: Sequence[int], weights: Sequence[str]
) -> list[Candidate]:
    """Return every network at every size that it takes.

    `weights`: of each network, or empty for the library's default. Raises `InputError` for an
    unknown network, and if fewer than two candidates remain.
    """
    if weights and len(weights) != len(archs):
        raise InputError(
            f"{console.option('weights')}: {len(weights)} for {counted(len(archs), 'network')}; "
            "name the weights of each network, in the same order"
        )
    options = []
    for arch, name in zip(archs, weights or ["DEFAULT"] * len(archs), strict=True):
        backbone = backbone_template(arch)
        for size in sizes:
            try:
                backbone.check_size(size)
            except InputError as error:
                console.log(f"note: {error}")
            else:
                options.append(Candidate(arch, size, name))
    options = list(dict.fromkeys(options))
    if len(options) < 2:
        raise InputError(
            f"fewer than two combinations of network and size can be compared ({len(options)}); "
            "name more"
        )
    return options


def pick(
    packed: Packed, options: Sequence[Candidate], minutes: float, compute: Compute, seed: int = 0
) -> list[PickRow]:
    """Compare the candidates `options` for `minutes`; return a row for each, the best first.

    `compute`: where and how the backbones and heads run. Raises `InputError` if the time does not
    suffice for a first round.
    """
    race = Race(packed, compute, seed, time.monotonic() + 60 * minutes)
    contenders = [_Contender(option, race) for option in options]
    rounds = math.ceil(math.log2(len(options)))
    images = 0
    dropped: list[PickRow] = []
    for number in range(1, rounds + 1):
        images = race.images_a_class(contenders, images, rounds + 1 - number)
        for contender in contenders:
            contender.extend(images)
            contender.fit()
        order = sorted(range(len(contenders)), key=lambda i: -contenders[i].score.top1)
        contenders = [contenders[i] for i in race.world.from_main(lambda: order)]  # noqa: B023
        console.log(
            f"round {number} of {rounds}, {counted(images, 'image')} per class: "
            + ", ".join(f"{each.option} {each.score.top1:.1%}" for each in contenders)
        )
        count = len(contenders) if number == rounds else math.ceil(len(contenders) / 2)
        dropped = [each.row(contenders[0]) for each in contenders[count:]] + dropped
        contenders = contenders[:count]
    return [each.row(contenders[0]) for each in contenders] + dropped


class Race:
    """The images of a comparison, in the order in which candidates get them, and its end."""

    def __init__(self, packed: Packed, compute: Compute, seed: int, end: float):
        self.packed, self.compute, self.seed, self.end = packed, compute, seed, end
        self.start, self.world = time.monotonic(), get_world()
        self._backbones: dict[tuple[str, str], Backbone] = {}
        split = split_train(packed.train.required_labels)
        self.train = self._by_class(split.train)
        self.holdout = self._by_class(split.holdout)

    def backbone(self, arch: str, weights: str) -> Backbone:
        """Return a network, which its candidates of all sizes share."""
        if (arch, weights) not in self._backbones:
            self._backbones[arch, weights] = self.world.main_first(
                lambda: load_backbone(arch, weights)
            )
        return self._backbones[arch, weights]

    def _by_class(self, rows: np.ndarray) -> np.ndarray:
        """Return a table of rows: a column for each class, in random order; -1 fills a column."""
        labels = self.packed.train.required_labels
        order = np.random.RandomState(self.seed).permutation(rows)
        columns = [order[labels[order] == label] for label in range(len(self.packed.wnids))]
        table = np.full((max(map(len, columns)), len(columns)), -1)
        for label, column in enumerate(columns):
            table[: len(column), label] = column
        return table

    def images_a_class(self, contenders: Sequence["_Contender"], before: int, rounds: int) -> int:
        """Return how many training images per class the next of the remaining `rounds` has.

        Raises `InputError` if there is no time for a first round.
        """
        cost = sum(each.seconds for each in contenders) * len(self.packed.wnids) / self.world.size
        return self.world.from_main(lambda: self._affordable(cost, before, rounds, len(contenders)))

    def _affordable(self, cost: float, before: int, rounds: int, contenders: int) -> int:
        """The images per class of the next round, if one of each class costs `cost` seconds."""
        seconds = max(0.0, self.end - time.monotonic()) / rounds * _FOR_FEATURES
        # Each training image comes with one of the hold-out, as long as there are any.
        new = int(seconds / cost / 2)
        if before + new > len(self.holdout):
            shared = max(0, len(self.holdout) - before)
            new = int(seconds / cost) - shared
        if before == 0 and new < _LEAST:
            spent = time.monotonic() - self.start
            needed = (spent + 2 * _LEAST * cost / _FOR_FEATURES * rounds) / 60
            raise InputError(
                f"{console.option('minutes')}: too short; {contenders} candidates need about "
                f"{counted(math.ceil(needed), 'minute')} on this machine; allow more time, or "
                "name fewer networks or smaller sizes"
            )
        return min(before + new, len(self.train))


class _Contender:
    """A candidate with its frozen network, and the features of the images it has seen."""

    def __init__(self, option: Candidate, race: Race):
        self.option, self.race = option, race
        recipe = option.recipe
        self.stage: Stage = replace(recipe.base, cached_epochs=1, flip="none")
        self.compute = compute_for(race.compute.for_frozen(), option.arch)
        torch.manual_seed(seeded_generator("cpu", race.seed, "pick").initial_seed())
        self.model = Classifier(
            race.backbone(option.arch, option.weights),
            recipe.network.features,
            recipe.network.hidden,
            len(race.packed.wnids),
            self.stage.dropout,
            recipe.network.standardise,
        )
        self.initial = {name: value.clone() for name, value in self.model.head.state_dict().items()}
        self.model.train_only(["head"])
        self.images = 0
        self._train: list[Features] = []
        self._holdout: list[Features] = []

    @cached_property
    def seconds(self) -> float:
        """The seconds that one image takes."""
        rate = frozen_rate(self.model, self.race.packed, self.option.size, self.compute, MEASURED)
        return self.race.world.from_main(lambda: 1 / rate)

    def extend(self, images: int) -> None:
        """Extract the features of up to `images` images per class, of train and the hold-out."""
        for table, chunks in ((self.race.train, self._train), (self.race.holdout, self._holdout)):
            rows = table[self.images : images].ravel()
            rows = np.sort(rows[rows >= 0])
            if len(rows):
                chunks.append(self._features(rows))
        self.images = images

    def _features(self, rows: np.ndarray) -> Features:
        cache = FeatureCache(self.model, self.race.packed, self.compute)
        view: Callable[[Tensor], Tensor] = partial(resize, size=self.option.size)
        return cache.view_features(self.race.packed.train, rows, view, self.stage)

    def fit(self) -> None:
        """Train a new head on all features so far, and score it on the hold-out."""
        features, holdout = _together(self._train), _together(self._holdout)
        device, seed = self.compute.device, self.race.seed
        head = self.model.head
        head.load_state_dict(self.initial)
        self.model.to(device)
        labels = holdout.labels
        assert features.labels is not None
        assert labels is not None
        steps = steps_per_epoch(len(features.labels), self.stage.batch)
        groups = weight_groups(self.model, self.stage)
        training = Training(head, groups, self.stage, steps, self.compute)

        def evaluate(module: torch.nn.Module) -> Score:
            log_probabilities = head_probabilities(module.eval(), holdout.in_order(device))
            self.right = log_probabilities.argmax(1) == labels
            return score(log_probabilities, labels)

        def stream(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
            return features.epoch(seed, epoch, self.stage.batch, device, start)

        for row in fit(training, stream, evaluate):
            if isinstance(row, EpochRow):
                self.score: Score = row.holdout  # of the last epoch: none is selected

    def row(self, best: "_Contender") -> PickRow:
        """This candidate's row, beside the `best` one of its last round."""
        recipe = self.option.recipe
        train = int((self.race.train >= 0).sum()) * recipe.base.cached_epochs
        everything = train + int((self.race.holdout >= 0).sum())
        return PickRow(
            self.option,
            sum(chunk.arrays[0].shape[1] for chunk in self._train),
            self.score,
            None if self is best else mcnemar(self.right, best.right),
            self.seconds,
            everything * self.seconds / 60,
            self.compute,
        )


def _together(chunks: Sequence[Features]) -> Features:
    """The features of all chunks."""
    labels = [chunk.labels for chunk in chunks if chunk.labels is not None]
    arrays = zip(*(chunk.arrays for chunk in chunks), strict=True)
    return Features(tuple(np.concatenate(parts, 1) for parts in arrays), np.concatenate(labels))
