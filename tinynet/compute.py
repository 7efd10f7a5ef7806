"""Choose device and precision from the hardware, and batches from the memory."""

import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tinynet.allocator import keep_freed_memory
from tinynet.console import advice, log, option
from tinynet.distributed import get_world
from tinynet.errors import InputError

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
_SUPPORTED = {  # floats by device
    "cuda": ("float32", "bfloat16", "float16"),
    "mps": ("float32",),
    "cpu": ("float32", "bfloat16"),
}


@dataclass(frozen=True)
class Compute:
    """A torch device and the precision of a network on it.

    `dtype`: of convolutions and matrix products. `int8`: whether a frozen backbone runs in 8-bit
    integers (`models.int8`); the other layers stay in `dtype`. `compiled`: whether training steps
    are compiled (`torch.compile`). `frozen`: the dtype of frozen networks, None: `dtype`.
    `engine`: what runs a frozen network, `torch` or `openvino` (`models.engines`).
    `large_batches`: whether the network needs larger batches than VGG16 in inference
    (`default_batch_size`). `named`: whether the user named the precision, so that a network that
    cannot run in it is refused. `int8_start`: whether the frozen first layers of a network that is
    trained run in 8-bit integers. `int8_after`: whether the network runs in them after training.
    """

    device: torch.device
    dtype: torch.dtype
    int8: bool = False
    compiled: bool = False
    frozen: torch.dtype | None = None
    engine: Literal["torch", "openvino"] = "torch"
    large_batches: bool = False
    named: bool = field(default=False, compare=False)
    int8_start: bool = False
    int8_after: bool = field(default=False, compare=False)

    def for_frozen(self) -> "Compute":
        """Return these settings with the precision of frozen networks."""
        return replace(self, dtype=self.frozen or self.dtype, frozen=None)

    def for_training(self, frozen_start: bool = False) -> "Compute":
        """Return the settings for a trained backbone: `dtype`, and int8 only for its frozen start.

        `frozen_start`: whether its first layers are frozen. Compiled steps do not use int8, because
        torch would compile these layers too.
        """
        start = frozen_start and self.int8 and not self.compiled
        return replace(
            self,
            int8=False,
            frozen=None,
            engine="torch",
            int8_start=start,
            int8_after=self.int8 or self.int8_after,
        )

    def wait(self, check: Callable[[], None]) -> None:
        """Wait until the device has done its work; `check()` may raise meanwhile.

        A GPU waits without end for another process that is lost.
        """
        if self.device.type == "cuda" and get_world().size > 1:
            event = torch.cuda.Event()
            event.record()
            while not event.query():
                check()
                time.sleep(0.001)

    def check_network(self, runs_in_int8: bool) -> None:
        """Raise `InputError` if the user named int8 for a network that cannot run in it."""
        if self.int8 and self.named and not runs_in_int8:
            raise InputError(
                f"{option('precision')} int8: only VGG16 runs in 8-bit integers; choose from auto, "
                f"{', '.join(_SUPPORTED[self.device.type])}"
            )

    def for_network(self, runs_in_int8: bool, in_openvino: bool = True) -> "Compute":
        """Return these settings for a network in inference.

        VGG16, the network that runs in int8, stays in torch. Others
        have larger batches. With `in_openvino`, they run in it where they are frozen, if it is
        installed.
        """
        if runs_in_int8:
            return self
        fits = (
            in_openvino
            and self.device.type == "cpu"
            and self.dtype in (torch.float32, torch.bfloat16)
        )
        return replace(
            self,
            int8=False,
            engine="openvino" if fits and find_spec("openvino") else "torch",
            large_batches=True,
        )

    def autocast(self) -> AbstractContextManager:
        """Return an autocast context for networks whose weights stay float32."""
        return (
            nullcontext()
            if self.dtype == torch.float32
            else torch.autocast(self.device.type, self.dtype)
        )

    def scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler, which is enabled for float16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @property
    def precision(self) -> str:
        """The name of the precision: float32, bfloat16, float16 or int8."""
        return "int8" if self.int8 else self.floats

    @property
    def floats(self) -> str:
        """The name of `dtype`."""
        return str(self.dtype).removeprefix("torch.")

    def facts(self) -> dict[str, str | bool]:
        """Return the contents of `device` in `recipe.json`."""
        return {
            "type": self.device.type,
            "precision": self.precision,
            "name": str(self),
            "processor": processor(),
            **({"floats": self.floats} if self.int8 else {}),
            **({"compiled": True} if self.compiled else {}),
            **({"engine": self.engine} if self.engine != "torch" else {}),
            **({"frozen": self.for_frozen().floats} if self.frozen else {}),
            **({"start": "int8"} if self.int8_start else {}),
            **({"after": "int8"} if self.int8_after else {}),
        }

    def __str__(self) -> str:
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name(self.device)
        else:
            where = self.device.type + (
                f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
            )
        engine = "OpenVINO" if self.engine == "openvino" else ""
        int8 = self.int8 or self.int8_start
        frozen = "int8" if int8 else self.for_frozen().floats if self.frozen else engine
        return (
            f"{where}, {self.floats}{f', {frozen} where frozen' if frozen else ''}, channels last"
            f"{', compiled' if self.compiled else ''}"
        )


