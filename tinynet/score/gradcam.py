"""Where a network looks: Grad-CAM (Selvaraju et al. 2017), and how much of it lies on the
object.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tinynet.errors import InputError
from tinynet.models.classifier import Classifier, statistics


def heat(network: Classifier, images: Tensor, classes: Tensor, node: str) -> Tensor:
    """(N, H, W) at least 0, each adding up to 1 (or all zero): what speaks for a class, and where
    in the picture.

    `network`: in eval mode, float32. `pictures`: (N, 3, H, W) in [0, 1]. `classes`: (N,) what is
    asked about. `depth`: the maps that are weighed, such as `relu4_3`: each by the mean of the
    logit's gradient over it; what speaks against the class is cut off. Taps of shallower depths are
    not seen. Raises `InputError` for a depth that the backbone has not, or that no tap follows.
    """
    backbone = network.backbone
    if node not in backbone.channels:
        raise InputError(f"depth {node!r}: not one of {', '.join(backbone.channels)}")
    wanted = {feature.split(":")[0] for feature in network.feature_names}
    found: dict[str, Tensor] = {}
    with torch.enable_grad():
        # Frozen weights have no gradient: the pictures' is what the way back is kept for.
        for name, maps in backbone.walk(images.detach().clone().requires_grad_()):
            if name in wanted or name == node:
                found[name] = maps
            if len(found) == len(wanted | {node}):
                break
        logits = network.head(
            statistics({name: found[name] for name in wanted}, network.feature_names)
        )
        (gradient,) = torch.autograd.grad(
            logits.gather(1, classes[:, None]).sum(), found[node], allow_unused=True
        )
    maps = found[node]
    if gradient is None:
        raise InputError(
            f"depth {node!r}: the head sees nothing that comes from it; its taps are "
            f"{', '.join(network.feature_names)}"
        )
    weighed = (
        (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).clamp(min=0).detach()
    )
    spread = F.interpolate(weighed, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return spread / spread.sum((1, 2), keepdim=True).clamp(min=torch.finfo(spread.dtype).tiny)


def share_inside(heats: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) the share of each heat map (N, H, W) inside its box: x0, y0, x1, y1 inclusive; nan where
    no box is given or there is no heat.
    """
    return np.array(
        [
            heat[y0 : y1 + 1, x0 : x1 + 1].sum() / heat.sum()
            if x0 >= 0 and heat.sum() > 0
            else np.nan
            for heat, (x0, y0, x1, y1) in zip(heats, boxes, strict=True)
        ]
    )
