"""What to train in a number of minutes: kinds of runs, their time by measured rates, the choice.

The time of a part is a number of images over a measured rate. Imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinynet.console import option
from tinynet.errors import InputError
from tinynet.training.recipes import Recipe
from tinynet.values import counted

# The fraction of the minutes that a plan leaves free, for checkpoints and for rates that vary.
_RESERVE = 0.04
_BN_IMAGES = 6400  # as in `models.classifier`, which imports torch
# Forward passes of the hold-out that choose the views; two more after fixres, at `larger_size`.
_VIEWS, _LARGER_VIEWS = 2, 2

AVERAGE = "average"  # the part after several trainings of finetune

# Fields of the recipe that a plan decides, or that its pace needs as they are.
DECIDED = frozenset(
    {
        "epochs",
        "size",
        "trainable",
        "cached_epochs",
        "schedule",
        "schedule_every",
        "cycles",
        "pct_start",
        "step_size_up",
        "patience",
        "soup",
    }
)


@dataclass(frozen=True)
class Evidence:
    """What a plan of this kind has reached on Tiny ImageNet with `epochs` of its paced stage.

    `holdout`, `flip`: hold-out top-1 of one view, and of the mean with the mirror image.
    """

    epochs: float
    holdout: float
    flip: float


@dataclass(frozen=True)
class Kind:
    """A kind of run, whose last trained stage before `fixres` takes the time that is left.

    `paced`: the stage whose epochs depend on the minutes, from the first to the last of `epochs`.
    `values`: fields of the recipe, by stage. `fixres`: whether its head is trained at a test size
    at the end. `evidence`: from few epochs to many.
    """

    name: str
    paced: str
    epochs: tuple[float, float]
    values: Mapping[str, Mapping[str, Any]]
    fixres: bool = False
    evidence: tuple[Evidence, ...] = ()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of the run, in order."""
        return (*self.values, *(["fixres"] if self.fixres else []))

    def recipe(self, recipe: Recipe, epochs: float) -> Recipe:
        """Return `recipe` with the fields of this kind, and `epochs` of its paced stage."""
        for stage, values in self.values.items():
            own = {**values, "epochs": epochs} if stage == self.paced else dict(values)
            recipe = recipe.override(own, (stage,))
        return recipe


def _base(size: int, *evidence: Evidence) -> Kind:
    """The head alone, on features computed once for each image."""
    return Kind(f"base at {size} px", "base", (4, 12), {"base": _features(size)}, False, evidence)


def _features(size: int) -> dict[str, Any]:
    return {"size": size, "cached_epochs": 1}


def _late(size: int, soup: int = 1) -> dict[str, dict[str, Any]]:
    """The head, then conv4, conv5 and the head, `soup` times with different seeds."""
    finetune = {"trainable": ("conv4", "conv5", "head"), "size": size, "soup": soup}
    return {"base": _features(size), "finetune": finetune}


# The evidence: base-96-one-view.json and minutes.json in benchmarks/results, and in experiments
# late-layers-96.json (two epochs), late-layers-96-tuned.json (three) and soups.json (an average of
# three epochs). One seed each; an average has two.
TUNED_KINDS = (
    _base(64, Evidence(8.66, 0.5720, 0.5856)),
    _base(96, Evidence(12, 0.6200, 0.6302)),
    _base(128, Evidence(7.85, 0.6354, 0.6438)),
    Kind(
        "conv4 and conv5 at 96 px",
        "finetune",
        (0.7, 2.5),
        _late(96),
        evidence=(Evidence(0.9, 0.6474, 0.6614), Evidence(2, 0.6676, 0.6782)),
    ),
    Kind(
        "conv4 and conv5 at 96 px, then fixres",
        "finetune",
        (2, 12),
        _late(96),
        fixres=True,
        evidence=(Evidence(3, 0.6800, 0.6988),),
    ),
    Kind(
        "conv4 and conv5 at 96 px, average of two trainings, then fixres",
        "finetune",
        (3, 12),
        _late(96, soup=2),
        fixres=True,
        evidence=(Evidence(3, 0.6874, 0.7052), Evidence(3.82, 0.6854, 0.6994)),
    ),
)
_ALL = {"base": _features(160), "finetune": {"size": 160}}
GENERAL_KINDS = (
    _base(128),
    _base(224),
    Kind("all layers at 160 px", "finetune", (0.7, 2.5), _ALL),
    Kind("all layers at 160 px, then fixres", "finetune", (2, 12), _ALL, fixres=True),
)
KINDS = {"tuned": TUNED_KINDS, "general": GENERAL_KINDS}


