"""Deterministic views of a batch: pure functions on (N, 3, H, W) in [0, 1], a dict in plain sight."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

Views = Callable[[Tensor], dict[str, Tensor]]

VIEWS: dict[str, Views] = {
    "none": lambda pictures: {"plain": pictures},
    "flip": lambda pictures: {"plain": pictures, "mirror": pictures.flip(-1)},
}


def resize(pictures: Tensor, size: int) -> Tensor:
    """Pictures resized to `size` x `size`, bilinear with antialias; unchanged where they have that size."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    return F.interpolate(pictures, (size, size), mode="bilinear", align_corners=False, antialias=True)