def choose_compute(
    device: str = "auto",
    precision: Precision = "auto",
    int8: bool = True,
    compiled: bool = False,
    floats: str | None = None,
    frozen: str | None = None,
) -> Compute:
    """Choose a device (`auto`: cuda, else cpu) and a precision (`auto`: the fastest in hardware).

    `int8`: whether the command has a frozen backbone that can run in int8. `compiled`: as in
    `Compute`. `floats`: the dtype next to int8, None: the fastest. `frozen`: the dtype of frozen
    networks on a GPU, None: that of `precision` (for `auto`: the fastest).

    mps is used only if `device` names it, because older versions of torch lack operations there. On
    the CPU, freed memory is kept for later allocations (`allocator`).

    Raises `InputError` if the machine does not have the device, the device does not support the
    precision, or the machine cannot compile.
    """
    device, named = _choose_device(device), precision != "auto"
    _check_ranks(device)
    fastest = _fastest_floats(device)
    if precision == "auto":
        frozen = _fastest_frozen(device)
        precision = "int8" if device == "cpu" and int8 and has_vnni() else fastest
    supported = _SUPPORTED[device]
    if device == "cpu" and int8 and has_vnni():
        supported = (*supported, "int8")
    if precision not in supported:
        raise InputError(
            f"{option('precision')} {precision}: not supported on {device}; choose from "
            f"{', '.join(supported)}" + advice(" with --precision")
        )
    if device == "cuda" and precision == "float32":
        # By default the convolutions would round to TF32, which has ten bits.
        torch.backends.cudnn.allow_tf32 = False
    dtype = getattr(torch, (floats or fastest) if precision == "int8" else precision)
    frozen_dtype = getattr(torch, frozen) if frozen and device == "cuda" else dtype
    if device == "cpu":
        keep_freed_memory()
    compute = Compute(
        torch.device(device),
        dtype,
        int8=precision == "int8",
        compiled=compiled,
        frozen=None if frozen_dtype == dtype else frozen_dtype,
        named=named,
    )
    if compiled:
        _try_compiler(compute.device)
    return compute


def _choose_device(device: str) -> str:
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        return "cuda" if available["cuda"] else "cpu"
    if not isinstance(device, str) or not available.get(device):
        names = ", ".join(name for name, present in available.items() if present)
        raise InputError(
            f"{option('device')} {device}: not available on this machine; choose from {names}"
            + advice(" with --device")
        )
    return device


def _check_ranks(device: str) -> None:
    """Raise `InputError` if the ranks of this machine cannot share the device."""
    world = get_world()
    if world.size == 1:
        return
    world.check_equal(device, "device")
    if device == "cuda":
        world.agreed(lambda: _choose_gpu(world.local_rank))
    if device == "mps":
        raise InputError(f"{option('device')} mps: works in one process; start it without torchrun")


def _choose_gpu(local_rank: int) -> None:
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise InputError(
            f"its machine has {gpus} GPUs for more processes than that; let torchrun start "
            f"{gpus} processes on it"
        )
    torch.cuda.set_device(local_rank)


def _try_compiler(device: torch.device) -> None:
    """Raise `InputError` if torch cannot compile, for instance without a C++ compiler or triton."""
    try:
        torch.compile(torch.Tensor.sin)(torch.zeros(8, device=device))
    except Exception as error:  # its type depends on the cause and on the version of torch
        error = getattr(error, "inner_exception", None) or error
        lines = (line.strip() for line in str(error).splitlines())
        reason = next(filter(None, lines), type(error).__name__)
        requirement = (
            "triton and a C compiler such as gcc"
            if device.type == "cuda"
            else "a C++ compiler such as g++"
        )
        raise InputError(
            f"{option('compile')}: this machine cannot compile ({reason[:160]}); install "
            f"{requirement}, or remove {option('compile')}"
        ) from None


