"""Time frozen networks in several engines on this CPU, in turn, in one process.

    python -m benchmarks.engines OUT.json --networks timm/tf_efficientnet_lite0 vgg16 --sizes 64 224

For each network and size: images per second in torch (eager, and compiled with frozen weights),
ONNX Runtime and OpenVINO, in float32 and bfloat16 where the engine has it, and in 8-bit integers in
OpenVINO where NNCF is installed; and the relative error of the last layer's output against float32
in torch. Weights are random; the errors hold for these weights only.
"""

import copy
import io
import json
import resource
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.machine import facts
from benchmarks.measure import LITE, network_parser, sizes_taken
from tinynet.allocator import keep_freed_memory
from tinynet.compute import Compute
from tinynet.files import write_json
from tinynet.flags import run_command
from tinynet.models.backbone import Backbone
from tinynet.models.backbones import make_backbone
from tinynet.models.engines import OpenVinoModule, core

Run = Callable[[Tensor], Tensor]
PIXELS = 16 * 224**2  # of a batch


class LastLayer(nn.Module):
    """A backbone that returns the output of its last layer, in a tuple."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone, self.node = backbone, backbone.node("last")
        self.eval()  # the export of ONNX puts all layers into the mode of this module

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.backbone(images, [self.node])[self.node],)


def main() -> None:
    """Run the script."""
    parser = network_parser("benchmarks.engines", __doc__, [LITE, "vgg16"], [64, 128, 224])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each engine in a turn")
    parser.add_argument("--no-allocator", action="store_true", help="leave glibc's allocator alone")
    options = parser.parse_args()
    reuse = not options.no_allocator and keep_freed_memory()
    rows = []
    for arch in options.networks:
        torch.manual_seed(0)
        backbone = make_backbone(arch).eval().requires_grad_(False)
        for size in sizes_taken(backbone, options.sizes):
            row = measure(backbone, size, options.turns, options.seconds)
            print(json.dumps(row), flush=True)
            rows.append(row)
    result = {
        "machine": facts(Compute(torch.device("cpu"), torch.float32)),
        "keeps_freed_memory": reuse,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows": rows,
    }
    write_json(options.out, result)


@torch.inference_mode()
def measure(backbone: Backbone, size: int, turns: int, seconds: float) -> dict:
    """Time all engines on images of one size, in turn."""
    batch = max(1, min(64, PIXELS // size**2))
    images = torch.rand(batch, 3, size, size)
    runs, refused = engines(backbone, images)
    reference = runs["torch float32"](images)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    errors = {
        name: float((run(images) - reference).norm() / reference.norm())
        for name, run in runs.items()
    }
    wrong = [name for name, error in errors.items() if "float32" in name and error > 1e-3]
    if wrong:
        raise SystemExit(f"{backbone.arch}: {', '.join(wrong)} compute something else: {errors}")
    for _ in range(turns):
        for name, run in runs.items():
            run(images)
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                run(images)
                count += batch
            rates[name].append(count / (time.perf_counter() - start))
    return {
        "network": backbone.arch,
        "size": size,
        "batch": batch,
        "images_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "errors": errors,
        "refused": refused,
    }


def engines(backbone: Backbone, images: Tensor) -> tuple[dict[str, Run], dict[str, str]]:
    """The engines that can run the network, and why the others cannot."""
    runs: dict[str, Run] = {}
    refused = {}
    makers: dict[str, Callable[[], Run]] = {
        "onnxruntime float32": lambda: onnx_runtime(LastLayer(backbone), images)
    }
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        compute = Compute(torch.device("cpu"), dtype)
        makers[f"torch {name}"] = lambda dtype=dtype: eager(backbone, dtype)
        makers[f"compile {name}"] = lambda dtype=dtype: compiled(backbone, dtype)
        makers[f"openvino {name}"] = lambda compute=compute: in_openvino(backbone, compute)
    makers["openvino int8"] = lambda: in_openvino_int8(backbone, images)
    for name, maker in makers.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run = maker()
                run(images)
                run(images)
        except Exception as error:  # whatever the engine raises
            refused[name] = " ".join(str(error).split())[:160] or type(error).__name__
        else:
            runs[name] = run
    return runs, refused


def in_torch(backbone: Backbone, dtype: torch.dtype) -> LastLayer:
    """A copy in a precision, channels last."""
    network = LastLayer(copy.deepcopy(backbone))
    network.backbone.body.to(dtype).to(memory_format=torch.channels_last)
    return network


def eager(backbone: Backbone, dtype: torch.dtype) -> Run:
    network = in_torch(backbone, dtype)
    return lambda images: network(images.contiguous(memory_format=torch.channels_last))[0].float()


def compiled(backbone: Backbone, dtype: torch.dtype) -> Run:
    torch._dynamo.reset()
    torch._inductor.config.freezing = True
    network = torch.compile(in_torch(backbone, dtype), dynamic=False)
    return lambda images: network(images.contiguous(memory_format=torch.channels_last))[0].float()


def in_openvino(backbone: Backbone, compute: Compute) -> Run:
    module = OpenVinoModule(LastLayer(backbone), compute, backbone.arch)
    module(torch.rand(1, 3, 224, 224))
    if None in module._requests.values():
        raise RuntimeError("cannot be converted")
    return lambda images: module(images)[0]


def in_openvino_int8(backbone: Backbone, images: Tensor) -> Run:
    has_maps = backbone.strides[backbone.node("last")] > 0
    return quantised(LastLayer(backbone), images, transformer=not has_maps)


def quantised(network: nn.Module, images: Tensor, transformer: bool = False) -> Run:
    """A network in 8-bit integers in OpenVINO, quantised by NNCF with the ranges of `images`."""
    import nncf
    import openvino

    model = openvino.convert_model(network, example_input=images[:2], input=[-1, *images.shape[1:]])
    model = nncf.quantize(
        model,
        nncf.Dataset([image[None].numpy() for image in images]),
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    # The last of OpenVINO's cores must not be deleted (`models.engines`).
    request = core().compile_model(model, "CPU", threads).create_infer_request()

    def run(images: Tensor) -> Tensor:
        request.infer({0: images.contiguous().numpy()}, share_inputs=True)
        return torch.from_numpy(request.output_tensors[0].data.copy())

    return run


def onnx_runtime(network: LastLayer, images: Tensor) -> Run:
    import onnxruntime

    stream = io.BytesIO()
    torch.onnx.export(network, (images,), stream, dynamo=False, opset_version=17)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        stream.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


if __name__ == "__main__":
    run_command(main)
