"""Test-time augmentation wrapper: merges a classifier's probabilities over views."""

import torch
from torch import Tensor, nn

from tinynet.errors import InputError
from tinynet.score import merges, views
from tinynet.score.probabilities import log_softmax
from tinynet.values import brief


class TestTimeAugmentation(nn.Module):
    """A classifier with test-time augmentation: it merges the probabilities of several views.

    `network`: a module, images (N, 3, H, W) to logits (N, C). `tta`: a set of views, as `views.get`
    parses it. `merge`: a name in `merges.MERGES`. `size`: the network's image size in pixels; None
    is the shorter side of the images.

        model = TestTimeAugmentation(network, tta="flip+scales:224,256")
        predictions = model(images).argmax(1)

    Raises `InputError` if the views or the merge do not exist, or `network` is no module.
    """

    __test__ = False  # pytest would collect a class with this name

    def __init__(
        self, network: nn.Module, tta: str = "flip", merge: str = "mean", size: int | None = None
    ):
        super().__init__()
        if not isinstance(network, nn.Module):
            raise InputError(
                f"model is {brief(network)}; it must be a torch.nn.Module, for instance run.model()"
            )
        self.network, self.views, self.merge = network, views.get(tta, size), merges.get(merge)

    def forward(self, images: Tensor) -> Tensor:
        """Compute merged log-probabilities: images (N, 3, H, W) -> (N, C) float32.

        Raises `InputError` for other images, for instance uint8 or channels last.
        """
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
            kind = f"{type(images).__name__}, {getattr(images, 'dtype', 'no array')}"
            raise InputError(
                f"images are {kind} of shape {tuple(getattr(images, 'shape', ()))}; they must be a "
                "tensor (N, 3, H, W) of floats"
            )
        return self.merge(
            torch.stack([log_softmax(self.network(view)) for view in self.views(images).values()])
        )
