"""Which device, precision and memory format, how much at once: selected by what the machine has,
and said.
"""

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tinynet.console import log
from tinynet.errors import InputError

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]


@dataclass(frozen=True)
class Compute:
    """Where and how a network runs: a torch device and the dtype of its convolutions and products.

    `int8`: whether a backbone that does not learn runs in 8-bit integers (`models.int8`); the rest
    stays in `dtype`. `compiled`: whether steps of training are compiled (`torch.compile`).
    `frozen`: the dtype of what does not learn, where that is another one.
    """

    device: torch.device
    dtype: torch.dtype
    int8: bool = False
    compiled: bool = False
    frozen: torch.dtype | None = None

    def for_frozen(self) -> "Compute":
        """The settings for a frozen network."""
        return replace(self, dtype=self.frozen or self.dtype, frozen=None)

    def for_training(self) -> "Compute":
        """The settings for a trained backbone: the floats that it was trained in."""
        return replace(self, int8=False, frozen=None)

    def autocast(self) -> AbstractContextManager:
        """The context in which a network trains; weights stay float32."""
        return (
            nullcontext()
            if self.dtype == torch.float32
            else torch.autocast(self.device.type, self.dtype)
        )

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler, which does something in float16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @property
    def precision(self) -> str:
        """The choice's name: float32, bfloat16, float16 or int8 (which has floats for what
        learns).
        """
        return "int8" if self.int8 else self.floats

    @property
    def floats(self) -> str:
        """The name of its dtype."""
        return str(self.dtype).removeprefix("torch.")

    def facts(self) -> dict[str, str | bool]:
        """What a run keeps of it, the processor beside."""
        return {
            "type": self.device.type,
            "precision": self.precision,
            "name": str(self),
            "processor": processor(),
            **({"floats": self.floats} if self.int8 else {}),
            **({"compiled": True} if self.compiled else {}),
            **({"frozen": self.for_frozen().floats} if self.frozen else {}),
        }

    def __str__(self) -> str:
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name(self.device)
        else:
            where = self.device.type + (
                f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
            )
        frozen = "int8" if self.int8 else self.for_frozen().floats if self.frozen else ""
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
    """The device called `device` (`auto`: cuda, else cpu) at `precision` (`auto`: the fastest it
    really has).

    `int8`: whether there is a frozen backbone that 8-bit integers could serve. `compiled`: as in
    `Device`. `floats`: those beside the integers of int8, None: the fastest. `frozen`: of what does
    not learn beside a named `precision`, None: the same.

    mps is taken only when named: some of the operations are missing there in older versions of
    torch.

    Raises `InputError` where the machine has no such device, the device no such precision, or it
    cannot compile.
    """
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        device = "cuda" if there["cuda"] else "cpu"
    elif not there.get(device):
        found = ", ".join(name for name, present in there.items() if present)
        raise InputError(
            f"--device {device}: this machine has {found}; name one of these with --device"
        )
    fastest = _fastest_floats(device)
    if precision == "auto":
        frozen = _fastest_frozen(device)
        precision = "int8" if device == "cpu" and int8 and _integers_are_faster() else fastest
    allowed = {
        "cuda": ("float32", "bfloat16", "float16"),
        "mps": ("float32",),
        "cpu": ("float32", "bfloat16", *(("int8",) if int8 and has_vnni() else ())),
    }
    if precision not in allowed[device]:
        raise InputError(
            f"--precision {precision}: on {device} there is {', '.join(allowed[device])}; "
            "name one of these with --precision"
        )
    if device == "cuda" and precision == "float32":
        # else its convolutions round to ten bits and are not float32
        torch.backends.cudnn.allow_tf32 = False
    dtype = getattr(torch, (floats or fastest) if precision == "int8" else precision)
    other = getattr(torch, frozen) if frozen and device == "cuda" else dtype
    selected = Compute(
        torch.device(device),
        dtype,
        int8=precision == "int8",
        compiled=compiled,
        frozen=None if other == dtype else other,
    )
    if compiled:
        _try_compiler(selected.device)
    return selected


def _try_compiler(device: torch.device) -> None:
    """Raise `InputError` where nothing can be compiled: a C++ compiler, headers or triton may be
    what is missing.
    """
    try:
        torch.compile(torch.Tensor.sin)(torch.zeros(8, device=device))
    except Exception as error:  # what is raised depends on what is missing, and on the version
        error = getattr(error, "inner_exception", None) or error
        why = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        needed = (
            "triton and a C compiler such as gcc"
            if device.type == "cuda"
            else "a C++ compiler such as g++"
        )
        raise InputError(
            f"--compile: this machine cannot compile ({why[:160]}); install {needed}, or leave "
            "--compile out"
        ) from None


