"""The augmentation of training images, decided by seed, epoch and batch number."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tinynet.data import augment
from tinynet.data.batches import Batch, ImageLoader, seeded_generator, send
from tinynet.data.packed import PackedPart
from tinynet.distributed import World
from tinynet.errors import InputError
from tinynet.training.order import Shuffle, steps_per_epoch
from tinynet.training.recipes import Stage


@dataclass(frozen=True)
class TrainingImages:
    """The images that a stage is trained on, in the order and augmentation of each epoch.

    `part`: the part of the archive. `rows`: (N,) the rows of the images in this part. `stage`:
    batch size and augmentation.

    Each batch can be reproduced alone: its random draws are seeded by `seed`, the epoch and the
    batch number. `world`: each rank gets its share of every batch. `block`: as in `Shuffle`.
    """

    part: PackedPart
    rows: np.ndarray
    stage: Stage
    seed: int
    world: World = World()
    block: int = 0
    _orders: dict[int, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def epoch(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[Batch]:
        """Yield the augmented batches of one epoch on `device`, from batch number `start` on.

        A last batch of a single image is left out, because batch norm needs two.
        """
        loader = ImageLoader(self.part, device)
        for number in range(start, steps_per_epoch(len(self.rows), self.stage.batch)):
            yield self.batch(loader, epoch, number)

    def batch(self, loader: ImageLoader, epoch: int, number: int) -> Batch:
        """Return this rank's share of one augmented batch of an epoch; `loader`: of its part."""
        first = number * self.stage.batch
        order = self._order(epoch)[first : first + self.stage.batch]
        share = self.world.share(len(order))
        draws = Draws(epoch, self.seed, number, len(order), share)

        def augmented(images: Tensor, rows: Tensor) -> Tensor:
            return augment_images(images, rows, self.stage, draws)

        return loader.load(self.rows[order[share]], augmented)

    def _order(self, epoch: int) -> np.ndarray:
        """The positions of the images in `rows`, in the order of an epoch."""
        if epoch not in self._orders:
            self._orders.clear()
            shuffle = Shuffle(self.stage.balanced, self.block)
            labels = self.part.required_labels[self.rows]
            self._orders[epoch] = shuffle.order(labels, self.seed, epoch)
        return self._orders[epoch]


@dataclass(frozen=True)
class Draws:
    """What the random draws for images depend on.

    `number`: of the batch in its epoch. `count`: the images of the whole batch, None: those that
    are given. `share`: which of them are given, None: all.
    """

    epoch: int = 0
    seed: int = 0
    number: int = 0
    count: int | None = None
    share: slice | None = None


def augment_images(images: Tensor, rows: Tensor, stage: Stage, draws: Draws = Draws()) -> Tensor:
    """Crop, flip and jitter a batch: (N, 3, H, W) in [0, 1] -> (N, 3, size, size) in [0, 1].

    `rows`: (N,) the images' rows in their part. The random draws depend on `draws` only. They are
    made on the CPU for the whole batch, so that they are the same for every device and number of
    ranks.
    """

    def to_device(values: Tensor) -> Tensor:
        return send(values[draws.share or slice(None)].numpy(), images.device)

    generator = seeded_generator("cpu", draws.seed, "pictures", draws.epoch, draws.number)
    count, side = len(images) if draws.count is None else draws.count, images.shape[-1]
    if stage.crop_side or stage.crop_area or side != stage.size:
        sides = _crop_sides(count, side, stage, generator)
        top, left = map(to_device, augment.draw_corners(sides, generator, side))
        sides = to_device(sides)
        images = augment.resized_crop(images, top, left, sides, sides, stage.size)
    if stage.flip == "alternating":
        images = augment.hflip(images, augment.alternating_flags(rows, draws.epoch))
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
