"""A GPU that is not there: its tensors say `cuda:0` and live on the CPU, so that code for GPUs runs
without one.

    with pretend_gpu(capability=(7, 5)) as gpu:
        ...

As on a real GPU:

- Tensors of two devices do not mix. A single number of the CPU's is taken by elementwise operations
alone. - A generator belongs to its device. What is drawn without one comes from the random state of
the device, 16 bytes. - NumPy sees the CPU alone. - A late copy to the CPU (`non_blocking`) is
garbage until somebody waits, and so is what is computed from it before. - Files remember the
device, and `map_location` decides where tensors go. - Interpolation with antialias refuses to
shrink by a large factor. - Memory runs out, where a test says so: `gpu.short_of_memory(images,
error)`.

`gpu.waits` counts what makes the CPU wait for the GPU. `gpu.convolutions` counts convolutions by
dtype.

The numbers are those of the CPU, also under autocast. Not pretended: speed, streams, cuDNN,
`torch.compile`. A function of torch's C++ that makes a tensor beside its input makes it on the CPU,
and then the mix is refused where a GPU would take it; so is what changes the shape of a tensor in
place. A gradient never goes back from the GPU to the CPU.
"""

import math
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from unittest.mock import patch
from weakref import WeakValueDictionary

import numpy as np
import torch

# newer versions of torch load it at a first operation, and it must not meet what is pretended
import torch._dynamo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# --- private names of torch: whatever differs between its versions stands here ---

_make_wrapper = Tensor._make_wrapper_subclass
_parse_to = torch._C._nn._parse_to
_group_tensors = torch._C._group_tensors_by_device_and_dtype
_GROUPING = [
    import_module(f"torch.{name}")
    for name in ("optim.optimizer", "optim.swa_utils", "nn.utils.clip_grad")
]
_HEALTH_CHECKS = [
    name for name in dir(torch.optim.Optimizer) if name.endswith("_graph_capture_health_check")
]
_PINNING = {"is_pinned", "pin_memory", "_pin_memory"}


def _identity(generator):
    """What two Python objects of one generator share: torch makes another object for every call."""
    return generator._cdata


# --- what a GPU does ---

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_COPIES = {"_to_copy", "copy_", "_foreach_copy_"}
# Their answer is a number, or has a shape that depends on numbers.
_READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
    "allclose",
}
# take indices of the CPU's too, and wait for them
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# besides elementwise ones
_TAKE_A_NUMBER = {"masked_fill", "masked_fill_", "fill_", "index_fill", "index_fill_"}
# pixels on each side of the filter's centre
_ANTIALIASED = {"_upsample_bilinear2d_aa": 1, "_upsample_bicubic2d_aa": 2}
_SHARED_MEMORY = 48 * 2**10  # bytes of a block of threads
_GARBAGE = 77

# What torch raises where the memory of a GPU does not suffice, by who notices.
MEMORY_ERRORS = {
    "torch": lambda: torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
        "capacity of 14.58 GiB of which 1.20 GiB is free."
    ),
    "cublas": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "cublas at its start": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    ),
    "cudnn": lambda: RuntimeError("GET was unable to find an engine to execute this computation"),
    "cudnn, integers": lambda: RuntimeError("Unable to find an engine to execute this computation"),
}


@cache
def _name(func):
    return func._schema.name.removeprefix("aten::")


@cache
def _has_tag(func, tag):
    return getattr(torch.Tag, tag) in func.tags


