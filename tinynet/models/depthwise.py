"""Faster gradients of depthwise convolutions in bfloat16 on a CPU.

torch's kernels (oneDNN) are slow for two of them: the gradient of the input with a stride, and that
of the weights of kernels larger than 3 x 3. With the gradients of this module, a training step of
EfficientNet-Lite0 takes 0.57 times as long (`benchmarks/results/depthwise.json`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PAIR = tuple[int, int]
_LARGE = 9  # weights of a channel, from which on their gradient is faster in float32


def has_depthwise(module: nn.Module) -> bool:
    """Whether a network has depthwise convolutions."""
    return any(
        isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1
        for layer in module.modules()
    )


class FastDepthwise(TorchFunctionMode):
    """A context of forward passes: depthwise convolutions get the gradients of this module.

    Only those in bfloat16, by autocast on the CPU, change. All results are equal up to rounding.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`, or for a depthwise convolution its equal with faster gradients."""
        if func is F.conv2d and torch.is_grad_enabled():
            inputs, weight, bias, stride, padding = _arguments(*args, **(kwargs or {}))
            if stride and torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
                outputs = _Depthwise.apply(inputs.to(dtype), weight.to(dtype), stride, padding)
                return outputs if bias is None else outputs + bias.to(dtype).view(-1, 1, 1)
        return func(*args, **(kwargs or {}))


def _arguments(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, _PAIR | None, _PAIR]:
    """The arguments of a convolution; the stride is None unless it is depthwise, on the CPU."""
    depthwise = inputs.ndim == 4 and groups == inputs.shape[1] == weight.shape[0] > 1
    plain = _pair(dilation) == (1, 1) and not isinstance(padding, str)
    changed = depthwise and plain and inputs.device.type == "cpu"
    return inputs, weight, bias, _pair(stride) if changed else None, _pair(padding)


def _pair(value: Any) -> _PAIR:
    if isinstance(value, int):
        return value, value
    return (0, 0) if isinstance(value, str) else (value[0], value[-1])


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of inputs (N, C, H, W) with weights (C, 1, h, w)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, stride: _PAIR, padding: _PAIR) -> Tensor:
        """Compute the convolution."""
        ctx.save_for_backward(inputs, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(inputs, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Compute the gradients of the inputs and the weights."""
        inputs, weight = ctx.saved_tensors
        of_inputs = of_weight = None
        if ctx.needs_input_grad[0]:
            spread = _spread(gradient, inputs, weight, ctx.stride, ctx.padding)
            of_inputs = _gradient(spread, inputs, weight, (1, 1), ctx.padding, 0)
        if ctx.needs_input_grad[1]:
            if weight[0].numel() > _LARGE:
                tensors = gradient.float(), inputs.float(), weight.float()
            else:
                tensors = gradient, inputs, weight
            of_weight = _gradient(*tensors, ctx.stride, ctx.padding, 1).to(weight.dtype)
        return of_inputs, of_weight, None, None


def _spread(
    gradient: Tensor, inputs: Tensor, weight: Tensor, stride: _PAIR, padding: _PAIR
) -> Tensor:
    """The gradient of the same convolution without a stride: zero where the stride skips."""
    if stride == (1, 1):
        return gradient
    height, width = (
        side + 2 * pad - kernel + 1
        for side, pad, kernel in zip(inputs.shape[2:], padding, weight.shape[2:], strict=True)
    )
    shape = (*gradient.shape[:2], height, width)
    spread = gradient.new_zeros(shape).contiguous(memory_format=torch.channels_last)
    spread[:, :, :: stride[0], :: stride[1]] = gradient
    return spread


def _gradient(
    gradient: Tensor, inputs: Tensor, weight: Tensor, stride: _PAIR, padding: _PAIR, of: int
) -> Tensor:
    """The gradient of the inputs (`of` 0) or of the weights (`of` 1)."""
    mask = [of == 0, of == 1, False]
    ones, zeros = (1, 1), (0, 0)
    return torch.ops.aten.convolution_backward(
        gradient, inputs, weight, None, stride, padding, ones, False, zeros, len(weight), mask
    )[of]
