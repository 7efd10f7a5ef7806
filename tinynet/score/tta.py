"""Any classifier as its augmented self: a module that looks at several views and says one
distribution.
"""

import torch
from torch import Tensor, nn

from tinynet.score import merges, views
from tinynet.score.probabilities import log_softmax


class Augmented(nn.Module):
    """A network whose answer is the merged answer to several views of each picture.

    `network`: pictures (N, 3, H, W) to logits (N, C). `tta`: a set of views as `views.get` reads
    it; `merge`: a name of `merges.MERGES`; `size`: that the network sees (default: the pictures'
    shorter side). Raises `InputError` for views or a merge that there are not.
    """

    def __init__(
        self, network: nn.Module, tta: str = "flip", merge: str = "mean", size: int | None = None
    ):
        super().__init__()
        self.network, self.views, self.merge = network, views.get(tta, size), merges.get(merge)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C) float32 log-probabilities; the most probable class is the one of the views
        together.
        """
        return self.merge(
            torch.stack([log_softmax(self.network(seen)) for seen in self.views(images).values()])
        )
