"""How large objects appear in training and in testing, and how pictures are brought to a test size.

Touvron et al. 2019, "Fixing the train-test resolution discrepancy": random crops that are enlarged
to the training size show objects larger than the whole picture shows them at the same size, so a
network sees objects of the size it knows where it is tested at a larger one. All of this is about
square pictures.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from tinynet.data import augment
from tinynet.data.batches import seeded
from tinynet.errors import InputError
from tinynet.training.recipes import Stage

TRIES = 10  # of torchvision's RandomResizedCrop, before it takes a crop in the centre


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Crops in training, resize and crop in testing.

    `area`: least and greatest area of a crop, as fractions of the picture; `ratio`: least and
    greatest width over height; or `sides`: least and greatest side of square crops, as fractions of
    the picture's. With none of them whole pictures are seen. `train`: side in pixels that crops are
    resized to. `resize`, `test`: sides in pixels of the whole test picture and of the crop in its
    centre. Raises `InputError` for an inverted range, or a crop larger than the picture it is taken
    from.
    """

    train: int
    resize: int
    test: int
    area: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    sides: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, (low, high), most in (
            ("area", self.area, 1.0),
            ("ratio", self.ratio, math.inf),
            ("sides", self.sides or (1.0, 1.0), 1.0),
        ):
            if not 0 < low <= high <= most:
                raise InputError(
                    f"{name} of crops is {low:g} to {high:g}; it takes the least, then the "
                    f"greatest, greater than 0{'' if most == math.inf else ' and at most 1'}"
                )
        if min(self.train, self.resize, self.test) < 1:
            raise InputError(
                f"sides of {self.train}, {self.resize} and {self.test} pixels; they must be 1 or "
                "more"
            )
        if self.test > self.resize:
            raise InputError(
                f"a test crop of {self.test} pixels does not fit into pictures resized to "
                f"{self.resize}; resize them to more, or crop less"
            )

    @classmethod
    def of(cls, stage: Stage, side: int, test: int | None = None) -> "Policy":
        """What `stage` does in training to pictures of `side` pixels, tested whole at `test`
        (default: its size).
        """
        sides = (stage.crop_side[0] / side, stage.crop_side[1] / side) if stage.crop_side else None
        size = test or stage.size
        return cls(
            train=stage.size,
            resize=size,
            test=size,
            sides=sides,
            area=stage.crop_area or (1.0, 1.0),
        )

    @property
    def mean_side(self) -> float:
        """E[sigma], the paper's F: sigma is the square root of the share of the picture's area that
        a crop shows.
        """
        if self.sides:
            return sum(self.sides) / 2
        return (
            mean_side(*self.area)
            if self.ratio == (1.0, 1.0)
            else mean_side_with_ratio(self.area, self.ratio)
        )

    @property
    def object_ratio(self) -> float:
        """E[r_test / r_train]: how large objects appear in testing, where 1 is as large as in
        training.
        """
        return self.mean_side * self.resize / self.train

    @property
    def cure(self) -> float:
        """By what factor the test picture is to be larger, so that objects appear as large as in
        training.
        """
        return 1 / self.object_ratio

    @property
    def seen_in_test(self) -> float:
        """The share of the picture's area that the test crop shows."""
        return (self.test / self.resize) ** 2


def mean_side(low: float, high: float) -> float:
    """E[sigma] where the area sigma^2 of square crops is uniform in low ... high (Touvron et al.
    2019, section 3.1).

    F = (2/3) (s+^3 - s-^3) / (s+^2 - s-^2) with s = sqrt(area): 0.70824 for 0.08 ... 1. Computed
    without the differences, which cancel where the range is narrow.
    """
    least, most = math.sqrt(low), math.sqrt(high)
    return 2 / 3 * (most**2 + most * least + least**2) / (most + least)


def mean_side_with_ratio(area: tuple[float, float], ratio: tuple[float, float]) -> float:
    """E[sigma] of the crops that torchvision's `RandomResizedCrop` accepts on square pictures.

    Area is drawn uniformly, the logarithm of width over height too, and a crop that is wider or
    higher than the picture is drawn again, so large crops are rarer than small ones: 0.667 for 0.08
    ... 1 and 3/4 ... 4/3. After ten draws torchvision takes the largest crop in the centre whose
    ratio is allowed.
    """
    from scipy.integrate import quad

    narrow, wide = math.log(ratio[0]), math.log(ratio[1])

    def accepted(share: float) -> float:
        """The probability that a crop of this area fits."""
        free = -math.log(share)  # a crop fits where |log ratio| is at most this
        if wide == narrow:
            return float(abs(wide) <= free)
        return max(0.0, min(wide, free) - max(narrow, -free)) / (wide - narrow)

    bends = sorted(
        {
            share
            for share in (math.exp(-abs(narrow)), math.exp(-abs(wide)))
            if area[0] < share < area[1]
        }
    )
    if area[0] == area[1]:
        fits = accepted(area[0])
        mean = math.sqrt(area[0])
    else:
        fits = quad(accepted, *area, points=bends)[0] / (area[1] - area[0])
        sides = quad(lambda share: math.sqrt(share) * accepted(share), *area, points=bends)[0] / (
            area[1] - area[0]
        )
        mean = sides / fits if fits else 0.0
    never = (1 - fits) ** TRIES
    in_the_centre = math.sqrt(min(1.0, ratio[1], 1 / ratio[0]))
    return (1 - never) * mean + never * in_the_centre


def draw_shares(policy: Policy, count: int, side: int, seed: int = 0) -> np.ndarray:
    """(count,) shares of the area of square pictures of `side` pixels, drawn by the code that crops
    them.

    The crops of recipes by `data.augment`, those with a range of ratios by torchvision; both round
    to pixels.
    """
    generator = seeded("cpu", "shares", seed)
    if policy.ratio != (1.0, 1.0):
        return _draw_by_torchvision(policy, count, side, seed)
    if policy.sides:
        low, high = (round(share * side) for share in policy.sides)
        sides = augment.draw_sides(count, generator, low, high)
    else:
        sides = augment.draw_sides_by_area(count, generator, side, *policy.area)
    return (sides.double() / side).numpy() ** 2


def _draw_by_torchvision(policy: Policy, count: int, side: int, seed: int) -> np.ndarray:
    from torchvision.transforms import RandomResizedCrop

    image = torch.empty(1, side, side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = [
            RandomResizedCrop.get_params(image, list(policy.area), list(policy.ratio))
            for _ in range(count)
        ]
    return np.array([height * width for _, _, height, width in drawn]) / side**2
