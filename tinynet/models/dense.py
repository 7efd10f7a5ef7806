"""Fully convolutional evaluation of a classifier on larger images."""

import math

import torch
from torch import Tensor, nn

from tinynet.errors import InputError
from tinynet.models.classifier import Classifier, pool_maps


class Dense(nn.Module):
    """A classifier slid over larger images: fully convolutional scoring (Sermanet et al. 2014).

    The feature maps of the whole image are cut into windows, each as large as the maps of an image
    of `side` pixels. Neighbouring windows are one cell of the deepest map apart. The head
    classifies each window, and the probabilities are averaged. Unlike crops, the maps of a window
    depend on pixels outside the window.
    """

    def __init__(self, model: Classifier, side: int):
        super().__init__()
        self.model, self.side = model, side
        self.strides = {
            layer: model.backbone.strides[layer]
            for layer in {feature.split(":")[0] for feature in model.feature_names}
        }
        self.step = max(self.strides.values()) or 1

    def check(self, images: Tensor) -> None:
        """Raise `InputError` if images (N, 3, H, W) are not a whole number of steps larger.

        Also if a layer has no maps, or its cells do not divide an image of `side` pixels.
        """
        arch = self.model.backbone.arch
        for layer, stride in self.strides.items():
            if not stride:
                raise InputError(
                    f"dense: layer {layer} of {arch} has no maps to slide over; use other views, "
                    "for instance ten"
                )
            if self.side % stride and not self.model.backbone.floors:
                raise InputError(
                    f"dense: a cell of layer {layer} of {arch} has {stride} pixels, which do not "
                    f"divide the network's {self.side} px; use other views, for instance ten"
                )
        height, width = images.shape[-2:]
        if min(height, width) < self.side or any(
            (length - self.side) % self.step for length in (height, width)
        ):
            raise InputError(
                f"dense: images of {width}x{height} pixels do not fit a network of {self.side} px; "
                f"use {self.side} pixels plus a multiple of {self.step}, for instance "
                f"dense:{self.side + self.step}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Compute (N, C) log-probabilities, averaged over windows in the probability domain.

        `images`: (N, 3, H, W) in [0, 1]. H and W are `side` or a multiple of `step` larger. Raises
        `InputError` for other sizes.
        """
        self.check(images)
        windows = {}
        for layer, maps in self.model.backbone(images, self.strides).items():
            stride = self.strides[layer]
            for axis in (2, 3):
                maps = maps.unfold(axis, self.side // stride, self.step // stride)
            # (N, channels, rows, columns, h, w) -> (N * rows * columns, channels, h, w)
            windows[layer] = maps.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        count = len(next(iter(windows.values()))) // len(images)
        logits = self.model.head(pool_maps(windows, self.model.feature_names))
        return torch.logsumexp(
            torch.log_softmax(logits.float(), 1).view(len(images), count, -1), 1
        ) - math.log(count)
