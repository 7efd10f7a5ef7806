"""Decode an image of any size to its centre square, resized to one side.

A plain JPEG is decoded by torchvision and resized by torch: same pixels as Pillow's decoder, in a
third of the time of both in Pillow.
"""

import multiprocessing
import warnings
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tinynet.data.decode import decode, is_plain_jpeg, muted
from tinynet.errors import InputError


def centre_square(data: bytes, name: str, side: int) -> np.ndarray:
    """Decode an image upright, and resize its centre square to (side, side, 3) uint8.

    An image of this size stays as it is. Others are resized bicubically, with antialiasing. Raises
    `InputError` if the image cannot be decoded.
    """
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # there is a worker process for each core
    pixels = _plain_jpeg(data, 2 * side)
    if pixels is None:
        try:
            image = decode(data, name, upright=True, least_side=2 * side).image
        except InputError as error:
            raise InputError(
                f"{error}; replace or remove this image (the command `data verify` lists all "
                "damaged images)"
            ) from None
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    height, width = pixels.shape[1:]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = pixels[None, :, top : top + edge, left : left + edge]
    if edge != side:
        # In this memory format torch has a fast kernel for uint8.
        square = F.interpolate(
            square.contiguous(memory_format=torch.channels_last),
            (side, side),
            mode="bicubic",
            antialias=True,
        )
    return cast(np.ndarray, square[0].permute(1, 2, 0).numpy())


def _plain_jpeg(data: bytes, reduced: int) -> Tensor | None:
    """The pixels (3, H, W) uint8 of an ordinary JPEG; None if Pillow must decode it.

    `reduced`: with twice this side, Pillow decodes a part of the JPEG, which is faster still.
    """
    if not is_plain_jpeg(data, 2 * reduced):
        return None
    from torchvision.io import decode_jpeg

    try:
        with warnings.catch_warnings(), muted():
            warnings.simplefilter("ignore")  # the bytes are not writable, and nothing writes
            return decode_jpeg(torch.frombuffer(data, dtype=torch.uint8))
    except RuntimeError:  # damaged, or torchvision was built without libjpeg
        return None
