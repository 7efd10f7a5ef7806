"""Deterministic views: pure functions on pictures (N, 3, H, W) in [0, 1], and sets of them, dicts
in plain sight.

A set is written as steps joined by `+`, which is the product, the left step first:
`flip+scales:64,80` is the picture and its mirror image at 64 and at 80 pixels. Numbers of a step
follow a colon. Where no step resizes, pictures are resized first: to the network's size, or to 8/7
of it where crops of that size follow.

    seen = views.get("ten", size=64)(batch)  {"top-left": (N, 3, 64, 64), ..., "mirror centre": ...}
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

View = Callable[[Tensor], Tensor]
Views = dict[str, View]

# the name of a step that changes nothing, left out where another name stands beside it
PLAIN = "plain"
DENSE = "dense"
# Fractions of the free height and width that lie above and left of a crop: torchvision's FiveCrop,
# in its order.
CORNERS = {
    "top-left": (0, 0),
    "top-right": (0, 1),
    "bottom-left": (1, 0),
    "bottom-right": (1, 1),
    "centre": (0.5, 0.5),
}


# --- what happens to a picture ---


def same(images: Tensor) -> Tensor:
    """The pictures themselves."""
    return images


def hflip(images: Tensor) -> Tensor:
    """Left becomes right."""
    return images.flip(-1)


def resize(images: Tensor, size: int) -> Tensor:
    """Shorter side `size`, aspect ratio kept, bilinear with antialias; unchanged where it has that
    size.
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
    """`size` x `size` pixels with the fractions `down` and `right` of the free sides above and left
    of them.

    Raises `InputError` where the pictures are smaller.
    """
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise InputError(
            f"a crop of {size} pixels does not fit into pictures of {width}x{height}; resize them "
            f"to more before, for instance resize:{round(size * 8 / 7)}+five"
        )
    top, left = round((height - size) * down), round((width - size) * right)
    return images[..., top : top + size, left : left + size]


def move(images: Tensor, down: int, right: int) -> Tensor:
    """Moved by pixels; the border is repeated where nothing is left."""
    height, width = images.shape[-2:]
    wide = F.pad(
        images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)), mode="replicate"
    )
    return wide[
        ..., max(-down, 0) : max(-down, 0) + height, max(-right, 0) : max(-right, 0) + width
    ]


def turn(images: Tensor, degrees: float) -> Tensor:
    """Turned counter-clockwise about the centre, bilinear; beyond the border the picture is
    reflected.
    """
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
    """The middle, `factor` times larger, in the frame of the whole."""
    height, width = images.shape[-2:]
    tall, wide = round(height / factor), round(width / factor)
    top, left = round((height - tall) / 2), round((width - wide) / 2)
    return F.interpolate(
        images[..., top : top + tall, left : left + wide],
        (height, width),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )


# --- sets of views: a size and numbers -> views by name ---


def none(size: int) -> Views:
    """The picture alone."""
    return {PLAIN: same}


def flip(size: int) -> Views:
    """The picture and its mirror image."""
    return {PLAIN: same, "mirror": hflip}


def five(size: int) -> Views:
    """Crops of `size`: four corners and the centre."""
    return {
        name: partial(crop, size=size, down=down, right=right)
        for name, (down, right) in CORNERS.items()
    }


def ten(size: int) -> Views:
    """`five` of the picture, then of its mirror image (Krizhevsky et al. 2012; torchvision's
    TenCrop).
    """
    return product(flip(size), five(size))


