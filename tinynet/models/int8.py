"""The frozen backbone in int8, for CPUs that multiply 8-bit integers faster than floats.

Post-training static quantisation (Jacob et al. 2018). Weights are symmetric, one scale per output
channel. Activations are unsigned, one scale per layer, because each follows a ReLU. Measurements:
`int8.json` and `bfloat16/int8.json` in `benchmarks/results`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tinynet.models.backbone import Backbone


class Int8Backbone(nn.Module):
    """An int8 version of `backbone`; its first convolution stays in float32.

    `images`: (N, 3, H, W) float in [0, 1], a sample of the input, to calibrate the range of each
    layer. The ranges are then fixed, so an output does not depend on the other images of a batch.
    The network has no gradients and runs only on CPUs. It must be a chain (`Backbone.chain`).
    `last`: the name of its last layer, a ReLU or a pooling; None: the last layer of `backbone`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, images: Tensor, last: str | None = None):
        super().__init__()
        self.register_buffer("mean", backbone.mean)
        self.register_buffer("std", backbone.std)
        self.channels, self.strides = backbone.channels, backbone.strides
        self.arch, self.floors = backbone.arch, backbone.floors
        self.layers: dict[str, nn.Module] = {}
        peaks = _peaks(backbone, images)
        convolution: nn.Conv2d | None = None
        step_in: float | None = None
        layers = backbone.chain()
        assert layers is not None, "the caller has checked that int8 is possible"
        for name, module in layers:
            if isinstance(module, nn.Conv2d):
                convolution = module
            elif isinstance(module, nn.ReLU):
                assert convolution is not None
                # a layer whose activations are all zero still needs a step
                step = (peaks[name] or 1.0) / 255
                self.layers[name] = (
                    _FirstConvolution(convolution, step)
                    if step_in is None
                    else Int8Convolution(convolution, step_in, step)
                )
                step_in = step
            else:
                assert step_in is not None
                self.layers[name] = Int8MaxPool(step_in)
            if name == last:
                break

    def __deepcopy__(self, memo: object) -> "Int8Backbone":
        """Itself: its weights never change, and torch cannot copy those that are prepacked."""
        return self

    def forward(self, images: Tensor, nodes: Iterable[str]) -> dict[str, Tensor]:
        """Compute float32 feature maps of the layers `nodes`, as `Backbone.forward` does."""
        names = set(nodes)
        maps = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        outputs: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            maps = layer(maps)
            if name in names:
                outputs[name] = maps.float() * layer.step
                if len(outputs) == len(names):
                    break
        return outputs


class _FirstConvolution(nn.Module):
    """The first convolution and its ReLU in float32, with a uint8 output.

    Float32 keeps the zero padding of the normalised image exact and costs only 0.6 % of the work.
    """

    def __init__(self, convolution: nn.Conv2d, step: float):
        super().__init__()
        self.convolution, self.step = convolution, step

    def forward(self, images: Tensor) -> Tensor:
        return (self.convolution(images) / self.step).round_().clamp_(0, 255).to(torch.uint8)


class Int8Convolution(nn.Module):
    """A convolution and its ReLU, from uint8 in units of `step_in` to uint8 in units of `step`.

    The operator is the one to which `torch.compile` lowers quantised networks, because it takes
    plain tensors.
    """

    def __init__(self, convolution: nn.Conv2d, step_in: float, step: float):
        super().__init__()
        assert convolution.bias is not None
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
        """(N, C, H, W) uint8 -> uint8 of the same height and width, channels last."""
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


class Int8MaxPool(nn.Module):
    """Maximum over 2x2 cells; torch's max pooling does not support uint8."""

    def __init__(self, step: float):
        super().__init__()
        self.step = step

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, C, H // 2, W // 2) uint8."""
        height, width = (side // 2 * 2 for side in maps.shape[-2:])
        rows = torch.maximum(maps[..., 0:height:2, :width], maps[..., 1:height:2, :width])
        return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def _peaks(backbone: Backbone, images: Tensor) -> dict[str, float]:
    """Return the greatest activation of each layer on `images`."""
    peaks: dict[str, float] = {}
    with torch.inference_mode():
        for batch in images.split(16):  # the maps of 64 images would fill memory
            for name, maps in backbone.walk(batch):
                peaks[name] = max(peaks.get(name, 0.0), maps.amax().item())
    return peaks
