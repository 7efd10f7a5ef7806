"""Layers whose results depend on the whole batch, where each process has a share of its images.

Dropout draws for all images of the batch on every process, so that an image has the same draws in
one process as in many. Batch norm in training takes mean and variance over all images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tinynet.distributed import World

_LAYER_NAMES = {"StochasticDepth", "DropPath"}  # torchvision's, and timm's
_OF_DROPOUT = {"p": 0.5, "training": True, "inplace": False}
_OF_BATCH_NORM = {
    "weight": None,
    "bias": None,
    "training": False,
    "momentum": 0.1,
    "eps": 1e-5,
}
_DROPOUT_NAMES = ("input", *_OF_DROPOUT)
_BATCH_NORM_NAMES = ("input", "running_mean", "running_var", *_OF_BATCH_NORM)


def depends_on_batch(module: nn.Module) -> bool:
    """Whether a module has a layer that differs under `GlobalBatch` in training."""
    return any(
        isinstance(layer, nn.modules.batchnorm._BatchNorm)
        or (isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0)
        or type(layer).__name__ in _LAYER_NAMES
        for layer in module.modules()
    )


class GlobalBatch(TorchFunctionMode):
    """A context of forward passes on one rank's share of a batch of `count` images.

    A rank whose share is empty has one image of its own, which does not count. Only dropout, the
    draws of stochastic depth (`Tensor.bernoulli_`), and batch norm in training change. The random
    state advances as in one process that has all images.
    """

    def __init__(self, world: World, count: int):
        super().__init__()
        self._world, self._count, self._share = world, count, world.share(count)
        self._counts = self._share.stop > self._share.start

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`, or its equal for the whole batch."""
        kwargs = dict(kwargs or {})
        if func is F.dropout:
            call = {**_OF_DROPOUT, **dict(zip(_DROPOUT_NAMES, args, strict=False)), **kwargs}
            if call["training"] and call["p"] and self._is_of_images(call["input"]):
                return self._dropout(call["input"], call["p"])
        elif func is Tensor.bernoulli_ and self._is_of_images(args[0]):
            whole = args[0].new_empty(self._rows(args[0], self._count), *args[0].shape[1:])
            whole = whole.bernoulli_(*args[1:], **kwargs)
            return args[0].copy_(self._part(whole, args[0]))
        elif func is F.batch_norm:
            call = {
                **_OF_BATCH_NORM,
                **dict(zip(_BATCH_NORM_NAMES, args, strict=False)),
                **kwargs,
            }
            # Without running statistics it may standardise weights.
            if call["training"] and call["running_mean"] is not None:
                return self._batch_norm(**call)
        return func(*args, **kwargs)

    @property
    def _local(self) -> int:
        return max(1, self._share.stop - self._share.start)

    def _is_of_images(self, tensor: Tensor) -> bool:
        return tensor.ndim > 0 and len(tensor) > 0 and len(tensor) % self._local == 0

    def _rows(self, tensor: Tensor, images: int) -> int:
        """The rows of so many images; a transformer may have several for each, its windows."""
        return images * (len(tensor) // self._local)

    def _part(self, whole: Tensor, local: Tensor) -> Tensor:
        start = self._share.start if self._counts else 0
        stop = start + self._local
        return whole[self._rows(local, start) : self._rows(local, stop)]

    def _dropout(self, images: Tensor, p: float) -> Tensor:
        whole = images.new_ones(self._rows(images, self._count), *images.shape[1:])
        return images * self._part(F.dropout(whole, p), images)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """Normalise by the mean and the variance over the images of all ranks."""
        count = self._rows(input, self._count) * input[0].numel() // input.shape[1]
        own = input.numel() // input.shape[1] if self._counts else 0
        norm = _Norm(self._world, count, own, eps)
        output, mean, variance = _BatchNorm.apply(input, weight, bias, norm)
        if running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = variance * (count / max(1, count - 1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        return cast(Tensor, output)


@dataclass(frozen=True)
class _Norm:
    """`count`: the values of a channel on all ranks. `own`: those of this rank that count."""

    world: World
    count: int
    own: int
    eps: float


class _BatchNorm(torch.autograd.Function):
    """Batch norm over all ranks (Ioffe & Szegedy 2015), with one sum over them each way."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, norm: _Norm
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, and mean and variance (C,) over all images."""
        kind = torch.float64 if input.dtype == torch.float64 else torch.float32
        # On a CPU this is five times as fast as var_mean.
        _, mean, inverse = torch.native_batch_norm(
            input, None, None, None, None, True, 0.0, norm.eps
        )
        # In float64, the differences here and below lose nothing that matters.
        mean, variance = mean.double(), inverse.double().pow(-2) - norm.eps
        sums = norm.own * torch.stack([mean, variance + mean.square()])
        mean, square = norm.world.sum(sums) / norm.count
        variance = (square - mean.square()).clamp_min(0)
        mean, variance = mean.to(kind), variance.to(kind)
        ctx.save_for_backward(input, weight, mean, variance)
        ctx.norm, ctx.has_bias = norm, bias is not None
        ctx.mark_non_differentiable(mean, variance)
        output = F.batch_norm(input, mean, variance, weight, bias, False, 0.0, norm.eps)
        return output, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """Return the gradients of input, weight and bias; the latter are those of this rank."""
        input, weight, mean, variance = ctx.saved_tensors
        norm, shape = ctx.norm, [1, -1, *(1 for _ in input.shape[2:])]
        # As if mean and variance were constants; then what goes through them.
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0],
            input,
            torch.ones_like(mean) if weight is None else weight,
            mean,
            variance,
            None,
            None,
            False,
            norm.eps,
            [True, True, True],
        )
        own = torch.stack([of_bias, of_weight]) * (norm.own > 0)
        of_mean, of_variance = norm.world.sum(own) / norm.count
        inverse = torch.rsqrt(variance + norm.eps)
        slope = inverse if weight is None else inverse * weight
        factor = -slope * inverse * of_variance
        constant = -slope * of_mean - factor * mean
        result = torch.addcmul(constant.view(shape), input, factor.view(shape)).add_(direct)
        if not norm.own:  # mean and variance do not depend on an image that does not count
            result.zero_()
        return (
            result.to(input.dtype),
            None if weight is None else of_weight,
            of_bias if ctx.has_bias else None,
            None,
        )
