"""Augment a batch of images on its device, with separate random parameters for each image.

Images are float (N, 3, H, W) in [0, 1]. The transforms take one parameter per image. On each image
they agree with the function of the same name in torchvision. The functions `draw_*` draw the
parameters from a generator that the caller passes, on the generator's device.
"""

import torch
from torch import Tensor


def hflip(images: Tensor, flags: Tensor) -> Tensor:
    """Flip the images horizontally where `flags`, (N,) bool, is true."""
    return torch.where(flags[:, None, None, None], images.flip(-1), images)


def alternating_flags(rows: Tensor, epoch: int) -> Tensor:
    """Flags that flip every image in every second epoch, and half of the images in each epoch.

    `rows`: (N,) int64, the rows of the images in the archive. Returns (N,) bool. Two successive
    epochs contain each image once plain and once flipped (Jordan 2024, "94% on CIFAR-10 in 3.29
    Seconds on a Single GPU").
    """
    return (rows + epoch) % 2 == 1


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: int
) -> Tensor:
    """Crop each image to its own rectangle, and resize it to `size` x `size` pixels.

    `top`, `left`, `height`, `width`: (N,) in pixels, inside the image. The resize is bilinear with
    antialiasing, like torchvision's `resized_crop(..., antialias=True)`. Two small matrix products
    per image replace a loop over the images.
    """
    rows = _resize_weights(top, height, images.shape[-2], size)
    columns = _resize_weights(left, width, images.shape[-1], size)
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def _resize_weights(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """(N, size, side): row i has the weights of the `side` input pixels in output pixel i."""
    start, length = start.float()[:, None, None], length.float()[:, None, None]
    scale = length / size
    support = scale.clamp(min=1)  # a wider triangle when shrinking: the antialiasing
    centre = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(side, device=start.device) + 0.5
    weights = (1 - (pixel - centre).abs() / support).clamp(min=0)
    weights = weights * ((pixel > start) & (pixel < start + length))
    return weights / weights.sum(-1, keepdim=True)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blend each image with its grey version; `factors`: (N,), 0 for grey, 1 for no change."""
    red, green, blue = images.split(1, 1)
    grey = 0.2989 * red + 0.587 * green + 0.114 * blue
    return torch.lerp(grey, images, factors[:, None, None, None]).clamp(0, 1)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Shift the hue of each image; `shifts`: (N,) in [-0.5, 0.5], fractions of the hue circle."""
    hue, saturation, value = _rgb_to_hsv(images)
    sector = (hue + shifts[:, None, None]) % 1 * 6
    # Each channel is a trapezoid in hue, at its own offset (Smith 1978, hexcone model).
    offset = torch.arange(5, 0, -2, device=sector.device)[:, None, None]
    position = (sector[:, None] + offset) % 6
    ramp = torch.minimum(position, 4 - position).clamp(0, 1)
    return (value[:, None] * (1 - saturation[:, None] * ramp)).contiguous()


def _rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue as a fraction of the hue circle, saturation and value, each (N, H, W)."""
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
    """Adjust saturation and hue of each image, hue first where `hue_first`, (N,) bool, is true.

    torchvision's ColorJitter shuffles the order in the same way.
    """
    first = hue_first[:, None, None, None]
    halfway = torch.where(first, adjust_hue(images, hue), adjust_saturation(images, saturation))
    return torch.where(first, adjust_saturation(halfway, saturation), adjust_hue(halfway, hue))


def draw_flags(count: int, generator: torch.Generator) -> Tensor:
    """Draw (count,) bool, each true with probability 1/2."""
    return _uniform(count, generator) < 0.5


def draw_sides(count: int, generator: torch.Generator, low: int, high: int) -> Tensor:
    """Draw (count,) int64 crop sides in pixels, uniform from `low` to `high` inclusive."""
    return torch.randint(low, high + 1, (count,), generator=generator, device=generator.device)


def draw_sides_by_area(
    count: int, generator: torch.Generator, side: int, low: float, high: float
) -> Tensor:
    """Draw (count,) int64 crop sides in pixels, with area / side² uniform in [low, high].

    Like torchvision's RandomResizedCrop with ratio (1, 1), which rounds the side to whole pixels.
    """
    area = low + (high - low) * _uniform(count, generator)
    return (side * area.sqrt()).round().long()


def draw_corners(sides: Tensor, generator: torch.Generator, side: int) -> tuple[Tensor, Tensor]:
    """Draw top and left of square crops, (N,) int64 each, uniform over all positions.

    `sides`: (N,) sides of the crops in pixels; `side`: that of the images.
    """
    positions = side - sides + 1
    top, left = (
        torch.minimum((_uniform(len(sides), generator) * positions).long(), positions - 1)
        for _ in range(2)
    )
    return top, left


def draw_factors(count: int, generator: torch.Generator, low: float, high: float) -> Tensor:
    """Draw (count,) float factors, uniform in [low, high]."""
    return low + (high - low) * _uniform(count, generator)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)
