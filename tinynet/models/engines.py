"""Frozen networks in OpenVINO, which runs many of them faster than torch on a CPU.

If OpenVINO is installed (`pip install 'tinynet[openvino]'`), networks other than VGG16 run in it
where they are frozen, on a CPU, in float32 or bfloat16 (`Compute.for_network`). Measurements:
`benchmarks/results/engines.json`.
"""

import copy
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tinynet.compute import Compute
from tinynet.console import log
from tinynet.models.backbone import Backbone
from tinynet.models.classifier import is_norm

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def gains_by_openvino(network: nn.Module) -> bool:
    """Whether a frozen network is faster in OpenVINO, which merges batch norms into convolutions.

    Networks without batch norms gain little (at most 1.2 times) or are slower, so they stay in
    torch (`benchmarks/results/engines.json`).
    """
    return any(map(is_norm, network.modules()))


class OpenVinoModule(nn.Module):
    """A frozen network in OpenVINO, which is compiled for each size of images that it is given.

    `network`: on the CPU, float32; images (N, 3, H, W) -> a tuple of tensors. `compute`: the
    precision. The outputs are float32. Where OpenVINO cannot run the network, torch does, and a
    note says so. `name`: for the note.
    """

    def __init__(self, network: nn.Module, compute: Compute, name: str):
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.compute, self.name = compute, name
        self._requests: dict[tuple[int, int], Any] = {}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs of images (N, 3, H, W) float."""
        height, width = images.shape[-2:]
        if (height, width) not in self._requests:
            self._requests[height, width] = self._compile(height, width)
        request = self._requests[height, width]
        if request is None:
            with self.compute.autocast():
                return tuple(output.float() for output in self.network(images))
        request.infer({0: images.float().contiguous().numpy()}, share_inputs=True)
        # The next request overwrites these numbers.
        return tuple(torch.from_numpy(tensor.data.copy()) for tensor in request.output_tensors)

    def _compile(self, height: int, width: int) -> Any:
        """Return an inference request for images of these sides, or None."""
        try:
            import openvino

            with warnings.catch_warnings(), torch.inference_mode():
                warnings.simplefilter("ignore")  # tracing warns of each shape that Python reads
                model = openvino.convert_model(
                    self.network,
                    example_input=torch.zeros(2, 3, height, width),
                    input=[-1, 3, height, width],
                )
            settings = {
                "INFERENCE_PRECISION_HINT": _HINTS[self.compute.dtype],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",  # one request at a time, on all threads
            }
            request = core().compile_model(model, "CPU", settings).create_infer_request()
            request.infer({0: torch.zeros(1, 3, height, width).numpy()})
        except Exception as error:  # depends on the network and on the version
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            log(f"note: OpenVINO cannot run {self.name} ({reason}); torch runs it")
            return None
        return request


@cache
def core() -> Any:
    """Return OpenVINO's runtime, one for the whole process.

    When its last `Core` is deleted, OpenVINO (2026.4) frees the stack of the signal handlers, and
    the next Ctrl-C crashes the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoBackbone(nn.Module):
    """A frozen backbone (on the CPU, float32) in OpenVINO, which computes the layers `nodes`."""

    def __init__(self, backbone: Backbone, nodes: Sequence[str], compute: Compute):
        super().__init__()
        self.channels, self.strides = backbone.channels, backbone.strides
        self.arch, self.floors = backbone.arch, backbone.floors
        self.nodes = tuple(nodes)
        self.module = OpenVinoModule(_Outputs(backbone, self.nodes), compute, backbone.arch)

    def forward(self, images: Tensor, nodes: Iterable[str]) -> dict[str, Tensor]:
        """Compute the outputs (N, C, h, w) of `nodes`, as `Backbone.forward` does."""
        names = set(nodes)
        outputs = zip(self.nodes, self.module(images), strict=True)
        return {name: output for name, output in outputs if name in names}


class _Outputs(nn.Module):
    """A backbone that returns a tuple of outputs, for conversion."""

    def __init__(self, backbone: Backbone, nodes: Sequence[str]):
        super().__init__()
        self.backbone, self.nodes = backbone, nodes

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.backbone(images, self.nodes)
        return tuple(outputs[name] for name in self.nodes)
