"""Resize square images to a test size by one of several interpolation methods."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def _interpolated(mode: str, **options: Any) -> Callable[[Tensor, int], Tensor]:
    def resized(images: Tensor, size: int) -> Tensor:
        # bicubic overshoots
        return F.interpolate(images, (size, size), mode=mode, **options).clamp(0, 1)

    return resized


def _lanczos(images: Tensor, size: int) -> Tensor:
    from PIL import Image  # torch has no such filter

    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    made = [
        np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.LANCZOS))
        for one in pixels
    ]
    return (
        torch.from_numpy(np.stack(made)).to(images.device).permute(0, 3, 1, 2).to(images.dtype)
        / 255
    )


# what training and everything else here uses; it differs from bilinear where pictures shrink
METHOD = "antialias"
# Square pictures (N, 3, H, W) in [0, 1] and a side in pixels -> (N, 3, side, side).
METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "antialias": _interpolated("bilinear", align_corners=False, antialias=True),
    "bilinear": _interpolated("bilinear", align_corners=False),
    "bicubic": _interpolated("bicubic", align_corners=False, antialias=True),
    "nearest": _interpolated("nearest-exact"),
    "area": _interpolated("area"),
    "lanczos": _lanczos,
}


def brought_to(images: Tensor, size: int, method: str = METHOD) -> Tensor:
    """Square pictures (N, 3, H, W) in [0, 1] at `size` pixels, by one of `METHODS`; as they are
    where they have it.
    """
    return images if images.shape[-1] == size else METHODS[method](images, size)