def _leaves(tree):
    """What stands in lists, tuples and dicts; torch's own way takes longer than the work."""
    if isinstance(tree, (list, tuple, dict)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(part)
    else:
        yield tree


def _mapped(kind, function, tree):
    """The same lists, tuples and dicts, `function` applied to whatever in them is of a kind."""
    if isinstance(tree, dict):
        return {name: _mapped(kind, function, part) for name, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([_mapped(kind, function, part) for part in tree])
    return function(tree) if isinstance(tree, kind) else tree


def _waited_for(index):
    """Whether a GPU waits for an index: to have it from the CPU, or to count what it selects."""
    return isinstance(index, Tensor) and (
        not isinstance(index, OnGpu) or index.dtype in (torch.bool, torch.uint8)
    )


class OnGpu(Tensor):
    """A tensor of the GPU for all but torch's C++, which sees one of the CPU. `cpu_tensor`: where
    its numbers are.
    """

    device, is_cuda, is_cpu = CUDA, True, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, cpu_tensor):
        # a view of what was made outside of it shares its version
        with torch.inference_mode(False):
            wrapper = _make_wrapper(
                cls,
                cpu_tensor.shape,
                strides=cpu_tensor.stride(),
                dtype=cpu_tensor.dtype,
                device=CPU,
                storage_offset=cpu_tensor.storage_offset(),
            )
        wrapper.cpu_tensor = cpu_tensor
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Gpu.running().run(func, args, kwargs or {})

    def numpy(self, *_, **__):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    __array__ = numpy

    def pin_memory(self, *_):
        raise RuntimeError(
            "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"
        )

    def get_device(self):
        return 0

    def cpu(self, *_, **__):
        return self.to(CPU)

    def tolist(self):
        return self.cpu().tolist()

    def __setitem__(self, index, value):
        # torch's own would make a tensor of the CPU and send it
        if isinstance(value, (bool, int, float)):
            value = torch.full((), value, dtype=self.dtype, device=CUDA)
        super().__setitem__(index, value)

    def new_tensor(self, data, *, device=CUDA, **options):
        return torch.tensor(data, device=device, **options)

    def __repr__(self, **_):
        return f"{self.cpu()!r} on {CUDA}"

    def __format__(self, form):
        return format(self.item() if self.dim() == 0 else self.cpu(), form)

    def __reduce_ex__(self, protocol):
        self.cpu_tensor.untyped_storage().on_gpu = True  # `_location` reads it
        return self.cpu_tensor.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        twin = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            twin = torch.nn.Parameter(twin, self.requires_grad)
        return memo.setdefault(id(self), twin)


class Generator(torch.Generator):
    """A generator of either device; those of the GPU stand in `on_gpu`."""

    on_gpu = WeakValueDictionary()

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        if torch.device(device).type == "cuda":
            cls.on_gpu[_identity(generator)] = generator
        return generator

    @property
    def device(self):
        return CUDA if _identity(self) in self.on_gpu else CPU


class Event:
    """A mark in the GPU's work: to wait for it is to wait for the copies that were begun before."""

    def __init__(self, *_, **__):
        self.copies = []

    def record(self, *_):
        self.copies = list(Gpu.running().late_copies)

    def query(self):
        return not set(self.copies) & set(Gpu.running().late_copies)

    def synchronize(self):
        Gpu.running().arrive(self.copies)


class Gpu(TorchDispatchMode):
    """What there is of the GPU beside its tensors; `waits`, `convolutions`: see above."""

    now = None

    def __init__(self):
        super().__init__()
        self.waits, self.convolutions = Counter(), Counter()
        self.late_copies, self.pinned_memory = {}, WeakValueDictionary()
        # whether Python asks for a copy there, where torch's C++ believes all tensors to be
        self.to_cpu = False
        self.seed = self.offset = 0  # of its random state
        self.most, self.shortage = math.inf, None

    @classmethod
    def running(cls):
        if cls.now is None:
            raise RuntimeError("a tensor of a pretend GPU is used outside of it")
        return cls.now

    @contextmanager
    def short_of_memory(self, images, error="torch"):
        """Convolutions of more images at once raise one of MEMORY_ERRORS."""
        self.most, self.shortage = images, MEMORY_ERRORS[error]
        try:
            yield
        finally:
            self.most = math.inf

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        elsewhere = (
            OnGpu not in types
            and kwargs.get("device", CPU) == CPU
            and kwargs.get("generator") is None
        )
        if elsewhere and _name(func) not in _PINNING:  # most of what happens, and so it is quick
            return func(*args, **kwargs)
        return self.run(func, args, kwargs)

    def run(self, func, args, kwargs):
        """What an operation of torch does, on the GPU where its tensors are there or what it makes
        is to be.
        """
        # only there torch leaves it to us to take an operation to pieces
        if torch.is_inference_mode_enabled():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = _name(func)
        tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
        device = kwargs.get("device")
        on_gpu = bool(ours) if device is None else torch.device(device).type == "cuda"
        if name in _PINNING:
            return self._pin(name, args[0])
        if name in _COPIES:
            return self._copy(func, args, kwargs, ours)
        self._check_generator(kwargs.get("generator"), on_gpu)
        if not ours and not on_gpu:
            return func(*args, **kwargs)
        if ours:
            self._check_devices(func, name, args, tensors)
        self._check_shared_memory(name, args)
        if name in ("convolution", "_convolution"):
            self._check_memory(args[0])
        if name in _READS or (name in _INDEXING and any(map(_waited_for, args[1]))):
            self.wait(name)
        return self._compute(func, args, kwargs, ours)

    def wait(self, why):
        """The CPU waits, and all that was begun before is finished."""
        self.waits[why] += 1
        self.arrive(list(self.late_copies))

    def arrive(self, copies):
        """Late copies, by their keys, are no garbage from now on."""
        for key in copies:
            if key in self.late_copies:
                copy, value = self.late_copies.pop(key)
                copy.copy_(value)

    def _compute(self, func, args, kwargs, ours):
        """The operation on the CPU, its results on the GPU; what it returns of its arguments stays
        the same object.
        """
        inner, options = _mapped(OnGpu, lambda tensor: tensor.cpu_tensor, (args, kwargs))
        options = {
            name: CPU if name == "device" and value else value
            for name, value in options.items()
            if name != "pin_memory"
        }
        if _has_tag(func, "nondeterministic_seeded") and options.get("generator") is None:
            result = self._draw(func, inner, options)
        else:
            result = func(*inner, **options)
        wrappers = {id(tensor.cpu_tensor): tensor for tensor in ours}

        def wrap(tensor):
            if id(tensor) not in wrappers:
                return OnGpu(tensor)
            if wrappers[id(tensor)].shape != tensor.shape:
                raise NotImplementedError(f"{func}: changes the shape of a tensor in place")
            return wrappers[id(tensor)]

        return _mapped(Tensor, wrap, result)

    def _draw(self, func, inner, options):
        """Chance comes from the device's own seed and offset, the CPU's random state stays as it
        is.
        """
        before = torch.get_rng_state()
        torch.default_generator.manual_seed((self.seed * 1_000_003 + self.offset) % 2**63)
        self.offset += 4
        try:
            return func(*inner, **options)
        finally:
            torch.set_rng_state(before)

    # --- what it refuses ---

    def _check_generator(self, generator, on_gpu):
        if generator is not None and (_identity(generator) in Generator.on_gpu) != on_gpu:
            kinds = ("cuda", "cpu") if on_gpu else ("cpu", "cuda")
            raise RuntimeError(
                "Expected a '{}' device type for generator but found '{}'".format(*kinds)
            )

    def _check_devices(self, func, name, args, tensors):
        theirs = [tensor for tensor in tensors if not isinstance(tensor, OnGpu)]
        if name in _INDEXING:
            if not isinstance(args[0], OnGpu):
                raise RuntimeError(
                    "indices should be either on cpu or on the same device as the indexed tensor "
                    "(cpu)"
                )
            theirs = [
                value
                for value in args[2:3]
                if isinstance(value, Tensor) and not isinstance(value, OnGpu)
            ]
            takes_a_number = True
        else:
            takes_a_number = (
                name in _TAKE_A_NUMBER
                or name.startswith("_foreach_")
                or _has_tag(func, "pointwise")
            )
        if any(tensor.dim() or not takes_a_number for tensor in theirs):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! ({name})"
            )

    def _check_shared_memory(self, name, args):
        """The formula of torch's `upsample_gen2d_aa_out_cuda`, for one row of 32 threads: it has no
        way with fewer.
        """
        if name not in _ANTIALIASED:
            return
        image, sides = args[:2]
        tall, wide = (
            2 * math.ceil(_ANTIALIASED[name] * max(1, before / after)) + 1
            for before, after in zip(image.shape[-2:], sides, strict=True)
        )
        bytes_needed = (32 * wide + 33 * tall) * image.element_size()
        if bytes_needed > _SHARED_MEMORY:
            raise RuntimeError(
                "Provided interpolation parameters can not be handled with current algorithm "
                "implementation. Please reduce the scale factor. Too much shared memory required: "
                f"{bytes_needed} vs {_SHARED_MEMORY}"
            )

    def _check_memory(self, images):
        if len(images) > self.most:
            raise self.shortage()
        self.convolutions[images.dtype] += 1

    # --- copies from device to device ---

    def _pin(self, name, tensor):
        if name == "is_pinned":
            return self.pinned_memory.get(id(tensor)) is tensor
        copy = tensor.clone()
        self.pinned_memory[id(copy)] = copy
        return copy

    def _copy(self, func, args, kwargs, ours):
        """`_to_copy`, `copy_`, `_foreach_copy_`: the only ones that take tensors of two devices."""
        to_new = _name(func) == "_to_copy"
        non_blocking = kwargs.get("non_blocking") or (args[2] if len(args) > 2 else False)
        source = next(_leaves(args[0] if to_new else args[1]))
        if not to_new:
            on_gpu = isinstance(next(_leaves(args[0])), OnGpu)
        elif isinstance(source, OnGpu):
            # unasked it is torch's own doing, for instance the way back through a cast
            on_gpu = not self.to_cpu
        else:
            on_gpu = torch.device(kwargs.get("device") or CPU).type == "cuda"
        if not on_gpu and not ours:
            return func(*args, **kwargs)
        if (
            on_gpu
            and not isinstance(source, OnGpu)
            and not (non_blocking and self._pin("is_pinned", source))
        ):
            self.waits["sent"] += 1
        if on_gpu:
            return self._compute(func, args, kwargs, ours)
        inner, options = _mapped(OnGpu, lambda tensor: tensor.cpu_tensor, (args, kwargs))
        result = func(
            *inner, **{name: CPU if name == "device" else value for name, value in options.items()}
        )
        return self._leave(result, non_blocking and (to_new or self._pin("is_pinned", args[0])))

    def _leave(self, copy, non_blocking):
        """A copy on the CPU; where nobody waits for it, it is garbage at first."""
        if not non_blocking:
            self.wait("fetched")
        elif copy.numel():
            self.late_copies[id(copy)] = copy, copy.clone()
            copy.fill_(math.nan if copy.is_floating_point() else _GARBAGE)
        return copy

    # --- its random state ---

    def get_rng_state(self, *_):
        return torch.from_numpy(np.array([self.seed, self.offset], np.uint64)).view(torch.uint8)

    def set_rng_state(self, state, *_):
        if not isinstance(state, Tensor) or state.is_cuda or state.dtype != torch.uint8:
            raise TypeError("RNG state must be a torch.ByteTensor")
        if state.numel() != 16:
            raise RuntimeError("RNG state is wrong size")
        self.seed, self.offset = np.frombuffer(state.numpy().tobytes(), np.uint64).tolist()

    def manual_seed(self, seed):
        self.seed, self.offset = seed % 2**64, 0


