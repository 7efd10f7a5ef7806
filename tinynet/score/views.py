"""Test-time views: deterministic functions of images (N, 3, H, W) in [0, 1], in named sets.

A set is written as steps joined by `+`. The result is their product, applied from left to right:
`flip+scales:64,80` is each image and its horizontal flip, both at 64 and at 80 pixels. Numbers
follow a step after a colon. If no step resizes, images are first resized to the network's size, or
to 8/7 of it before crops of that size.

    views.get("ten", size=64)(images)  # {"top-left": (N, 3, 64, 64), ..., "mirror centre": ...}
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tinynet.console import advice
from tinynet.errors import InputError
from tinynet.models.classifier import MAX_SIDE
from tinynet.values import as_integer, brief

View = Callable[[Tensor], Tensor]
Views = dict[str, View]

PLAIN = "plain"  # the name of the identity; omitted in the names of products
DENSE = "dense"
# Positions of crops, as fractions of the free height and width above and left of the crop. They are
# those of torchvision's FiveCrop, in its order.
CORNERS = {
    "top-left": (0, 0),
    "top-right": (0, 1),
    "bottom-left": (1, 0),
    "bottom-right": (1, 1),
    "centre": (0.5, 0.5),
}


# --- views: functions of images ---


def identity(images: Tensor) -> Tensor:
    """Return the images unchanged."""
    return images


def hflip(images: Tensor) -> Tensor:
    """Flip the images horizontally."""
    return images.flip(-1)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side to `size` pixels, bilinear with antialias, keeping the aspect ratio.

    Images that already have this size are returned unchanged.
    """
    height, width = images.shape[-2:]
    if min(height, width) == size:
        return images
    sides = (
        (size, int(size * width / height))
        if height <= width
        else (int(size * height / width), size)
    )
    return F.interpolate(images, sides, mode="bilinear", align_corners=False, antialias=True)


def crop(images: Tensor, size: int, down: float, right: float) -> Tensor:
    """Crop `size` x `size` pixels.

    `down`, `right`: position in [0, 1], the share of the free height above the crop and of the free
    width left of it. Raises `InputError` if the images are smaller than the crop.
    """
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise InputError(
            f"a crop of {size} pixels does not fit into images of {width}x{height}; resize them "
            f"to a larger size first, for instance resize:{round(size * 8 / 7)}+five"
        )
    top, left = round((height - size) * down), round((width - size) * right)
    return images[..., top : top + size, left : left + size]


def translate(images: Tensor, down: int, right: int) -> Tensor:
    """Translate by pixels, repeating the border pixels."""
    height, width = images.shape[-2:]
    padded = F.pad(
        images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)), mode="replicate"
    )
    return padded[
        ..., max(-down, 0) : max(-down, 0) + height, max(-right, 0) : max(-right, 0) + width
    ]


