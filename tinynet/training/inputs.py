"""What a stage sees in an epoch: an order, and changes to pictures, that depend on seed, epoch and
batch alone.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tinynet.data import augment
from tinynet.data.batches import Batch, batches, seeded, send
from tinynet.data.packed import PackedPart
from tinynet.errors import InputError
from tinynet.training.recipes import Stage


def epoch_order(count: int, seed: int, epoch: int, batch: int, whole: bool = False) -> np.ndarray:
    """A permutation of 0 ... count - 1; unless `whole`, a last batch of one is left out: batch norm
    needs two.
    """
    order = torch.randperm(count, generator=seeded("cpu", seed, "order", epoch)).numpy()
    return order[:-1] if count % batch == 1 and not whole else order


def steps_per_epoch(count: int, batch: int) -> int:
    """Batches in an epoch of `count` pictures."""
    return math.ceil((count - (count % batch == 1)) / batch)


def epoch_batches(
    part: PackedPart,
    rows: np.ndarray,
    stage: Stage,
    seed: int,
    epoch: int,
    device: torch.device,
    start: int = 0,
    whole: bool = False,
) -> Iterator[Batch]:
    """The batches of one epoch, changed as `stage` says, from batch `start` on.

    `whole`: with a last batch of one, which training leaves out.

    Any batch can be made again: its draws are seeded by `seed`, `epoch` and its number.
    """

    def change(images: Tensor, at: Tensor, number: int) -> Tensor:
        return augment_images(images, at, stage, epoch, seed, number)

    order = rows[epoch_order(len(rows), seed, epoch, stage.batch, whole)]
    return batches(part, order, batch_size=stage.batch, device=device, augment=change, start=start)


def augment_images(
    images: Tensor, rows: Tensor, stage: Stage, epoch: int = 0, seed: int = 0, number: int = 0
) -> Tensor:
    """Crop, flip and jitter batch `number` as `stage` says: (N, 3, H, W) in [0, 1] -> (N, 3, size,
    size).

    Chance depends on `seed`, `epoch` and `number`, and is drawn on the CPU: the same for every
    device, and sent there.
    """

    def there(drawn: Tensor) -> Tensor:
        return send(drawn.numpy(), images.device)

    generator = seeded("cpu", seed, "pictures", epoch, number)
    count, side = len(images), images.shape[-1]
    if stage.crop_side or stage.crop_area or side != stage.size:
        sides = _crop_sides(count, side, stage, generator)
        top, left = map(there, augment.draw_corners(sides, generator, side))
        sides = there(sides)
        images = augment.resized_crop(images, top, left, sides, sides, stage.size)
    if stage.flip == "alternating":
        images = augment.hflip(images, augment.alternating_flags(rows, epoch))
    elif stage.flip == "random":
        images = augment.hflip(images, there(augment.draw_flags(count, generator)))
    if stage.saturation or stage.hue:
        factors = augment.draw_factors(count, generator, *(stage.saturation or (1.0, 1.0)))
        shifts = augment.draw_factors(count, generator, -stage.hue, stage.hue)
        hue_first = augment.draw_flags(count, generator)
        images = augment.colour_jitter(images, there(factors), there(shifts), there(hue_first))
    return images


def check_crops(stage: Stage, side: int) -> None:
    """Raise `InputError` where the stage's crops do not fit into pictures of `side` pixels."""
    if stage.crop_side and stage.crop_side[1] > side:
        raise InputError(
            f"crop_side is {stage.crop_side[0]} to {stage.crop_side[1]} pixels; the pictures have "
            f"{side}"
        )


def _crop_sides(count: int, side: int, stage: Stage, generator: torch.Generator) -> Tensor:
    if stage.crop_side:
        check_crops(stage, side)
        return augment.draw_sides(count, generator, *stage.crop_side)
    if stage.crop_area:
        return augment.draw_sides_by_area(count, generator, side, *stage.crop_area)
    return torch.full((count,), side)
