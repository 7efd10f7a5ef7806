"""A classifier that slides over larger pictures and averages its answers."""

import math

import torch
from torch import Tensor, nn

from tinynet.errors import InputError
from tinynet.models.classifier import Classifier, statistics


class Dense(nn.Module):
    """A classifier that slides over larger pictures: fully convolutional scoring (Sermanet et al.
    2014).

    The maps of the whole picture are cut into windows as large as those of pictures of `side`
    pixels, one deepest cell apart; the head sees each window. In contrast to crops, a window's maps
    know what lies beyond it.
    """

    def __init__(self, model: Classifier, side: int):
        super().__init__()
        self.model, self.side = model, side
        self.strides = {
            node: model.backbone.strides[node]
            for node in {feature.split(":")[0] for feature in model.feature_names}
        }
        self.step = max(self.strides.values())

    def check(self, images: Tensor) -> None:
        """Raise `InputError` for pictures that the windows do not fill."""
        if min(images.shape[-2:]) < self.side or any(
            (s - self.side) % self.step for s in images.shape[-2:]
        ):
            raise InputError(
                f"dense: a network for {self.side} pixels slides over {self.side} and any number "
                f"of {self.step} more, not over {images.shape[-1]}x{images.shape[-2]}; name "
                f"such a size, for instance dense:{self.side + self.step}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """(N, C) logarithms of the mean probability over windows, of pictures (N, 3, H, W) of
        `side` or more.
        """
        self.check(images)
        windows = {}
        for node, maps in self.model.backbone(images, self.strides).items():
            stride = self.strides[node]
            for axis in (2, 3):
                maps = maps.unfold(axis, self.side // stride, self.step // stride)
            # (N * windows, channels, side, side)
            windows[node] = maps.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        count = len(next(iter(windows.values()))) // len(images)
        logits = self.model.head(statistics(windows, self.model.feature_names))
        return torch.logsumexp(
            torch.log_softmax(logits.float(), 1).view(len(images), count, -1), 1
        ) - math.log(count)