# --- files: where a tensor was, and where it is to be ---


def _location(storage):
    """The tag of a GPU's storage in a file."""
    return str(CUDA) if getattr(storage, "on_gpu", False) else None


def _from_file(storage, location):
    """Marks a storage that a file says, or `map_location` asks, to be on the GPU; `_rebuild` makes
    it so.
    """
    if Gpu.now is None or not location.startswith("cuda"):
        return None
    storage.on_gpu = True
    return storage


# before torch's own, which ask the driver
torch.serialization.register_package(1, _location, _from_file)
_torch_rebuild = torch._utils._rebuild_tensor


def _rebuild(storage, *shape):
    tensor = _torch_rebuild(storage, *shape)
    return OnGpu(tensor) if _location(storage._untyped_storage) else tensor


# --- functions of torch that would ask the driver ---


def _to(tensor, *args, copy=False, **kwargs):
    """`Tensor.to`."""
    if isinstance(args[0] if args else kwargs.get("other"), Tensor):
        other = args[0] if args else kwargs.pop("other")
        args = other.device, other.dtype, *args[1:]
    device, dtype, non_blocking, layout = _parse_to(*args, **kwargs)
    device = tensor.device if device is None else CUDA if device.type == "cuda" else device
    if not copy and layout is None and dtype in (None, tensor.dtype) and device == tensor.device:
        return tensor
    gpu = Gpu.running()
    gpu.to_cpu = device.type == "cpu"
    try:
        return torch.ops.aten._to_copy(
            tensor, dtype=dtype, device=device, non_blocking=non_blocking, memory_format=layout
        )
    finally:
        gpu.to_cpu = False