def _fastest_floats(device: str) -> Precision:
    """The fastest float precision in hardware: emulated bfloat16 is slower than float32."""
    if device == "cuda":
        capability = torch.cuda.get_device_capability()[0]
        return "bfloat16" if capability >= 8 else _fastest_frozen(device) or "float32"
    if device == "cpu" and (_has_tiles() or _processor_has("_is_avx512_bf16_supported")):
        return "bfloat16"
    return "float32"


def _fastest_frozen(device: str) -> Precision | None:
    """The fastest float precision for frozen networks on a GPU; None for other devices.

    A frozen network has no gradients, so it does not need the range of bfloat16. float16 has three
    bits more at the same speed, and a T4 and an A100 can share cached features. Below compute
    capability 7.0, float16 is slower than float32.
    """
    if device != "cuda":
        return None
    return "float16" if torch.cuda.get_device_capability()[0] >= 7 else "float32"


def _has_tiles() -> bool:
    return _processor_has("_is_amx_tile_supported")


def processor() -> str:
    """Return the processor's name, family and model, and its instruction sets for fast products."""
    if not Path("/proc/cpuinfo").is_file():
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {
        name.strip(): value.strip()
        for name, value in (line.split(":", 1) for line in lines if ":" in line)
    }
    features = [
        flag
        for flag in ("avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
        if flag in fields.get("flags", "").split()
    ]
    return (
        f"{fields.get('model name', '')}, family {fields.get('cpu family')} model "
        f"{fields.get('model')}, {' '.join(features)}"
    )


def has_vnni() -> bool:
    """Whether the processor sums int8 products in one instruction; older processors overflow.

    On such processors int8 is faster than floats: three times as fast as float32 on a Xeon, 1.8
    times as bfloat16 on an EPYC, and 1.55 times as bfloat16 on a Xeon with AMX (`int8.json` and
    `bfloat16/int8.json` in `benchmarks/results`, `late-layers-96-tuned.json` in `experiments`).
    """
    return torch.backends.mkldnn.is_available() and _processor_has("_is_vnni_supported")


def _processor_has(probe: str) -> bool:
    """Call a private probe of torch: up to 2.15 at least, it has no public one."""
    return getattr(torch.cpu, probe, lambda: False)()


class AutoBatch:
    """Wrapper of a function of images (N, 3, H, W) -> (N, ...) that splits batches to fit memory.

    When memory runs out, it halves the batch, also for later calls, and logs this. `owner`: the
    network inside the function, for which the batch size is remembered; None: remember it for this
    wrapper only. Raises `InputError` if a single image does not fit.
    """

    # network -> (height, width) of images -> the batch size that fits
    _limits_by_owner: WeakKeyDictionary[object, dict[tuple[int, ...], int]] = WeakKeyDictionary()

    def __init__(self, function: Callable[[Tensor], Tensor], owner: object | None = None):
        self._function = function
        self._limits = {} if owner is None else self._limits_by_owner.setdefault(owner, {})

    def __call__(self, images: Tensor) -> Tensor:
        """Call the function on a batch, in as many parts as memory needs."""
        limit = min(self._limits.get(images.shape[2:], len(images)), len(images))
        try:
            results = [self._function(part) for part in images.split(limit)]
            return results[0] if len(results) == 1 else torch.cat(results)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        sides = "x".join(map(str, images.shape[:1:-1]))
        if limit == 1:
            raise InputError(
                f"out of memory with a single image of {sides} pixels; use smaller images"
            )
        self._limits[images.shape[2:]] = limit // 2
        log(
            f"out of memory with {limit} images of {sides} pixels at once; continuing with "
            f"{limit // 2} at a time"
        )
        if images.device.type == "cuda":
            torch.cuda.empty_cache()
        return self(images)


def out_of_memory(error: Exception) -> bool:
    """Whether `error` was raised because a device ran out of memory."""
    # Messages of the CPU on Linux and on Windows, of mps, and of libraries on GPUs. Without free
    # memory, cuDNN has no engine for a convolution, and cuBLAS cannot start.
    messages = (
        "can't allocate memory",
        "not enough memory",
        "out of memory",
        "alloc_failed",
        "unable to find an engine",
        "cublas_status_not_initialized",
        "cudnn_status_not_initialized",
        "cudnn_status_internal_error",
    )
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        message in text for message in messages
    )