def shift(size: int, pixels: int | None = None) -> Views:
    """The picture, and moved by `pixels` (default: a sixteenth of the size) to each side."""
    by = pixels or max(1, size // 16)
    return {
        PLAIN: same,
        f"left {by}": partial(move, down=0, right=-by),
        f"right {by}": partial(move, down=0, right=by),
        f"up {by}": partial(move, down=-by, right=0),
        f"down {by}": partial(move, down=by, right=0),
    }


def rotate(size: int, degrees: float = 5) -> Views:
    """The picture, and turned by `degrees` either way."""
    return {
        PLAIN: same,
        **{f"turned {d:+g}": partial(turn, degrees=d) for d in (degrees, -degrees)},
    }


def zoom(size: int, factor: float = 1.15) -> Views:
    """The picture, and its middle `factor` times larger."""
    return {PLAIN: same, f"zoom {factor:g}": partial(enlarge, factor=factor)}


def scales(size: int, *sides: int) -> Views:
    """Resized to each of `sides` (default: 1, 1.25 and 1.5 times the size), whole (He et al. 2016,
    multi-scale).
    """
    chosen = sides or tuple(round(size * factor) for factor in (1, 1.25, 1.5))
    return {f"{side} px": partial(resize, size=side) for side in chosen}


def resized(size: int, side: int) -> Views:
    """Resized to `side`."""
    return {PLAIN: partial(resize, size=side)}


def dense(size: int, side: int | None = None) -> Views:
    """Resized to `side` (default: 1.5 times the size), for a network that slides over it and
    averages.

    Fully convolutional scoring (Sermanet et al. 2014): not ten-crop, for windows see beyond their
    borders.
    """
    chosen = side or round(size * 1.5)
    return {
        DENSE: _after(partial(resize, size=chosen), partial(crop, size=chosen, down=0.5, right=0.5))
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
    "resize": resized,
    "dense": dense,
}
_RESIZING, _CROPPING = {"scales", "resize", "dense"}, {"five", "ten"}
# How many numbers a step takes, and between what: pixels beyond the last would fill memory, degrees
# say nothing new.
_NUMBERS = {
    "shift": (0, 1, 1, 64),
    "rotate": (0, 1, 0.1, 180),
    "zoom": (0, 1, 1, 8),
    "scales": (0, 64, 8, MAX_SIDE),
    "resize": (1, 1, 8, MAX_SIDE),
    "dense": (0, 1, 8, MAX_SIDE),
}
_FRACTIONS = {"rotate", "zoom"}  # of the others numbers are pixels


def product(first: Views, second: Views) -> Views:
    """Every view of `first` followed by every view of `second`, the latter varying faster."""
    return {
        _joined(a, b): _after(before, then)
        for a, before in first.items()
        for b, then in second.items()
    }


def _joined(*names: str) -> str:
    return " ".join(name for name in names if name != PLAIN) or PLAIN


def _after(before: View, then: View) -> View:
    return (
        then
        if before is same
        else before
        if then is same
        else partial(_one_after_the_other, before, then)
    )


def _one_after_the_other(before: View, then: View, images: Tensor) -> Tensor:
    return then(before(images))


@dataclass(frozen=True)
class ViewSet:
    """Named views of a picture.

    `dense`: whether the network slides over them (`models.dense`). `resizes`: whether a step names
    sizes.
    """

    name: str
    views: Views
    dense: bool = False
    resizes: bool = False

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Pictures (N, 3, H, W) -> each view of them, whose sides may differ."""
        return {name: view(images) for name, view in self.views.items()}

    def __len__(self) -> int:
        return len(self.views)


def view_set(text: str, size: int, prepared: bool = False) -> ViewSet:
    """The set that `text` writes, for a network that sees `size` pixels.

    `prepared`: pictures come resized for crops of `size`, which may be one in the centre
    (ImageNet's procedure). Raises `InputError` for a step that is unknown, twice the same name, or
    numbers that it does not take.
    """
    if not 0 < size <= MAX_SIDE:
        raise InputError(
            f"{advice('--size') or 'size'} {size}: must be from 1 to {MAX_SIDE} pixels"
        )
    steps = [_read(part, text) for part in text.split("+")]
    names = [name for name, _ in steps]
    resizes, crops = bool(_RESIZING & set(names)), bool(_CROPPING & set(names))
    if resizes or (prepared and crops):
        found = none(size)
    elif prepared:
        found = {PLAIN: partial(crop, size=size, down=0.5, right=0.5)}
    else:
        found = resized(size, round(size * 8 / 7) if crops else size)
    for name, numbers in steps:
        before = len(found)
        made = STEPS[name](size, *numbers)
        found = product(found, made)
        if len(found) != before * len(made):
            raise InputError(
                f"{text!r}: {name} gives views that are there already; name each step once"
            )
    return ViewSet(text, found, DENSE in names, resizes)


def get(text: str, size: int | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
    """The views that `text` writes, as a function of a batch; `size`: of the network (default: the
    shorter side).

    Raises `InputError` as `view_set` does, and for `dense`, which is a way of scoring and not a
    view.
    """
    if view_set(text, size or 64).dense:
        raise InputError(
            f"{text!r}: dense is a way of scoring runs of tinynet, not a view; take scales:96"
        )
    return partial(_seen, text, size)


def _seen(text: str, size: int | None, images: Tensor) -> dict[str, Tensor]:
    return view_set(text, size or min(images.shape[-2:]))(images)


def _read(part: str, text: str) -> tuple[str, tuple[float, ...]]:
    name, colon, rest = part.partition(":")
    if name not in STEPS:
        raise InputError(
            f"{text!r}: no views called {name!r}; there are {', '.join(STEPS)}, joined by + "
            "(flip+scales:64,80)"
        )
    least, most, low, high = _NUMBERS.get(name, (0, 0, 0, 0))
    try:
        numbers = tuple(float(n) for n in rest.split(",")) if colon else ()
        whole = name in _FRACTIONS or all(n == int(n) for n in numbers)
        if (
            not least <= len(numbers) <= most
            or not all(low <= n <= high for n in numbers)
            or not whole
        ):
            raise ValueError
    except ValueError:
        kind = "numbers" if name in _FRACTIONS else "whole numbers"
        takes = f"{least} to {most} {kind} from {low:g} to {high:g}" if most else "no numbers"
        raise InputError(f"{text!r}: {name} takes {takes}") from None
    return name, tuple(int(n) if n == int(n) else n for n in numbers)
