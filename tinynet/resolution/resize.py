"""Resize square images to a test size by one of several interpolation methods."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def _interpolation(mode: str, **options: Any) -> Callable[[Tensor, int], Tensor]:
    def resize(images: Tensor, size: int) -> Tensor:
        # bicubic overshoots
        return F.interpolate(images, (size, size), mode=mode, **options).clamp(0, 1)

    return resize


def _lanczos(images: Tensor, size: int) -> Tensor:
    from PIL import Image  # torch has no Lanczos filter

    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    resized = [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
        for image in pixels
    ]
    return (
        torch.from_numpy(np.stack(resized)).to(images.device).permute(0, 3, 1, 2).to(images.dtype)
        / 255
    )


# The method of training and of test-time views. It differs from bilinear when an image shrinks.
METHOD = "antialias"
# Square images (N, 3, H, W) in [0, 1] and a side in pixels -> (N, 3, side, side).
METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "antialias": _interpolation("bilinear", align_corners=False, antialias=True),
    "bilinear": _interpolation("bilinear", align_corners=False),
    "bicubic": _interpolation("bicubic", align_corners=False, antialias=True),
    "nearest": _interpolation("nearest-exact"),
    "area": _interpolation("area"),
    "lanczos": _lanczos,
}


def resize_square(images: Tensor, size: int, method: str = METHOD) -> Tensor:
    """Resize square images (N, 3, H, W) in [0, 1] to `size` pixels by one of `METHODS`.

    Images that have this size already are returned unchanged.
    """
    return images if images.shape[-1] == size else METHODS[method](images, size)
