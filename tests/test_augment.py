"""Changes to a batch against torchvision's functional on each image alone, and the draws behind
them.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from tinynet.data import augment

SEEDS = st.integers(0, 2**31)
quickly = settings(max_examples=15, deadline=None)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def drawn_images(seed, side=12):
    """Ten images, (10, 3, side, side) in [0, 1]: noise, bytes, and all that makes hue and
    saturation hard.
    """
    draw = generator(seed)
    noise = torch.rand(10, 3, side, side, generator=draw)
    images = noise.clone()
    images[1] = (noise[1] * 255).round() / 255
    images[2] = noise[2, :1]  # grey
    images[3] = 0.0
    images[4] = 1.0
    images[5] = (noise[5] > 0.5).float()  # black, white and the six pure colours
    images[6] = noise[6] * torch.tensor([1.0, 0.0, 0.0])[:, None, None]  # one channel only
    images[7, 1] = images[7, 0]  # two channels alike, so the brightest is not unique
    images[8] = 0.5 + 1e-4 * noise[8]  # nearly grey
    images[9, :, ::2] = 0.0
    return images


def check_each(batch_result, images, alone, tolerance=2e-5):
    """What the batch became is what `alone(i, image)` makes of each image by itself."""
    for i, image in enumerate(images):
        torch.testing.assert_close(batch_result[i], alone(i, image), rtol=0, atol=tolerance)


# --- each change is torchvision's -----------------------------------------------------------------


@quickly
@given(seed=SEEDS)
def test_hflip_is_that_of_torchvision(seed):
    images, flags = drawn_images(seed), torch.rand(10, generator=generator(seed)) < 0.5
    check_each(
        augment.hflip(images, flags),
        images,
        lambda i, image: tv.horizontal_flip(image) if flags[i] else image,
        tolerance=0,
    )


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, height=st.integers(4, 40), width=st.integers(4, 40), size=st.integers(2, 48))
def test_resized_crop_is_that_of_torchvision(seed, height, width, size):
    draw = np.random.RandomState(seed)
    images = torch.from_numpy(draw.rand(6, 3, height, width).astype(np.float32))
    tall, wide = draw.randint(1, height + 1, 6), draw.randint(1, width + 1, 6)
    tall[0], wide[0] = height, width
    tall[1] = wide[1] = 1
    top, left = draw.randint(0, height - tall + 1), draw.randint(0, width - wide + 1)
    found = augment.resized_crop(images, *map(torch.from_numpy, (top, left, tall, wide)), size)
    assert found.shape == (6, 3, size, size)
    check_each(
        found,
        images,
        lambda i, image: tv.resized_crop(
            image,
            int(top[i]),
            int(left[i]),
            int(tall[i]),
            int(wide[i]),
            [size, size],
            antialias=True,
        ),
    )


def test_a_crop_of_everything_at_the_same_size_changes_nothing():
    images, none, all_ = drawn_images(0), torch.zeros(10), torch.full((10,), 12)
    assert torch.equal(augment.resized_crop(images, none, none, all_, all_, 12), images)


@quickly
@given(seed=SEEDS, data=st.data())
def test_adjust_saturation_is_that_of_torchvision(seed, data):
    images = drawn_images(seed)
    factors = data.draw(st.lists(st.floats(0, 3, width=32), min_size=10, max_size=10))
    check_each(
        augment.adjust_saturation(images, torch.tensor(factors)),
        images,
        lambda i, image: tv.adjust_saturation(image, factors[i]),
    )


@quickly
@given(seed=SEEDS, data=st.data())
def test_adjust_hue_is_that_of_torchvision(seed, data):
    images = drawn_images(seed)
    shifts = data.draw(st.lists(st.floats(-0.5, 0.5, width=32), min_size=10, max_size=10))
    check_each(
        augment.adjust_hue(images, torch.tensor(shifts)),
        images,
        lambda i, image: tv.adjust_hue(image, shifts[i]),
    )


@quickly
@given(seed=SEEDS)
def test_colour_jitter_takes_either_order(seed):
    images, draw = drawn_images(seed), generator(seed)
    saturation, hue = 0.2 + 2 * torch.rand(10, generator=draw), torch.rand(10, generator=draw) - 0.5
    hue_first = torch.rand(10, generator=draw) < 0.5

    def alone(i, image):
        if hue_first[i]:
            return tv.adjust_saturation(tv.adjust_hue(image, hue[i].item()), saturation[i].item())
        return tv.adjust_hue(tv.adjust_saturation(image, saturation[i].item()), hue[i].item())

    check_each(augment.colour_jitter(images, saturation, hue, hue_first), images, alone)


def test_the_two_orders_of_colour_jitter_differ():
    images = drawn_images(0)[:1]
    found = [
        augment.colour_jitter(
            images, torch.tensor([2.5]), torch.tensor([0.3]), torch.tensor([first])
        )
        for first in (False, True)
    ]
    assert (found[0] - found[1]).abs().max() > 0.01


@quickly
@given(seed=SEEDS)
def test_neutral_parameters_change_nothing(seed):
    images, one, zero = drawn_images(seed), torch.ones(10), torch.zeros(10)
    for changed in (
        augment.hflip(images, zero.bool()),
        augment.adjust_saturation(images, one),
        augment.adjust_hue(images, zero),
        augment.colour_jitter(images, one, zero, zero.bool()),
    ):
        torch.testing.assert_close(changed, images, rtol=0, atol=2e-6)


def test_the_given_images_stay_as_they_were_in_either_memory_format():
    half, places = torch.full((10,), 0.5), torch.full((10,), 2)
    changes = [
        lambda p: augment.hflip(p, half > 0),
        lambda p: augment.adjust_hue(p, half),
        lambda p: augment.adjust_saturation(p, half),
        lambda p: augment.colour_jitter(p, half, half, half > 0),
        lambda p: augment.resized_crop(p, places, places, 3 * places, 2 * places, 5),
    ]
    for change in changes:
        images = drawn_images(3)
        last = images.clone(memory_format=torch.channels_last)
        torch.testing.assert_close(change(images), change(last))
        assert torch.equal(images, drawn_images(3)) and torch.equal(last, images)


# --- the draws ------------------------------------------------------------------------------------


DRAWS = {
    "flags": lambda g: augment.draw_flags(200, g),
    "sides": lambda g: augment.draw_sides(200, g, 40, 64),
    "sides by area": lambda g: augment.draw_sides_by_area(200, g, 64, 0.1, 1.0),
    "corners": lambda g: torch.stack(augment.draw_corners(torch.full((200,), 30), g, 64)),
    "factors": lambda g: augment.draw_factors(200, g, 0.5, 2.0),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_depend_on_the_generator_alone(name):
    draw = DRAWS[name]
    first = draw(generator(1))
    torch.manual_seed(5)
    assert torch.equal(draw(generator(1)), first)
    assert not torch.equal(draw(generator(2)), first)
    before = torch.get_rng_state()
    draw(generator(1))
    assert torch.equal(torch.get_rng_state(), before)  # dropout's chance is not used up


def test_half_of_the_flags_are_set():
    share = augment.draw_flags(40_000, generator(0)).float().mean().item()
    assert abs(share - 0.5) < 0.015  # six standard errors


def test_sides_are_whole_pixels_from_low_to_high_alike_often():
    sides, counts = augment.draw_sides(40_000, generator(0), 46, 64).unique(return_counts=True)
    assert sides.tolist() == list(range(46, 65))
    assert (counts - 40_000 / 19).abs().max() < 270  # six standard deviations


def test_factors_fill_their_range():
    factors = augment.draw_factors(40_000, generator(0), 0.5, 2.0)
    assert 0.5 <= factors.min() < 0.51 and 1.99 < factors.max() <= 2.0
    assert abs(factors.mean().item() - 1.25) < 0.015
    assert augment.draw_factors(5, generator(0), 1.0, 1.0).tolist() == [1.0] * 5


@pytest.mark.parametrize("low", [0.08, 0.5])
def test_sides_by_area_are_those_of_torchvision(low):
    torch.manual_seed(0)
    blank = torch.zeros(3, 64, 64)
    theirs = [RandomResizedCrop.get_params(blank, [low, 1.0], [1.0, 1.0])[2:] for _ in range(3000)]
    assert all(height == width for height, width in theirs)
    theirs = np.array([height for height, _ in theirs])
    ours = augment.draw_sides_by_area(20_000, generator(0), 64, low, 1.0).numpy()
    assert ours.min() >= round(64 * low**0.5) and ours.max() == 64
    steps = np.linspace(0.05, 0.95, 19)
    assert np.abs(np.quantile(ours, steps) - np.quantile(theirs, steps)).max() <= 2
    assert abs(ours.mean() - theirs.mean()) < 6 * theirs.std() / 3000**0.5


@pytest.mark.parametrize("fraction", [56 / 64, 0.5, 0.3, 1.0])
def test_a_fixed_area_gives_the_side_of_torchvision(fraction):
    crop = RandomResizedCrop(56, scale=(fraction, fraction), ratio=(1, 1))
    theirs = {
        crop.get_params(torch.zeros(3, 64, 64), crop.scale, crop.ratio)[2:] for _ in range(20)
    }
    ((height, width),) = theirs
    ours = augment.draw_sides_by_area(20, generator(0), 64, fraction, fraction)
    assert height == width and ours.unique().tolist() == [height]
    if fraction == 56 / 64:
        assert height == 60  # 56/64 of the area, where 56/64 of the side was meant


@quickly
@given(seed=SEEDS, side=st.integers(2, 64), data=st.data())
def test_corners_keep_the_crop_inside(seed, side, data):
    sides = torch.tensor(data.draw(st.lists(st.integers(1, side), min_size=1, max_size=50)))
    top, left = augment.draw_corners(sides, generator(seed), side)
    for corner in (top, left):
        assert corner.dtype == torch.int64
        assert corner.min() >= 0 and (corner + sides).max() <= side


def test_every_corner_comes_alike_often_and_rows_apart_from_columns():
    top, left = augment.draw_corners(torch.full((40_000,), 60), generator(0), 64)
    places, counts = (top * 5 + left).unique(return_counts=True)
    assert places.tolist() == list(range(25))
    assert (counts - 1600).abs().max() < 240  # six standard deviations


# --- alternating flips ----------------------------------------------------------------------------


def test_two_epochs_show_each_image_once_plain_and_once_mirrored():
    rows = torch.randperm(1000, generator=generator(0))
    for epoch in range(4):
        now, then = (
            augment.alternating_flags(rows, epoch),
            augment.alternating_flags(rows, epoch + 1),
        )
        assert now.dtype == torch.bool and (now ^ then).all()
        assert now.sum() == 500
        assert torch.equal(now, augment.alternating_flags(rows, epoch + 2))


@given(first=st.integers(0, 100_000), half=st.integers(1, 64), epoch=st.integers(0, 50))
def test_half_of_a_batch_of_successive_rows_is_mirrored(first, half, epoch):
    assert augment.alternating_flags(torch.arange(first, first + 2 * half), epoch).sum() == half


def test_a_mirrored_image_is_mirrored_wherever_it_stands_in_the_order():
    rows = torch.arange(50)
    order = torch.randperm(50, generator=generator(1))
    assert torch.equal(
        augment.alternating_flags(rows, 3)[order], augment.alternating_flags(rows[order], 3)
    )