def turn(images: Tensor, degrees: float) -> Tensor:
    """Rotate counter-clockwise about the centre, bilinear, reflecting the image at its border."""
    height, width = images.shape[-2:]
    angle = torch.deg2rad(torch.tensor(degrees))
    sine, cosine = angle.sin().item(), angle.cos().item()
    rows = torch.tensor(
        [[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]],
        dtype=images.dtype,
        device=images.device,
    )
    grid = F.affine_grid(rows.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def enlarge(images: Tensor, factor: float) -> Tensor:
    """Crop the centre 1 / `factor` of each side and resize it to the size of the image."""
    height, width = images.shape[-2:]
    crop_height, crop_width = round(height / factor), round(width / factor)
    top, left = round((height - crop_height) / 2), round((width - crop_width) / 2)
    return F.interpolate(
        images[..., top : top + crop_height, left : left + crop_width],
        (height, width),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )


# --- steps: functions of a size and numbers that return views by name ---


def none(size: int) -> Views:
    """Return the identity alone."""
    return {PLAIN: identity}


def flip(size: int) -> Views:
    """Return the identity and the horizontal flip."""
    return {PLAIN: identity, "mirror": hflip}


def five(size: int) -> Views:
    """Return five crops of `size` pixels: the corners and the centre."""
    return {
        name: partial(crop, size=size, down=down, right=right)
        for name, (down, right) in CORNERS.items()
    }


def ten(size: int) -> Views:
    """Return five crops, then those of the flipped image (Krizhevsky et al. 2012).

    The order is that of torchvision's TenCrop.
    """
    return product(flip(size), five(size))


def shift(size: int, pixels: int | None = None) -> Views:
    """Return the identity and translations by `pixels` in four directions.

    The default is a sixteenth of the size.
    """
    by = pixels or max(1, size // 16)
    return {
        PLAIN: identity,
        f"left {by}": partial(translate, down=0, right=-by),
        f"right {by}": partial(translate, down=0, right=by),
        f"up {by}": partial(translate, down=-by, right=0),
        f"down {by}": partial(translate, down=by, right=0),
    }


def rotate(size: int, degrees: float = 5) -> Views:
    """Return the identity and rotations by `degrees` in both directions."""
    return {
        PLAIN: identity,
        **{f"turned {d:+g}": partial(turn, degrees=d) for d in (degrees, -degrees)},
    }


def zoom(size: int, factor: float = 1.15) -> Views:
    """Return the identity and the centre, enlarged by `factor`."""
    return {PLAIN: identity, f"zoom {factor:g}": partial(enlarge, factor=factor)}


def scales(size: int, *sides: int) -> Views:
    """Return the whole image resized to each of `sides` (multi-scale testing, He et al. 2016).

    The default is 1, 1.25 and 1.5 times the size.
    """
    sides = sides or tuple(round(size * factor) for factor in (1, 1.25, 1.5))
    return {f"{side} px": partial(resize, size=side) for side in sides}


def resize_to(size: int, side: int) -> Views:
    """Return the image resized to `side` pixels."""
    return {PLAIN: partial(resize, size=side)}


def dense(size: int, side: int | None = None) -> Views:
    """Return the image resized to `side` pixels, for fully convolutional scoring (`models.dense`).

    The default is 1.5 times the size. Scoring follows Sermanet et al. 2014. Unlike ten-crop, each
    window's features depend on pixels outside the window.
    """
    side = side or round(size * 1.5)
    return {
        DENSE: _compose(partial(resize, size=side), partial(crop, size=side, down=0.5, right=0.5))
    }


STEPS: dict[str, Callable[..., Views]] = {
    "none": none,
    "flip": flip,
    "five": five,
    "ten": ten,
    "shift": shift,
    "rotate": rotate,
    "zoom": zoom,
    "scales": scales,
    "resize": resize_to,
    "dense": dense,
}
_RESIZING, _CROPPING = {"scales", "resize", "dense"}, {"five", "ten"}
# Step -> least and greatest count of numbers, least and greatest number. Larger images would fill
# memory.
_NUMBERS: dict[str, tuple[int, int, float, float]] = {
    "shift": (0, 1, 1, 64),
    "rotate": (0, 1, 0.1, 180),
    "zoom": (0, 1, 1, 8),
    "scales": (0, 64, 8, MAX_SIDE),
    "resize": (1, 1, 8, MAX_SIDE),
    "dense": (0, 1, 8, MAX_SIDE),
}
_FRACTIONS = {"rotate", "zoom"}  # steps that accept fractions; the others take pixels


def product(first: Views, second: Views) -> Views:
    """Return each view of `first` followed by each view of `second`, `second` varying faster."""
    return {
        _join_names(first_name, second_name): _compose(first_view, second_view)
        for first_name, first_view in first.items()
        for second_name, second_view in second.items()
    }


def _join_names(*names: str) -> str:
    return " ".join(name for name in names if name != PLAIN) or PLAIN


def _compose(first: View, second: View) -> View:
    if first is identity:
        return second
    if second is identity:
        return first
    return partial(_apply_both, first, second)  # a partial can be pickled, a closure cannot


def _apply_both(first: View, second: View, images: Tensor) -> Tensor:
    return second(first(images))


@dataclass(frozen=True)
class ViewSet:
    """A set of named views.

    `dense`: whether they need fully convolutional scoring (`models.dense`). `resizes`: whether a
    step sets the image size. `size`: the test size in pixels that the steps were given.
    """

    name: str
    views: Views
    dense: bool = False
    resizes: bool = False
    size: int | None = None

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Compute each view of images (N, 3, H, W), by name; sizes may differ between views."""
        return {name: view(images) for name, view in self.views.items()}

    def __len__(self) -> int:
        return len(self.views)


def view_set(text: str, size: int, prepared: bool = False) -> ViewSet:
    """Parse a set of views for a network with images of `size` pixels.

    `prepared`: the images are already resized for crops of `size` (ImageNet's procedure), so the
    default is a centre crop. Raises `InputError` for an unknown step, numbers that the step does
    not accept, or steps that repeat a view.
    """
    if not isinstance(text, str):
        raise InputError(
            f"views is {brief(text)}; it must be one set in a string, like 'flip+scales:64,80'"
        )
    if not 0 < size <= MAX_SIDE:
        raise InputError(
            f"{advice('--size') or 'size'} {size}: out of range; use 1 to {MAX_SIDE} pixels"
        )
    steps = [_parse_step(step, text) for step in text.split("+")]
    names = [name for name, _ in steps]
    resizes, crops = bool(_RESIZING & set(names)), bool(_CROPPING & set(names))
    if resizes or (prepared and crops):
        views = none(size)
    elif prepared:
        views = {PLAIN: partial(crop, size=size, down=0.5, right=0.5)}
    else:
        views = resize_to(size, round(size * 8 / 7) if crops else size)
    for name, numbers in steps:
        step_views = STEPS[name](size, *numbers)
        count = len(views) * len(step_views)
        views = product(views, step_views)
        if len(views) != count:
            raise InputError(f"{text!r}: {name} repeats a view of another step; use each step once")
    return ViewSet(text, views, DENSE in names, resizes, size)


def get(text: str, size: int | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
    """Parse a set of views into a function of images (N, 3, H, W) that returns them by name.

    `size`: the network's image size; None is the shorter side of the images. Raises `InputError` as
    `view_set` does, and for `dense`, which needs a network of tinynet.
    """
    size = None if size is None else as_integer(size, "size")
    if view_set(text, 64 if size is None else size).dense:
        raise InputError(
            f"{text!r}: dense works only for runs of tinynet and is not a view; use scales:96"
        )
    return partial(_apply, text, size)


def _apply(text: str, size: int | None, images: Tensor) -> dict[str, Tensor]:
    return view_set(text, min(images.shape[-2:]) if size is None else size)(images)


def _parse_step(step: str, text: str) -> tuple[str, tuple[float, ...]]:
    """Split a step of `text` into its name and numbers, and check them."""
    name, colon, rest = step.partition(":")
    if name not in STEPS:
        raise InputError(
            f"{text!r}: no views called {name!r}; use {', '.join(STEPS)}, joined by + "
            "(flip+scales:64,80)"
        )
    least, most, low, high = _NUMBERS.get(name, (0, 0, 0, 0))
    try:
        numbers = tuple(float(n) for n in rest.split(",")) if colon else ()
        valid = name in _FRACTIONS or all(n == int(n) for n in numbers)
        if (
            not least <= len(numbers) <= most
            or not all(low <= n <= high for n in numbers)
            or not valid
        ):
            raise ValueError
    except (ValueError, OverflowError):
        kind = ("number" if name in _FRACTIONS else "whole number") + "s" * (most > 1)
        count = most if least == most else f"{least} to {most}" if least else f"at most {most}"
        allowed = f"{count} {kind} from {low:g} to {high:g}" if most else "no numbers"
        raise InputError(f"{text!r}: wrong numbers for {name}; use {allowed}") from None
    return name, tuple(int(n) if n == int(n) else n for n in numbers)
