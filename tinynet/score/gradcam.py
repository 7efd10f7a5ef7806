"""Grad-CAM (Selvaraju et al. 2017): where in an image a network sees a class."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tinynet.data.batches import to_float
from tinynet.errors import InputError
from tinynet.models.backbone import POOLED
from tinynet.models.classifier import Classifier, pool_maps
from tinynet.score.views import resize

_BATCH = 16  # images whose gradients are computed together


def gradcam(network: Classifier, images: Tensor, classes: Tensor, node: str) -> Tensor:
    """Compute Grad-CAM heat maps (N, H, W), at least 0; each sums to 1, or is all zero.

    `network`: in eval mode, float32. `images`: (N, 3, H, W) in [0, 1]. `classes`: (N,) the class
    indices to explain. `node`: a layer such as `relu4_3`. Each channel of its maps is weighted with
    the mean gradient of the class's logit, and negative sums are set to zero. Features of earlier
    layers do not contribute. Tokens of square images are maps too, without the class token.

    Raises `InputError` if the backbone lacks the layer, the layer has no maps, or it feeds no
    feature of the head.
    """
    node = network.backbone.node(node)
    maps, gradient = _maps_and_gradient(network, images, classes, node)
    if gradient is None:
        raise InputError(
            f"layer {node!r}: does not feed the head, whose features are "
            f"{', '.join(network.feature_names)}; use the layer of one of them"
        )
    maps, gradient = _without_class_token(maps), _without_class_token(gradient)
    if maps.shape[2:].numel() < 2:
        raise InputError(f"layer {node!r}: has no maps at this size; use an earlier layer")
    heat = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).clamp(min=0).detach()
    heat = F.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.sum((1, 2), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)


def heat_layer(network: Classifier, size: int) -> str:
    """Return the layer for heat maps of images of `size` pixels.

    It is the last one with 8 x 8 cells, or with cells of 8 pixels; of a transformer, the last whose
    tokens all reach the head: the class token alone does after the last block.
    """
    backbone = network.backbone
    wide = [name for name, stride in backbone.strides.items() if 0 < stride <= max(8, size // 8)]
    tokens = [name for name, stride in backbone.strides.items() if not stride and name != POOLED]
    return tokens[-3] if len(tokens) > 3 else (wide or list(backbone.channels))[-1]


def heat_maps(
    network: Classifier, images: np.ndarray, classes: np.ndarray, size: int, node: str
) -> np.ndarray:
    """Compute Grad-CAM heat maps (N, H, W) of images (N, H, W, 3) uint8, as `gradcam` does.

    `size`: in pixels, to which the network's input is resized. Raises `InputError` like `gradcam`.
    """
    maps = []
    for batch in np.array_split(np.arange(len(images)), max(1, len(images) // _BATCH)):
        pixels = resize(to_float(torch.from_numpy(images[batch])), size)
        heat = gradcam(network, pixels, torch.from_numpy(classes[batch]), node)
        maps.append(resize(heat[:, None], images.shape[1])[:, 0].numpy())
    return np.concatenate(maps)


def _without_class_token(maps: Tensor) -> Tensor:
    """(N, C, tokens, 1) -> (N, C, side, side) of the patches; maps are returned unchanged."""
    if maps.shape[3] > 1 or maps.shape[2] == 1:
        return maps
    side = math.isqrt(maps.shape[2])
    return maps[:, :, maps.shape[2] - side**2 :].unflatten(2, (side, side)).squeeze(-1)


def _maps_and_gradient(
    network: Classifier, images: Tensor, classes: Tensor, node: str
) -> tuple[Tensor, Tensor | None]:
    """Return maps of layer `node`, and the gradient of the logits; None if they do not depend."""
    layers = {feature.split(":")[0] for feature in network.feature_names}
    with torch.enable_grad():
        # Frozen weights need no gradient. An input that needs one makes torch keep the graph.
        pixels = images.detach().clone().requires_grad_()
        outputs = network.backbone(pixels, layers | {node})
        features = pool_maps({name: outputs[name] for name in layers}, network.feature_names)
        logits = network.head(features)
        (gradient,) = torch.autograd.grad(
            logits.gather(1, classes[:, None]).sum(), outputs[node], allow_unused=True
        )
    return outputs[node], gradient
