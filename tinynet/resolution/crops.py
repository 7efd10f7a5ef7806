"""The apparent size of objects in training and testing (Touvron et al. 2019).

"Fixing the train-test resolution discrepancy": a random crop that is enlarged to the training size
shows objects larger than the whole image does at that size. A network therefore sees objects of the
size it was trained on if it is tested at a larger size. All images here are square.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from tinynet.data import augment
from tinynet.data.batches import seeded_generator
from tinynet.errors import InputError
from tinynet.training.recipes import Stage

TRIES = 10  # of torchvision's RandomResizedCrop, before it crops the centre


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How images are cropped in training, and resized and cropped in testing.

    `area`: smallest and largest area of a crop, as fractions of the image; `ratio`: smallest
    and largest width over height. `sides`: instead of both, smallest and largest side of square
    crops, as fractions of the image's side. Without any of them training uses whole images.

    `train`: side in pixels that crops are resized to. `resize`, `test`: sides in pixels of the
    whole test image, and of the crop in its centre. Raises `InputError` for an inverted range, or a
    crop that is larger than its image.
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
                    f"{name} of crops is {low:g} to {high:g}; give the smallest, then the largest, "
                    f"above 0{'' if most == math.inf else ' and at most 1'}"
                )
        if min(self.train, self.resize, self.test) < 1:
            raise InputError(
                f"sides are {self.train}, {self.resize} and {self.test} pixels; each must be 1 or "
                "more"
            )
        if self.test > self.resize:
            raise InputError(
                f"a test crop of {self.test} pixels does not fit into images resized to "
                f"{self.resize}; enlarge the images or make the crop smaller"
            )

    @classmethod
    def of(cls, stage: Stage, side: int, test: int | None = None) -> "Policy":
        """Return the policy of a training stage on images of `side` pixels.

        `test`: size of the whole test images in pixels (default: the size of the stage).
        """
        sides = (stage.crop_side[0] / side, stage.crop_side[1] / side) if stage.crop_side else None
        area = (stage.crop_area[0], stage.crop_area[1]) if stage.crop_area else (1.0, 1.0)
        size = test or stage.size
        return cls(
            train=stage.size,
            resize=size,
            test=size,
            sides=sides,
            area=area,
        )

    @property
    def mean_side(self) -> float:
        """E[sigma], the paper's F: sigma^2 is the share of the image's area inside a crop."""
        if self.sides:
            return sum(self.sides) / 2
        return (
            mean_side(*self.area)
            if self.ratio == (1.0, 1.0)
            else mean_side_with_ratio(self.area, self.ratio)
        )

    @property
    def object_ratio(self) -> float:
        """E[r_test / r_train]: the size of objects in testing, relative to that in training."""
        return self.mean_side * self.resize / self.train

    @property
    def cure(self) -> float:
        """The factor to enlarge test images by to make objects as large as in training."""
        return 1 / self.object_ratio

    @property
    def test_share(self) -> float:
        """The share of the image's area inside the test crop."""
        return (self.test / self.resize) ** 2


def mean_side(low: float, high: float) -> float:
    """Compute E[sigma] of square crops whose area sigma^2 is uniform in [low, high].

    F = (2/3) (s+^3 - s-^3) / (s+^2 - s-^2) with s = sqrt(area) (Touvron et al. 2019, section 3.1):
    0.70824 for 0.08 to 1. The formula here avoids the differences, which cancel in a narrow range.
    """
    least, most = math.sqrt(low), math.sqrt(high)
    return 2 / 3 * (most**2 + most * least + least**2) / (most + least)


def mean_side_with_ratio(area: tuple[float, float], ratio: tuple[float, float]) -> float:
    """Compute E[sigma] of the crops of torchvision's `RandomResizedCrop` on square images.

    The area is uniform, and so is the logarithm of width over height. A crop that is wider or
    higher than the image is drawn again, so large crops are rarer than small ones: 0.667 for 0.08
    to 1 and 3/4 to 4/3. After ten tries torchvision returns the largest crop in the centre whose
    ratio is allowed.
    """
    from scipy.integrate import quad

    narrow, wide = math.log(ratio[0]), math.log(ratio[1])

    def accepted(share: float) -> float:
        """The probability that a crop of this area fits."""
        free = -math.log(share)  # a crop fits if |log ratio| is at most this
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
    fallback = math.sqrt(min(1.0, ratio[1], 1 / ratio[0]))
    return (1 - never) * mean + never * fallback


def draw_shares(policy: Policy, count: int, side: int, seed: int = 0) -> np.ndarray:
    """Draw (count,) shares of the area of square images of `side` pixels with the cropping code.

    Crops of recipes are drawn by `data.augment`, those with a range of ratios by torchvision. Both
    round to pixels.
    """
    generator = seeded_generator("cpu", "shares", seed)
    if policy.ratio != (1.0, 1.0):
        return _draw_by_torchvision(policy, count, side, seed)
    if policy.sides:
        low, high = (round(share * side) for share in policy.sides)
        sides = augment.draw_sides(count, generator, low, high)
    else:
        sides = augment.draw_sides_by_area(count, generator, side, *policy.area)
    return (sides.double() / side).numpy() ** 2


def _draw_by_torchvision(policy: Policy, count: int, side: int, seed: int) -> np.ndarray:
    from torchvision.transforms import (  # type: ignore[import-untyped]  # has no stubs
        RandomResizedCrop,
    )

    image = torch.empty(1, side, side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        crops = [
            RandomResizedCrop.get_params(image, list(policy.area), list(policy.ratio))
            for _ in range(count)
        ]
    return np.array([height * width for _, _, height, width in crops]) / side**2
