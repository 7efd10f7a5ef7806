"""Changes to a batch of pictures, per sample, on its device: what to change is drawn apart from
changing it.

Pictures are float (N, 3, H, W) in [0, 1]. The functions that change take one parameter a picture
and agree with torchvision's functional of the same name on each picture alone; the functions
`draw_*` draw those parameters from an explicit generator, on its device.
"""

import torch
from torch import Tensor


def hflip(images: Tensor, flags: Tensor) -> Tensor:
    """Mirror the pictures whose flag is set; `flags`: (N,) bool."""
    return torch.where(flags[:, None, None, None], images.flip(-1), images)


def alternating_flags(rows: Tensor, epoch: int) -> Tensor:
    """Mirror every picture in every second epoch, half of the pictures in each.

    `rows`: (N,) int64, the pictures' rows in the archive; returns (N,) bool. Two successive epochs
    show each picture once plain and once mirrored (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds").
    """
    return (rows + epoch) % 2 == 1


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: int
) -> Tensor:
    """Crop each picture by its own rectangle and resize it to `size` x `size`, bilinear with
    antialias.

    `top`, `left`, `height`, `width`: (N,) in pixels, inside the picture. As torchvision's
    `resized_crop(..., antialias=True)`; two small matrix products a picture instead of a loop.
    """
    rows = _resize_weights(top, height, images.shape[-2], size)
    columns = _resize_weights(left, width, images.shape[-1], size)
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def _resize_weights(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """(N, size, side): row i weighs the `side` input pixels that make output pixel i."""
    start, length = start.float()[:, None, None], length.float()[:, None, None]
    scale = length / size
    support = scale.clamp(min=1)  # the triangle widens when shrinking: that is the antialias
    centre = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(side, device=start.device) + 0.5
    weights = (1 - (pixel - centre).abs() / support).clamp(min=0)
    weights = weights * ((pixel > start) & (pixel < start + length))
    return weights / weights.sum(-1, keepdim=True)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blend each picture with its grey version: factor 0 is grey, 1 the picture; `factors`:
    (N,).
    """
    red, green, blue = images.split(1, 1)
    grey = 0.2989 * red + 0.587 * green + 0.114 * blue
    return torch.lerp(grey, images, factors[:, None, None, None]).clamp(0, 1)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn each picture's hue by a fraction of the colour circle; `shifts`: (N,) in [-0.5, 0.5]."""
    hue, saturation, value = _rgb_to_hsv(images)
    sector = (hue + shifts[:, None, None]) % 1 * 6
    # Each channel is a trapezoid in hue, at its own offset (Smith 1978, hexcone model).
    offset = torch.arange(5, 0, -2, device=sector.device)[:, None, None]
    position = (sector[:, None] + offset) % 6
    ramp = torch.minimum(position, 4 - position).clamp(0, 1)
    return (value[:, None] * (1 - saturation[:, None] * ramp)).contiguous()


def _rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue as a fraction of the circle, saturation and value, each (N, H, W)."""
    value, brightest = images.max(1)
    spread = value - images.min(1).values
    red, green, blue = images.unbind(1)
    step = torch.where(spread > 0, spread, torch.ones_like(spread))
    candidates = torch.stack(
        [(green - blue) / step, 2 + (blue - red) / step, 4 + (red - green) / step], 1
    )
    hue = candidates.gather(1, brightest[:, None])[:, 0] / 6 % 1
    return hue, spread / torch.where(value > 0, value, torch.ones_like(value)), value


def colour_jitter(images: Tensor, saturation: Tensor, hue: Tensor, hue_first: Tensor) -> Tensor:
    """Adjust saturation and hue in either order; `hue_first`: (N,) bool, as ColorJitter shuffles
    them.
    """
    first = hue_first[:, None, None, None]
    changed = torch.where(first, adjust_hue(images, hue), adjust_saturation(images, saturation))
    return torch.where(first, adjust_saturation(changed, saturation), adjust_hue(changed, hue))


def draw_flags(count: int, generator: torch.Generator) -> Tensor:
    """(count,) bool, each set by the toss of a coin."""
    return _uniform(count, generator) < 0.5


def draw_sides(count: int, generator: torch.Generator, low: int, high: int) -> Tensor:
    """(count,) crop sides in whole pixels, uniform in low..high."""
    return torch.randint(low, high + 1, (count,), generator=generator, device=generator.device)


def draw_sides_by_area(
    count: int, generator: torch.Generator, side: int, low: float, high: float
) -> Tensor:
    """(count,) crop sides in pixels whose *area* is a fraction of side², uniform in low..high.

    torchvision's RandomResizedCrop with ratio (1, 1): the side is rounded to whole pixels.
    """
    area = low + (high - low) * _uniform(count, generator)
    return (side * area.sqrt()).round().long()


def draw_corners(sides: Tensor, generator: torch.Generator, side: int) -> tuple[Tensor, Tensor]:
    """Top and left of square crops, (N,) each, uniform over all places inside a picture of
    `side`.
    """
    places = side - sides + 1
    top, left = (
        torch.minimum((_uniform(len(sides), generator) * places).long(), places - 1)
        for _ in range(2)
    )
    return top, left


def draw_factors(count: int, generator: torch.Generator, low: float, high: float) -> Tensor:
    """(count,) factors, uniform in low..high."""
    return low + (high - low) * _uniform(count, generator)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)
