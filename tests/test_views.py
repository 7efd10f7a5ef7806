"""Views, against independent references; their names are read as meant, or refused in a line."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from score_support import SETS, noise
from support import PLENTY, complaint
from torchvision.transforms.v2 import functional as tv

from tinynet.errors import InputError
from tinynet.score import views
from tinynet.score.views import resize

# --- views ---


@pytest.mark.parametrize(("side", "size"), [(64, 64), (73, 64), (50, 33), (40, 47)])
def test_ten_crops_are_torchvisions_pixel_by_pixel(side, size):
    images = noise(3, 3, side, side)
    found = list(views.get("ten", size)(images).values())
    between = tv.resize(images, [round(size * 8 / 7)] * 2, antialias=True)
    expected = tv.ten_crop(between, [size, size])
    assert len(found) == 10
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_five_crops_of_images_that_are_not_square_are_torchvisions():
    images = noise(2, 3, 90, 75)
    expected = tv.five_crop(tv.resize(images, [80], antialias=True), [64, 64])
    for ours, theirs in zip(
        views.get("resize:80+five", 64)(images).values(), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_undoing_the_mirror_gives_the_plain_view():
    images = torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5)
    seen = views.get("flip")(images)
    assert list(seen) == ["plain", "mirror"] and torch.equal(seen["plain"], images)
    assert not torch.equal(seen["mirror"], images)
    assert torch.equal(seen["mirror"], tv.horizontal_flip(images))
    assert torch.equal(views.get("flip")(seen["mirror"])["mirror"], images)
    assert list(views.get("none")(images)) == ["plain"]


def test_moving_repeats_the_border():
    images = noise(2, 3, 8, 8)
    seen = views.get("shift:2")(images)
    assert list(seen) == ["plain", "left 2", "right 2", "up 2", "down 2"]
    wide = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    for name, (top, left) in {
        "left 2": (2, 4),
        "right 2": (2, 0),
        "up 2": (4, 2),
        "down 2": (0, 2),
    }.items():
        assert torch.equal(seen[name], wide[..., top : top + 8, left : left + 8])


@pytest.mark.parametrize("degrees", [5, -30])
@pytest.mark.parametrize("shape", [(64, 64), (40, 64)])
def test_turning_is_torchvisions_inside(degrees, shape):
    images = noise(2, 3, *shape)
    expected = tv.rotate(images, degrees, tv.InterpolationMode.BILINEAR)
    inside = tv.rotate(torch.ones_like(images), degrees, tv.InterpolationMode.BILINEAR) > 0.999
    found = views.turn(images, degrees)
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=2e-4)
    # beyond the border there is image, not black
    assert found.amin() >= 0 and found[~inside].min() > 0


def test_zoom_shows_the_middle_larger():
    images = noise(1, 3, 60, 60)
    seen = views.get("zoom:1.5")(images)["zoom 1.5"]
    torch.testing.assert_close(
        seen, tv.resize(images[..., 10:50, 10:50], [60, 60], antialias=True), rtol=0, atol=2e-6
    )


def test_steps_are_multiplied_the_left_one_first():
    images = noise(2, 3, 64, 64)
    seen = views.get("flip+scales:48,80")(images)
    assert list(seen) == ["48 px", "80 px", "mirror 48 px", "mirror 80 px"]
    for name, found in seen.items():
        expected = tv.resize(
            images.flip(-1) if "mirror" in name else images,
            [int(name.split()[-2])] * 2,
            antialias=True,
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    crops = views.get("resize:73+five+flip", 64)(images)
    assert list(crops)[:3] == ["top-left", "top-left mirror", "top-right"] and len(crops) == 10
    assert torch.equal(crops["centre mirror"], crops["centre"].flip(-1))
    assert list(views.get("scales", 64)(images)) == ["64 px", "80 px", "96 px"]
    assert list(views.get("none+flip")(images)) == ["plain", "mirror"]


@pytest.mark.parametrize("text", SETS)
def test_each_view_is_of_its_own_image_and_differs_from_the_others(text):
    """The middle of each image holds its number: under every view the middle still does."""
    images = noise(7, 3, 64, 64) * 0.02
    for number in range(7):
        images[number, :, 16:48, 16:48] += (number + 1) / 8
    kept = images.clone()
    seen = views.view_set(text, 64)(images)
    assert torch.equal(images, kept) and len(seen) == len(views.view_set(text, 64))
    for name, found in seen.items():
        middle = found.shape[-1] // 2
        read = found[:, :, middle - 4 : middle + 4, middle - 4 : middle + 4].mean((1, 2, 3))
        assert ((read - 0.01) * 8 - 1).round().tolist() == list(range(7)), name
        alone = views.view_set(text, 64)(images[4:5])[name]
        torch.testing.assert_close(alone[0], found[4])
    small = [tv.resize(found, [32, 32], antialias=True) for found in seen.values()]
    if not {"scales", "dense"} & {part.split(":")[0] for part in text.split("+")}:
        assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(small, 2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tencrop", ["tencrop", "ten", "scales"]),
        ("flip+", ["flip+", "no views called ''"]),
        ("", ["no views called ''"]),
        ("flip:3", ["wrong numbers for flip; use no numbers"]),
        ("resize", ["wrong numbers for resize; use 1 whole number from"]),
        ("scales:a", ["wrong numbers for scales"]),
        ("scales:64,4", ["from 8 to 4096"]),
        ("shift:1,2", ["wrong numbers for shift; use at most 1 whole number"]),
        ("zoom:nan", ["wrong numbers for zoom"]),
        ("flip+flip", ["flip", "once"]),
        ("zoom:0.5", ["from 1 to 8"]),
        ("scales:64,64.5", ["whole numbers"]),
        ("shift:1.5", ["at most 1 whole number"]),
        ("dense", ["not a view", "scales"]),
    ],
)
def test_views_that_there_are_not_are_refused(text, words):
    complaint(lambda: views.get(text), *words)


def test_a_crop_larger_than_the_image_is_refused():
    complaint(lambda: views.get("resize:40+five", 64)(noise(1, 3, 64, 64)), "64", "40x40", "resize")


@pytest.mark.parametrize("size", [7, 31, 48, 64, 65, 100])
def test_resize_is_that_of_torchvision(size):
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = resize(images.contiguous(memory_format=torch.channels_last), size)
    torch.testing.assert_close(
        found, tv.resize(images, [size, size], antialias=True), rtol=0, atol=2e-6
    )
    if size < 64:
        assert (found - tv.resize(images, [size, size], antialias=False)).abs().max() > 0.01


def test_an_image_of_the_right_size_is_not_changed():
    images = torch.rand(2, 3, 48, 48)
    assert resize(images, 48) is images


def test_views_that_are_larger_than_any_image_are_refused():
    for size in (0, -3, 5000):
        complaint(lambda size=size: views.view_set("flip", size), f"size {size}", "4096")


# --- names of views ---


@PLENTY
@given(st.text(alphabet="flipnoetscardhz+:,.-0123456789einf ", max_size=30) | st.text(max_size=10))
def test_any_text_is_a_set_of_views_or_one_line(text):
    try:
        chosen = views.view_set(text, 64)
    except InputError as error:
        assert "\n" not in str(error).replace(repr(text), "")
    else:
        assert len(chosen) >= 1 and chosen.name == text


step_numbers = {
    "shift": st.tuples(st.integers(1, 20)) | st.just(()),
    "rotate": st.tuples(st.integers(1, 170)) | st.just(()),
    "zoom": st.tuples(st.sampled_from([1.5, 2, 3.25])) | st.just(()),
    "resize": st.tuples(st.integers(40, 90)),
    "scales": st.lists(st.integers(40, 90), min_size=1, max_size=3, unique=True).map(tuple),
    "dense": st.tuples(st.integers(64, 96)),
}


@st.composite
def view_texts(draw):
    """Steps, each once, at most one that resizes, no more than one that crops: those that can be
    seen.
    """
    names = draw(
        st.lists(
            st.sampled_from(["none", "flip", "shift", "rotate", "zoom", "ten", "scales", "resize"]),
            min_size=1,
            max_size=3,
            unique=True,
        )
    )
    return [(name, draw(step_numbers.get(name, st.just(())))) for name in names]


@PLENTY
@given(view_texts())
def test_what_is_written_is_the_product_of_its_steps(steps):
    text = "+".join(
        name + (":" + ",".join(map(str, plain_values)) if plain_values else "")
        for name, plain_values in steps
    )
    counts = {"none": 1, "flip": 2, "shift": 5, "rotate": 3, "zoom": 2, "ten": 10, "resize": 1}
    try:
        chosen = views.view_set(text, 32)
    except InputError as error:
        assert "repeats a view" in str(error)  # ten is flip, and flip
        assert {"ten", "flip"} <= {name for name, _ in steps}
        return
    assert len(chosen) == math.prod(
        counts.get(name) or len(plain_values) or 3 for name, plain_values in steps
    )
    assert chosen.resizes == any(name in ("scales", "resize") for name, _ in steps)
    images = torch.rand(2, 3, 48, 48)
    sizes = {tuple(seen.shape[:2]) for seen in chosen(images).values()}
    assert sizes == {(2, 3)}