def _built_and_sent(build):
    """`torch.tensor` and its like: built on the CPU, then sent."""

    def function(*args, device=None, **kwargs):
        tensor = build(*args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return function


def _groups(lists, with_indices=False):
    """Tensors by device and dtype, for optimizers and norms of gradients; torch's own sees all on
    the CPU.
    """
    where = CUDA if isinstance(lists[0][0], OnGpu) else CPU
    return {
        (where, dtype): group for (_, dtype), group in _group_tensors(lists, with_indices).items()
    }


class _Autocast(torch.autocast):
    """The CPU's, in the same dtype."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__(
            "cpu" if torch.device(device_type).type == "cuda" else device_type, *args, **kwargs
        )


def _one_hot(labels, num_classes=-1):
    """`one_hot`; torch's own makes its zeros where C++ believes the labels to be."""
    if not isinstance(labels, OnGpu):
        return _torch_one_hot(labels, num_classes)
    classes = int(labels.max()) + 1 if num_classes < 0 else num_classes
    return torch.zeros(*labels.shape, classes, dtype=torch.long, device=CUDA).scatter_(
        -1, labels[..., None], 1
    )


_torch_one_hot = torch.nn.functional.one_hot


def _cuda(gpu, capability, free):
    """What `torch.cuda` says and does."""
    return dict(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_device_capability=lambda *_: capability,
        get_device_name=lambda *_: "Pretend GPU",
        Event=Event,
        is_bf16_supported=lambda including_emulation=True: (
            including_emulation or capability >= (8, 0)
        ),
        mem_get_info=lambda *_: (free, free),
        memory_reserved=lambda *_: 0,
        memory_allocated=lambda *_: 0,
        empty_cache=lambda: None,
        _lazy_init=lambda: None,
        synchronize=lambda *_: gpu.wait("synchronize"),
        get_rng_state=gpu.get_rng_state,
        set_rng_state=gpu.set_rng_state,
        manual_seed=gpu.manual_seed,
        manual_seed_all=gpu.manual_seed,
    )


@contextmanager
def pretend_gpu(capability=(7, 5), free=14 * 2**30):
    """The machine has one GPU within the block, with `free` bytes; yields it."""
    gpu = Gpu()
    fakes = {
        Gpu: dict(now=gpu),
        torch.cuda: _cuda(gpu, capability, free),
        torch: dict(
            autocast=_Autocast,
            Generator=Generator,
            tensor=_built_and_sent(torch.tensor),
            as_tensor=_built_and_sent(torch.as_tensor),
            asarray=_built_and_sent(torch.asarray),
        ),
        torch.nn.functional: dict(one_hot=_one_hot),
        torch._utils: dict(_rebuild_tensor=_rebuild),
        Tensor: dict(
            to=_to,
            cuda=lambda tensor, *_, **options: tensor.to(CUDA, **options),
            type_as=lambda tensor, other: tensor.to(other),
        ),
        torch.optim.Optimizer: dict.fromkeys(_HEALTH_CHECKS, lambda self: None),
        **{module: dict(_group_tensors_by_device_and_dtype=_groups) for module in _GROUPING},
    }
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as stack:
        for place, names in fakes.items():
            stack.enter_context(patch.multiple(place, create=True, **names))
        # A module's parameters stay the same objects when they are moved, as those of a real GPU
        # do.
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swapping)
        torch.__future__.set_swap_module_params_on_conversion(True)
        yield stack.enter_context(gpu)
