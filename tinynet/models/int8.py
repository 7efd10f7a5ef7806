"""The frozen backbone in 8-bit integers, for processors that multiply those faster than floats.

Post-training static quantisation (Jacob et al. 2018): weights symmetric and per output channel,
activations unsigned and per layer, since every one of them follows a ReLU. Evidence: `int8.json`
and `bfloat16/int8.json` in `benchmarks/results`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tinynet.models.vgg import Backbone


class Int8Backbone(nn.Module):
    """A backbone that says what `backbone` says, its convolutions but the first computed in 8-bit
    integers.

    `pictures`: (N, 3, H, W) float in [0, 1], like those it will see: they set the range of every
    layer, which then is fixed, so that what is said of a picture does not depend on the batch it
    comes in. It has no gradients and runs on the CPU only.
    """

    def __init__(self, backbone: Backbone, images: Tensor):
        super().__init__()
        self.register_buffer("mean", backbone.mean)
        self.register_buffer("std", backbone.std)
        self.channels, self.strides = backbone.channels, backbone.strides
        self.layers: dict[str, nn.Module] = {}
        peaks = _peaks(backbone, images)
        convolution, step_in = None, None
        for name, module in backbone.layers():
            if isinstance(module, nn.Conv2d):
                convolution = module
            elif isinstance(module, nn.ReLU):
                # a layer that is silent on all of them still needs a step
                step = (peaks[name] or 1.0) / 255
                self.layers[name] = (
                    _First(convolution, step)
                    if step_in is None
                    else _Int8Convolution(convolution, step_in, step)
                )
                step_in = step
            else:
                self.layers[name] = _MaxPool(step_in)

    def forward(self, images: Tensor, nodes: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps at `depths`, float32, like `Backbone.forward`."""
        wanted = set(nodes)
        maps = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        found = {}
        for name, layer in self.layers.items():
            maps = layer(maps)
            if name in wanted:
                found[name] = maps.float() * layer.step
                if len(found) == len(wanted):
                    break
        return found


class _First(nn.Module):
    """The first convolution and its ReLU in float32, the result rounded: 0.6 % of the work, and the
    zeros around a normalised picture stay what they are.
    """

    def __init__(self, convolution: nn.Conv2d, step: float):
        super().__init__()
        self.convolution, self.step = convolution, step

    def forward(self, images: Tensor) -> Tensor:
        return (self.convolution(images) / self.step).round_().clamp_(0, 255).to(torch.uint8)


class _Int8Convolution(nn.Module):
    """A convolution and its ReLU from uint8 to uint8: number x of the input stands for x times
    `step_in`.

    The operation is the one that `torch.compile` lowers quantised networks to; it takes plain
    tensors.
    """

    def __init__(self, convolution: nn.Conv2d, step_in: float, step: float):
        super().__init__()
        weight = convolution.weight.detach().float()
        peaks = weight.abs().amax((1, 2, 3))
        self.steps = torch.where(peaks > 0, peaks, 1.0) / 127
        rounded = (weight / self.steps.view(-1, 1, 1, 1)).round().to(torch.int8)
        self.geometry = [
            list(pair) for pair in (convolution.stride, convolution.padding, convolution.dilation)
        ]
        self.weight = torch.ops.onednn.qconv_prepack(
            rounded, self.steps, step_in, 0, *self.geometry, 1
        )
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = convolution.bias.detach().float()
        self.step_in, self.step = step_in, step

    def forward(self, maps: Tensor) -> Tensor:
        return torch.ops.onednn.qconv2d_pointwise(
            maps,
            self.step_in,
            0,
            self.weight,
            self.steps,
            self.zeros,
            self.bias,
            *self.geometry,
            1,
            self.step,
            0,
            torch.uint8,
            "relu",
            [],
            "",
        )


class _MaxPool(nn.Module):
    """Maximum over 2x2, for uint8, which torch's own pooling does not take."""

    def __init__(self, step: float):
        super().__init__()
        self.step = step

    def forward(self, maps: Tensor) -> Tensor:
        height, width = (side // 2 * 2 for side in maps.shape[-2:])
        rows = torch.maximum(maps[..., 0:height:2, :width], maps[..., 1:height:2, :width])
        return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def _peaks(backbone: Backbone, images: Tensor) -> dict[str, float]:
    """The greatest activation of every layer on `pictures`; a few at a time, for the maps of 64
    fill memory.
    """
    peaks: dict[str, float] = {}
    with torch.inference_mode():
        for some in images.split(16):
            for name, maps in backbone.walk(some):
                peaks[name] = max(peaks.get(name, 0.0), maps.amax().item())
    return peaks
