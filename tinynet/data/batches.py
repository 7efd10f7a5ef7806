"""Packed arrays and a choice of rows become batches on the device: uint8 until there, then float in
[0, 1].
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from tinynet.data.packed import PackedPart


class Batch(NamedTuple):
    """`pictures`: (N, 3, H, W) float32 in [0, 1], channels last. `labels`: (N,) int64, or None for
    test. `rows`: (N,) int64, the pictures' rows in their part of the archive.
    """

    images: Tensor
    labels: Tensor | None
    rows: Tensor


_PART = 2**26  # bytes that `send_whole` sends at once
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
    """Yield the pictures of `part` in the order of `rows` (default: all), `batch_size` at a time.

    `augment(pictures, rows, number)` changes a batch on its device; `number` counts the batches
    from zero, so that its random draws can be seeded by it. `start`: the number of the first batch
    to yield.
    """
    rows = np.arange(len(part)) if rows is None else np.ascontiguousarray(rows)
    device = torch.device(device)
    pool = resident(part, device)
    for number in range(start, math.ceil(len(rows) / batch_size)):
        chosen = rows[number * batch_size : (number + 1) * batch_size]
        at = send(chosen, device)
        images = to_float(send(part.images[chosen], device) if pool is None else pool[at])
        labels = None if part.labels is None else send(part.labels[chosen], device)
        if augment is not None:
            images = augment(images, at, number)
        yield Batch(images.contiguous(memory_format=torch.channels_last), labels, at)


def resident(part: PackedPart, device: torch.device) -> Tensor | None:
    """All pictures of `part` on the device, (N, H, W, 3) uint8, sent once; None where they stay
    where they are.

    The CPU has them in its memory already.
    """
    sent = _sent.setdefault(part, {})
    if device not in sent and has_room(part.images.nbytes, device):
        sent[device] = send_whole(part.images, device)
    return sent.get(device)


def has_room(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may stay on the device for good: a quarter of what is free there,
    nothing on the CPU.
    """
    return size < _free(device) / 4


_sent: WeakKeyDictionary[PackedPart, dict[torch.device, Tensor]] = WeakKeyDictionary()


def _free(device: torch.device) -> int:
    """Bytes of the device that may be filled with pictures; what torch holds and does not use is
    free too.
    """
    if device.type != "cuda":
        return 0
    return (
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
    )


def send(array: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on the device; a GPU does not wait for it."""
    tensor = torch.from_numpy(array)
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def fetched(results: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """The same tensors on the CPU, each result one late: a GPU computes the next while the last is
    used.
    """
    last = None
    for tensors in results:
        this = _leaving(tensors)
        if last:
            yield last()
        last = this
    if last:
        yield last()


def _leaving(tensors: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
    """Begin to copy to the CPU; what is returned waits for the copies and gives them."""
    on_gpu = tensors[0].is_cuda
    # of a GPU's: into pinned memory
    copies = tuple(tensor.to("cpu", non_blocking=on_gpu) for tensor in tensors)
    left = torch.cuda.Event() if on_gpu else None
    if left:
        left.record()

    def arrived() -> tuple[Tensor, ...]:
        if left:
            left.synchronize()
        return copies

    return arrived


def send_whole(array: np.ndarray, device: torch.device) -> Tensor:
    """A large array as a tensor on the device, a part at a time: pinned memory is not given
    back.
    """
    there = torch.empty(array.shape, dtype=getattr(torch, str(array.dtype)), device=device)
    flat, rows = there.view(-1, array.shape[-1]), array.reshape(-1, array.shape[-1])
    at_once = max(1, _PART // max(1, rows[:1].nbytes))
    for first in range(0, len(rows), at_once):
        flat[first : first + at_once] = send(np.array(rows[first : first + at_once]), device)
    return there


def fitting(size: int, device: torch.device) -> int:
    """Pictures of `size` x `size` pixels at once that keep the device busy where nothing learns.

    On CPUs as many pixels as 64 pictures of 64 x 64: more fall out of their caches. A GPU is done
    with those before it is told what to do next, so it gets 16 times as many.
    """
    most = 64 if device.type == "cpu" else 1024
    return max(1, most * 64**2 // size**2)


def to_float(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [0, 1], channels last without a copy."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def seeded(device: torch.device | str, *keys: int | str) -> torch.Generator:
    """A generator on `device` whose draws depend on `keys` alone, so that any batch can be made
    again.
    """
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))
