"""The order and augmentation of training images, decided by seed, epoch and batch number."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinynet.data import augment
from tinynet.data.batches import Batch, batches, seeded_generator, send
from tinynet.data.packed import PackedPart
from tinynet.errors import InputError
from tinynet.training.recipes import Stage


def epoch_order(count: int, seed: int, epoch: int, batch: int, whole: bool = False) -> np.ndarray:
    """Return a random permutation of 0 ... count - 1 for one epoch, (count,) int64.

    If the last batch would be a single image, it is left out, because batch norm needs two.
    `whole`: keep this batch.
    """
    order = torch.randperm(count, generator=seeded_generator("cpu", seed, "order", epoch)).numpy()
    return order[:-1] if count % batch == 1 and not whole else order


def steps_per_epoch(count: int, batch: int) -> int:
    """Return the number of batches in an epoch of `count` images."""
    return math.ceil((count - (count % batch == 1)) / batch)


@dataclass(frozen=True)
class TrainingImages:
    """The images that a stage is trained on, in the order and augmentation of each epoch.

    `part`: the part of the archive. `rows`: (N,) the rows of the images in this part. `stage`:
    batch size and augmentation.

    Each batch can be reproduced alone: its random draws are seeded by `seed`, the epoch and the
    batch number.
    """

    part: PackedPart
    rows: np.ndarray
    stage: Stage
    seed: int

    def epoch(
        self, epoch: int, device: torch.device, start: int = 0, whole: bool = False
    ) -> Iterator[Batch]:
        """Yield the augmented batches of one epoch on `device`, from batch number `start` on.

        `whole`: include a last batch of a single image, which training leaves out.
        """

        def augmented(images: Tensor, rows: Tensor, number: int) -> Tensor:
            return augment_images(images, rows, self.stage, epoch, self.seed, number)

        batch_size = self.stage.batch
        order = self.rows[epoch_order(len(self.rows), self.seed, epoch, batch_size, whole)]
        return batches(
            self.part, order, batch_size=batch_size, device=device, augment=augmented, start=start
        )


def augment_images(
    images: Tensor, rows: Tensor, stage: Stage, epoch: int = 0, seed: int = 0, number: int = 0
) -> Tensor:
    """Crop, flip and jitter a batch: (N, 3, H, W) in [0, 1] -> (N, 3, size, size) in [0, 1].

    `rows`: (N,) the images' rows in their part. `number`: the number of the batch in its epoch.
    The random draws depend on `seed`, `epoch` and `number` only. They are made on the CPU, so that
    they are the same for every device.
    """

    def to_device(values: Tensor) -> Tensor:
        return send(values.numpy(), images.device)

    generator = seeded_generator("cpu", seed, "pictures", epoch, number)
    count, side = len(images), images.shape[-1]
    if stage.crop_side or stage.crop_area or side != stage.size:
        sides = _crop_sides(count, side, stage, generator)
        top, left = map(to_device, augment.draw_corners(sides, generator, side))
        sides = to_device(sides)
        images = augment.resized_crop(images, top, left, sides, sides, stage.size)
    if stage.flip == "alternating":
        images = augment.hflip(images, augment.alternating_flags(rows, epoch))
    elif stage.flip == "random":
        images = augment.hflip(images, to_device(augment.draw_flags(count, generator)))
    if stage.saturation or stage.hue:
        low, high = stage.saturation or (1.0, 1.0)
        factors = to_device(augment.draw_factors(count, generator, low, high))
        shifts = to_device(augment.draw_factors(count, generator, -stage.hue, stage.hue))
        hue_first = to_device(augment.draw_flags(count, generator))
        images = augment.colour_jitter(images, factors, shifts, hue_first)
    return images


def check_crops(stage: Stage, side: int) -> None:
    """Raise `InputError` if the crops of `stage` are larger than images of `side` pixels."""
    if stage.crop_side and stage.crop_side[1] > side:
        raise InputError(
            f"crop_side is {stage.crop_side[0]} to {stage.crop_side[1]} pixels, but the images "
            f"have {side}; choose at most {side}"
        )


def _crop_sides(count: int, side: int, stage: Stage, generator: torch.Generator) -> Tensor:
    """The sides in pixels of `count` square crops of images of `side` pixels, (count,) int64."""
    if stage.crop_side:
        check_crops(stage, side)
        smallest, largest = stage.crop_side
        return augment.draw_sides(count, generator, smallest, largest)
    if stage.crop_area:
        smallest_area, largest_area = stage.crop_area
        return augment.draw_sides_by_area(count, generator, side, smallest_area, largest_area)
    return torch.full((count,), side)
