"""Batches of packed images on the device: copied as uint8, converted to float there."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from tinynet.compute import Compute
from tinynet.data.packed import PackedPart
from tinynet.distributed import get_world


class Batch(NamedTuple):
    """Images with their labels and rows.

    `images`: (N, 3, H, W) float32 in [0, 1], channels last. `labels`: (N,) int64, or None for test.
    `rows`: (N,) int64, the rows of the images in their part of the archive.
    """

    images: Tensor
    labels: Tensor | None
    rows: Tensor


CHUNK_BYTES = 2**26  # that `send_whole` sends at once
Augment = Callable[[Tensor, Tensor, int], Tensor]


def batches(
    part: PackedPart,
    rows: np.ndarray | None = None,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    augment: Augment | None = None,
    start: int = 0,
) -> Iterator[Batch]:
    """Yield the images of `part` in the order of `rows` (default: all), `batch_size` at a time.

    `augment(images, rows, number)` transforms a batch on its device. `number` counts the batches
    from zero; it can seed the random draws of the batch. `start`: the number of the first batch.
    """
    rows = np.arange(len(part)) if rows is None else np.ascontiguousarray(rows)
    loader = ImageLoader(part, torch.device(device))
    for number in range(start, math.ceil(len(rows) / batch_size)):
        batch_rows = rows[number * batch_size : (number + 1) * batch_size]
        get_world().check()
        yield loader.load(batch_rows, None if augment is None else _numbered(augment, number))


def _numbered(augment: Augment, number: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, rows: augment(images, rows, number)


class ImageLoader:
    """Loads images of `part` on a device."""

    def __init__(self, part: PackedPart, device: torch.device):
        self._part, self._device = part, device

    @cached_property
    def _pool(self) -> Tensor | None:
        """All images on the device; not before any is needed, because sending them takes time."""
        return resident(self._part, self._device)

    def load(
        self, rows: np.ndarray, augment: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Batch:
        """Return the images in `rows` (N,); `augment(images, rows)` transforms them."""
        part, device, pool = self._part, self._device, self._pool
        indices = send(rows, device)
        images = to_float(send(part.images[rows], device) if pool is None else pool[indices])
        labels = None if part.labels is None else send(part.labels[rows], device)
        if augment is not None:
            images = augment(images, indices)
        return Batch(images.contiguous(memory_format=torch.channels_last), labels, indices)


def resident(part: PackedPart, device: torch.device) -> Tensor | None:
    """Keep all images of `part` on the device, (N, H, W, 3) uint8; None if there is no room.

    They are sent once. On the CPU the result is None, because `part` is in its memory already.
    """
    copies = _resident.setdefault(part, {})
    if device not in copies and has_room(part.images.nbytes, device):
        copies[device] = send_whole(part.images, device)
    return copies.get(device)


def has_room(size: int, device: torch.device) -> bool:
    """Whether `size` bytes are less than a quarter of the free memory of a GPU; false on CPUs."""
    return size < free_bytes(device) / 4


_resident: WeakKeyDictionary[PackedPart, dict[torch.device, Tensor]] = WeakKeyDictionary()


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, with the memory that torch has reserved but does not use."""
    if device.type != "cuda":
        return 0
    return (
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
    )


def send(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to the device as a tensor, asynchronously on a GPU."""
    tensor = torch.from_numpy(array)
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def fetch_async(results: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Copy results to the CPU one step behind, so that copying overlaps with compute."""
    last = None
    for tensors in results:
        this = _start_copy(tensors)
        if last:
            yield last()
        last = this
    if last:
        yield last()


def _start_copy(tensors: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
    """Start to copy tensors to the CPU; the result is a function that waits for the copies."""
    on_gpu = tensors[0].is_cuda
    # A non-blocking copy from a GPU goes to pinned memory.
    copies = tuple(tensor.to("cpu", non_blocking=on_gpu) for tensor in tensors)
    event = torch.cuda.Event() if on_gpu else None
    if event:
        event.record()

    def wait() -> tuple[Tensor, ...]:
        if event:
            event.synchronize()
        return copies

    return wait


def send_whole(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy a large array to the device in chunks, because torch never frees pinned memory."""
    tensor = torch.empty(array.shape, dtype=getattr(torch, str(array.dtype)), device=device)
    flat, rows = tensor.view(-1, array.shape[-1]), array.reshape(-1, array.shape[-1])
    count = max(1, CHUNK_BYTES // max(1, rows[:1].nbytes))
    for first in range(0, len(rows), count):
        flat[first : first + count] = send(np.array(rows[first : first + count]), device)
    return tensor


def default_batch_size(size: int, compute: Compute) -> int:
    """Return a batch size for images of `size` x `size` pixels that suits inference.

    VGG16 on a CPU: the pixels of 64 images of 64 x 64, whose maps fit the caches. Other networks:
    that for each thread, up to 16 threads, and never fewer than 16 images. With two threads,
    EfficientNet-Lite0 and ResNet-50 in OpenVINO then reach 0.96 of the rate of the best batch tried
    or more (`benchmarks/results/batch-sizes.json`). A GPU: the pixels of 1,024 such images, because
    it finishes small batches before the CPU launches the next kernels.
    """
    if compute.device.type != "cpu":
        count = 1024
    elif compute.large_batches:
        count = 64 * min(torch.get_num_threads(), 16)
    else:
        count = 64
    return max(16 if compute.large_batches else 1, count * 64**2 // size**2)


def to_float(images: Tensor) -> Tensor:
    """Convert (N, H, W, 3) uint8 to (N, 3, H, W) float32 in [0, 1], channels last."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def seeded_generator(device: torch.device | str, *keys: int | str) -> torch.Generator:
    """Create a generator on `device` that depends on `keys` alone: any batch can be repeated."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))