@dataclass(frozen=True)
class Rates:
    """Images per second on this machine.

    `frozen`: features of the network with its ImageNet weights. `after`: features of the network
    that `finetune` has trained. `step`: training steps of `finetune`. These three are dicts, whose
    keys are the sizes of the images in pixels. `head`: training steps of the head on features.
    """

    frozen: Mapping[int, float]
    after: Mapping[int, float]
    step: Mapping[int, float]
    head: float


@dataclass(frozen=True)
class Part:
    """A part of a plan.

    `stage`: its stage, or `average` or `views`. `what`: what is done, as it is printed. `seconds`:
    its time.
    """

    stage: str
    what: str
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A kind of run with the epochs of its paced stage, and its parts in order.

    `minutes`: what the user has. `spent`: seconds before the first part. `check`: seconds of an
    evaluation after an epoch of the paced stage. `last`: whether `kind` is the last of its list,
    which takes the most time.
    """

    kind: Kind
    minutes: float
    epochs: float
    parts: Sequence[Part]
    spent: float
    check: float
    last: bool

    @property
    def seconds(self) -> float:
        """The time of all parts, with what is spent already."""
        return self.spent + sum(part.seconds for part in self.parts)

    def lines(self) -> list[str]:
        """The plan as it is printed."""
        lines = [f"plan for {counted(f'{self.minutes:g}', 'minute')}: {self.kind.name}"]
        if self.spent:
            what = "reading and packing the data, measuring this machine"
            lines.append(f"{self.spent / 60:8.1f} min  {what}")
        lines += [f"{part.seconds / 60:8.1f} min  {part.stage}: {part.what}" for part in self.parts]
        lines.append(f"{self.seconds / 60:8.1f} min  in total")
        longest = self.last and self.epochs == self.kind.epochs[1]
        if longest and self.seconds < 60 * self.minutes * 0.9:
            lines.append("This is the longest plan there is.")
        before = [row for row in self.kind.evidence if row.epochs <= self.epochs * 1.02]
        if before:
            row = before[-1]
            each = " in each training" if AVERAGE in {part.stage for part in self.parts} else ""
            lines.append(
                "An earlier run of this plan on all images of Tiny ImageNet, with "
                f"{_epochs(row.epochs)} of {self.kind.paced}{each}, reached a hold-out top-1 of "
                f"{row.holdout:.1%}, and {row.flip:.1%} with flips."
            )
        return lines


@dataclass(frozen=True)
class Counts:
    """The numbers of training images and of held-out images."""

    train: int
    holdout: int


def sizes_of(kinds: Sequence[Kind], recipe: Recipe) -> tuple[list[int], list[int]]:
    """Return the sizes of images in pixels: for base, and for the network after `finetune`."""
    base, later = set(), set()
    for kind in kinds:
        own = kind.recipe(recipe, 1)
        base.add(own.base.size)
        if "finetune" in kind.values:
            later |= {
                own.finetune.size,
                *(candidate_sizes(own.finetune.size) if kind.fixres else ()),
            }
    return sorted(base), sorted(later)


def candidate_sizes(size: int) -> list[int]:
    """Return the sides in pixels among which the hold-out chooses, for training at `size`.

    They are 1, 7/6 and 4/3 of it, in steps of 8 pixels, because the best test size is often larger
    than the training size (Touvron et al. 2019).
    """
    return sorted({size, *(8 * round(size * factor / 8) for factor in (7 / 6, 4 / 3))})


def larger_size(size: int) -> int:
    """Return the side in pixels of the larger images among the test-time views of `size` pixels.

    It is 9/7 of the size, in steps of 16 pixels, the stride of VGG16's last convolutions.
    """
    return 16 * max(size // 16 + 1, round(size * 9 / 7 / 16))


def parts_of(kind: Kind, recipe: Recipe, epochs: float, rates: Rates, counts: Counts) -> list[Part]:
    """Return the parts of a run of this kind, with their times by the rates of this machine."""
    recipe = kind.recipe(recipe, epochs)
    base, frozen = recipe.base, rates.frozen
    passes = _VIEWS / frozen[base.size]
    images = base.cached_epochs * counts.train + counts.holdout
    head = base.epochs * counts.train / rates.head
    head += math.ceil(base.epochs) * counts.holdout / rates.head
    parts = [
        Part("base", f"compute features at {base.size} px", images / frozen[base.size]),
        Part("base", f"train the head for {_epochs(base.epochs)}", head),
    ]
    if "finetune" in kind.values:
        stage = recipe.finetune
        seconds = stage.epochs * counts.train / rates.step[stage.size]
        seconds += math.ceil(stage.epochs) * check_seconds(kind, recipe, rates, counts)
        trained = "all layers" if "all" in stage.trainable else ", ".join(stage.trainable)
        what = f"train {trained} for {_epochs(stage.epochs)} at {stage.size} px"
        again = f"{what}, with another seed"
        parts += [Part("finetune", text, seconds) for text in (what, *[again] * (stage.soup - 1))]
        if stage.soup > 1:
            check = check_seconds(kind, recipe, rates, counts)
            parts.append(Part(AVERAGE, "mean of the weights, recomputed batch norms", check))
        passes = _VIEWS / rates.after[stage.size]
    if kind.fixres:
        sizes, stage = candidate_sizes(recipe.finetune.size), recipe.fixres
        choice = sum(counts.holdout / rates.after[size] for size in sizes)
        images = stage.cached_epochs * counts.train + counts.holdout
        seconds = (
            choice + images / rates.after[sizes[-1]] + stage.epochs * counts.train / rates.head
        )
        listed = ", ".join(map(str, sizes))
        what = f"choose the test size ({listed} px), train the head at it"
        parts.append(Part("fixres", what, seconds))
        # Time grows with the area.
        area = (larger_size(sizes[-1]) / sizes[-1]) ** 2
        passes = (_VIEWS + _LARGER_VIEWS * area) / rates.after[sizes[-1]]
    what = "choose test-time views on the hold-out"
    return [*parts, Part("views", what, passes * counts.holdout)]


def check_seconds(kind: Kind, recipe: Recipe, rates: Rates, counts: Counts) -> float:
    """Return the seconds of the evaluation after an epoch of the paced stage.

    In `finetune`, it has two forward passes in floats: over the hold-out, and over the images that
    recompute the batch norms of the moving average of the weights. A forward pass is assumed to
    take half the time of a training step.
    """
    if kind.paced != "finetune":
        return counts.holdout / rates.head
    rate = rates.step[kind.recipe(recipe, 1).finetune.size]
    return (counts.holdout + min(counts.train, _BN_IMAGES)) / (2 * rate)


def _epochs(number: float) -> str:
    return counted(f"{number:.3g}", "epoch")


def contradiction(names: Sequence[str]) -> InputError:
    """Return the error for options or arguments (`names`) that the plan decides."""
    minutes, listed = option("minutes"), ", ".join(names)
    return InputError(
        f"{listed}: cannot be set beside {minutes}, whose plan decides the stages, sizes, epochs "
        f"and schedule; remove {minutes}, or remove {listed}"
    )


def choose(
    recipe: Recipe,
    kinds: Sequence[Kind],
    rates: Rates,
    counts: Counts,
    minutes: float,
    spent: float = 0.0,
) -> Plan:
    """Return the plan for `minutes`: the last of `kinds` that fits, with as many epochs as fit.

    `spent`: seconds that have passed. Raises `InputError` if none fits.
    """
    room = 60 * minutes * (1 - _RESERVE) - spent

    def seconds(kind: Kind, epochs: float) -> float:
        return sum(part.seconds for part in parts_of(kind, recipe, epochs, rates, counts))

    fitting = [kind for kind in kinds if seconds(kind, kind.epochs[0]) <= room]
    if not fitting:
        least = min(kinds, key=lambda kind: seconds(kind, kind.epochs[0]))
        needed = (spent + seconds(least, least.epochs[0])) / (1 - _RESERVE) / 60
        raise InputError(
            f"{option('minutes')} {minutes:g}: too short for this machine and these images; the "
            f"shortest plan ({least.name}) takes about {counted(math.ceil(needed), 'minute')}; use "
            f"more minutes, or fewer images ({option('per_class')})"
        )
    kind = fitting[-1]
    low, high = kind.epochs
    for _ in range(40):  # bisection: an epoch's evaluation makes the time jump
        middle = (low + high) / 2
        low, high = (middle, high) if seconds(kind, middle) <= room else (low, middle)
    epochs = kind.epochs[1] if seconds(kind, kind.epochs[1]) <= room else low
    epochs = math.floor(epochs * 100) / 100
    parts = parts_of(kind, recipe, epochs, rates, counts)
    check = check_seconds(kind, recipe, rates, counts)
    return Plan(kind, minutes, epochs, parts, spent, check, kind is kinds[-1])