def _fastest_floats(device: str) -> str:
    """The fastest floats that the hardware computes in itself: an emulated bfloat16 is slower than
    float32.
    """
    if device == "cuda":
        capability = torch.cuda.get_device_capability()[0]
        return "bfloat16" if capability >= 8 else _fastest_frozen(device) or "float32"
    if device == "cpu" and (_has_tiles() or _processor_has("_is_avx512_bf16_supported")):
        return "bfloat16"
    return "float32"


def _fastest_frozen(device: str) -> str | None:
    """The floats of a GPU for what does not learn, and so needs no range for gradients, or None for
    others.

    float16 has three bits more than bfloat16 at the same speed, and caches of features serve a T4
    and an A100 alike. Below compute capability 7.0 it is slower than float32.
    """
    if device != "cuda":
        return None
    return "float16" if torch.cuda.get_device_capability()[0] >= 7 else "float32"


def _integers_are_faster() -> bool:
    """Whether 8-bit integers beat the fastest floats: on a Xeon three times its float32, on an EPYC
    1.8 times AVX-512's bfloat16 (`int8.json`, `bfloat16/int8.json` in `benchmarks/results`); beside
    AMX's they have not been measured.
    """
    return has_vnni() and not _has_tiles()


def _has_tiles() -> bool:
    return _processor_has("_is_amx_tile_supported")


def processor() -> str:
    """The processor's name, family and model, and what it has of the instructions that decide the
    speed.
    """
    if not Path("/proc/cpuinfo").is_file():
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {
        name.strip(): value.strip()
        for name, value in (line.split(":", 1) for line in lines if ":" in line)
    }
    known = [
        flag
        for flag in ("avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
        if flag in fields.get("flags", "").split()
    ]
    return (
        f"{fields.get('model name', '')}, family {fields.get('cpu family')} model "
        f"{fields.get('model')}, {' '.join(known)}"
    )


def has_vnni() -> bool:
    """Whether the processor adds products of 8-bit integers in one instruction; older ones overflow
    on the way.
    """
    return torch.backends.mkldnn.is_available() and _processor_has("_is_vnni_supported")


def _processor_has(probe: str) -> bool:
    """The one place that asks the processor; torch offers no public name for it up to 2.15 at
    least.
    """
    return getattr(torch.cpu, probe, lambda: False)()


class AutoBatch:
    """A function of pictures (N, 3, H, W) -> (N, ...), called on as many at once as the memory
    holds.

    Where it runs out the number is halved, for the calls that follow too, and said. `owner`: the
    network that is called, for which it is known from then on; None: for this function alone.
    Raises `InputError` where one picture is too much.
    """

    _known: WeakKeyDictionary[object, dict[tuple[int, ...], int]] = WeakKeyDictionary()

    def __init__(self, work: Callable[[Tensor], Tensor], owner: object | None = None):
        self._work = work
        # by the sides of pictures
        self._most = {} if owner is None else self._known.setdefault(owner, {})

    def __call__(self, images: Tensor) -> Tensor:
        """Call the function on a batch, in as many parts as memory needs."""
        most = min(self._most.get(images.shape[2:], len(images)), len(images))
        try:
            done = [self._work(part) for part in images.split(most)]
            return done[0] if len(done) == 1 else torch.cat(done)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        sides = "x".join(map(str, images.shape[:1:-1]))
        if most == 1:
            raise InputError(
                f"out of memory with a single image of {sides} pixels; use smaller images"
            )
        self._most[images.shape[2:]] = most // 2
        log(
            f"out of memory with {most} images of {sides} pixels at once; continuing with "
            f"{most // 2} at a time"
        )
        if images.device.type == "cuda":
            torch.cuda.empty_cache()
        return self(images)


def out_of_memory(error: Exception) -> bool:
    """Whether `error` was raised because the memory of a device did not suffice."""
    # Of the CPU on Linux and on Windows, of mps, and of libraries on GPUs: where no memory is left,
    # cuDNN has no engine for a convolution, and cuBLAS cannot start.
    words = (
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
        word in text for word in words
    )
