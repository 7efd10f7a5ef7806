"""The order of images, and what augmentation draws."""

import dataclasses
import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import TRAIN_ROWS, differences
from support import CPU

from tinynet.training.inputs import TrainingImages, augment_images
from tinynet.training.order import Shuffle, steps_per_epoch
from tinynet.training.recipes import Stage


def test_random_numbers_of_augmentation_are_drawn_on_the_cpu_and_sent():
    stage = Stage(crop_side=(20, 32), flip="random", saturation=(0.5, 2.0), hue=0.1, size=48)
    # what stays on the CPU cannot be mixed with it
    images = torch.zeros(4, 3, 32, 32, device="meta")
    for one in (
        stage,
        Stage(size=48),
        dataclasses.replace(stage, crop_side=(), crop_area=(0.5, 1.0)),
    ):
        assert augment_images(
            images, torch.zeros(4, dtype=torch.long, device="meta"), one
        ).shape == (4, 3, 48, 48)


@given(
    count=st.integers(2, 200),
    batch=st.integers(2, 70),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
@settings(deadline=None)
def test_an_epoch_shows_every_image_once_and_no_batch_of_one(count, batch, seed, epoch):
    order = Shuffle().epoch(np.zeros(count, np.int64), seed, epoch, batch)
    sizes = [len(order[i : i + batch]) for i in range(0, len(order), batch)]
    assert len(set(order)) == len(order) and set(order) <= set(range(count))
    assert count - len(order) == (count % batch == 1)
    assert len(sizes) == steps_per_epoch(count, batch) and min(sizes) >= 2
    assert np.array_equal(order, Shuffle().epoch(np.zeros(count, np.int64), seed, epoch, batch))


def test_the_order_changes_with_seed_and_epoch():
    labels = np.zeros(50, np.int64)
    orders = [
        tuple(Shuffle().epoch(labels, seed, epoch, 8)) for seed in range(3) for epoch in range(3)
    ]
    assert len(set(orders)) == 9


def test_draws_differ_between_seeds_epochs_and_batches_and_any_batch_can_be_repeated(packed):
    stage = Stage(size=64, batch=8, flip="random")

    def shown(seed, epoch, start=0):
        images = TrainingImages(packed.train, TRAIN_ROWS, stage, seed)
        return list(images.epoch(epoch, CPU.device, start))

    mirrored = set()
    for seed, epoch in itertools.product(range(2), range(3)):
        for batch in (whole := shown(seed, epoch)):
            plain = (
                torch.from_numpy(packed.train.images[batch.rows.numpy()]).permute(0, 3, 1, 2) / 255
            )
            mirrored.add(tuple((batch.images != plain).flatten(1).any(1).tolist()))
        for start in (1, 2):
            assert not differences(shown(seed, epoch, start), whole[start:])
    assert len(mirrored) >= 15  # of 18, each of eight flags
