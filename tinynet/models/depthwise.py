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
_MOST = 9  # weights of a channel: the gradient of more is faster in float32
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")  # of conv2d
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_DTYPES = (torch.float32, torch.bfloat16)  # that autocast changes to bfloat16


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
        if func is F.conv2d and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            call = {**_DEFAULTS, **dict(zip(_NAMES, args, strict=False)), **(kwargs or {})}
            if _is_depthwise(call):
                return _convolve(call)
        return func(*args, **(kwargs or {}))


def _is_depthwise(call: Mapping[str, Any]) -> bool:
    """Whether a call of conv2d is of a depthwise convolution that this module can run."""
    inputs, weight = call["input"], call["weight"]
    return (
        inputs.ndim == 4
        and inputs.device.type == "cpu"
        and inputs.dtype in _DTYPES
        and call["groups"] == inputs.shape[1] == weight.shape[0] > 1
        and _pair(call["dilation"]) == (1, 1)
        and not isinstance(call["padding"], str)
    )


def _convolve(call: Mapping[str, Any]) -> Tensor:
    """Compute what a call of conv2d would, by `DepthwiseConv`, in the dtype of autocast."""
    dtype = torch.get_autocast_dtype("cpu")
    tensors = call["input"].to(dtype), call["weight"].to(dtype)
    outputs: Tensor = DepthwiseConv.apply(*tensors, _pair(call["stride"]), _pair(call["padding"]))
    return outputs if call["bias"] is None else outputs + call["bias"].to(dtype).view(-1, 1, 1)


def _pair(value: Any) -> _PAIR:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class DepthwiseConv(torch.autograd.Function):
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
            if weight[0].numel() > _MOST:
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
