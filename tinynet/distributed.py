"""Processes that torchrun starts together: their shares of the work, and what they agree on.

`get_world()` is this process among them; without torchrun it is a world of one, in which every
method returns at once. Processes speak to each other through torch.distributed: gloo for CPUs, NCCL
for GPUs. Only the first (rank 0) writes runs and results, and talks to the user.
"""

import os
import uuid
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tinynet.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from torch import Tensor

    from tinynet.signs import LostRank, Signs

Value = TypeVar("Value")

# Seconds after which a rank that does not answer within a collective is given up. Ranks wait in a
# barrier, which has no limit, before a collective to which they may come at different times.
TIMEOUT = 45.0
_JOINING = 600.0  # seconds that ranks may start apart
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched_size() -> int:
    """Return how many processes were started together, from the environment of torchrun."""
    values = [os.environ.get(name, "") for name in _ENVIRONMENT]
    return int(values[1]) if all(values) and values[1].isdecimal() else 1


def launched_rank() -> int:
    """Return this process's rank, from the environment of torchrun; 0 without it."""
    return int(os.environ["RANK"]) if launched_size() > 1 else 0


def was_restarted() -> bool:
    """Whether torchrun has started this command again (`--max-restarts`)."""
    return _attempt() != "0"


def _attempt() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"


@dataclass(frozen=True)
class World:
    """This process among those that were started together.

    `rank`: 0 ... `size` - 1. `local_rank`: its number among those of its machine. `machines`: the
    lowest rank on the machine of each rank.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    machines: tuple[int, ...] = (0,)
    _signs: "Signs | None" = field(default=None, repr=False, compare=False)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def collectives(self) -> int:
        """How many sums and gatherings this rank has taken part in."""
        return self._signs.entered if self._signs else 0

    def share(self, count: int) -> slice:
        """Return this rank's part of `count` rows; the parts are in the order of the ranks.

        If there are fewer rows than ranks, the last ranks have none.
        """
        start, stop = (-(-rank * count // self.size) for rank in (self.rank, self.rank + 1))
        return slice(start, stop)

    def check(self) -> None:
        """Raise `LostRank` if another rank is lost, in work that has no collectives."""
        if self._signs and self._signs.lost:
            from tinynet.signs import LostRank

            raise LostRank(self._signs.lost)

    def sum(self, tensor: "Tensor") -> "Tensor":
        """Return the sum of a tensor over all ranks, which must come at about the same time."""
        if self.size == 1:
            return tensor
        import torch.distributed as dist

        total = tensor.detach().clone()
        with self._collective():
            dist.all_reduce(total)
        return total

    def agree(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is true on any rank."""
        if self.size == 1:
            return list(flags)
        import torch

        return [value > 0 for value in self.sum(torch.tensor(flags, dtype=torch.float32)).tolist()]

    def gather(self, array: "np.ndarray") -> "np.ndarray":
        """Return the arrays of all ranks, joined along the first axis; empty ones are left out."""
        if self.size == 1:
            return array
        import numpy as np

        arrays = self.gather_objects(array)
        return np.concatenate([each for each in arrays if len(each)] or arrays[:1])

    def gather_objects(self, value: Value) -> list[Value]:
        """Return the values of all ranks."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        self.barrier()
        with self._collective():
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait, for as long as they live, until all ranks are here."""
        if self._signs:
            self._signs.barrier()

    def from_main(self, function: Callable[[], Value]) -> Value:
        """Call a function on rank 0; return its result, or raise its `InputError`, on all ranks."""
        if self.size == 1:
            return function()
        import torch.distributed as dist

        result: list[Any] = [_tried(function) if self.main else None]
        self.barrier()
        with self._collective():
            dist.broadcast_object_list(result, src=0)
        value, failure = result[0]
        if failure is not None:
            raise failure
        return cast(Value, value)

    def agreed(self, function: Callable[[], Value]) -> Value:
        """Call a function on every rank; raise the `InputError` of any rank on all of them."""
        if self.size == 1:
            return function()
        result, failure = _tried(function)
        self.raise_first(self.gather_objects(failure))
        return cast(Value, result)

    def raise_first(self, failures: list[InputError | None]) -> None:
        """Raise the first error, with the number of its rank unless it is rank 0."""
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise InputError(f"rank {rank}: {failure}") if rank else failure

    def main_first(self, function: Callable[[], Value]) -> Value:
        """Call a function on each machine's first rank, then on the others, which find its files.

        Raises the `InputError` of any rank on all ranks.
        """
        if self.size == 1:
            return function()
        first = self.agreed(lambda: None if self.local_rank else function())
        later = self.agreed(lambda: function() if self.local_rank else None)
        return cast(Value, later if self.local_rank else first)

    def check_equal(self, value: Any, what: str) -> None:
        """Raise `InputError`, on all ranks, unless `value` is the same on all ranks."""
        values = self.gather_objects(value)
        others = [rank for rank, other in enumerate(values) if other != values[0]]
        if others:
            raise InputError(
                f"{what}: rank {others[0]} has {str(values[others[0]])[:40]}, rank 0 has "
                f"{str(values[0])[:40]}; use the same on every machine"
            )

    def site(self, folder: Path) -> "Site":
        """Return the ranks that write this rank's copy of `folder`, which exists.

        Machines may share the folder, or have one each. All ranks must call this.
        """
        if self.size == 1:
            return Site(self, (0,))
        token = self.from_main(lambda: uuid.uuid4().hex[:12])
        heads = sorted(set(self.machines))
        marks = {head: folder / f".tinynet-{token}-{head}.mark" for head in heads}
        own, here = marks.get(self.rank), self.machines[self.rank]
        try:
            with suppress(OSError):  # a folder that can only be read
                if own:
                    own.touch()
            self.barrier()
            # A machine would not see a new file in a list of the folder that it has read before.
            first = next((head for head, mark in marks.items() if mark.exists()), here)
            self.barrier()
        finally:
            with suppress(OSError):
                if own:
                    own.unlink(missing_ok=True)
        return Site(self, tuple(r for r, head in enumerate(self.machines) if head == first))

    @contextmanager
    def _collective(self) -> "Iterator[None]":
        """A context of one collective: its failures become `LostRank`, with the rank's number."""
        assert self._signs is not None
        self._signs.entered += 1
        try:
            yield
        except RuntimeError as error:
            if is_lost(error):
                raise self.lost(error) from None
            raise

    def lost(self, error: Exception) -> "LostRank":
        """Return the error for the user after a collective has failed, within a few seconds."""
        from tinynet.signs import LostRank

        assert self._signs is not None
        text = " ".join(str(error).split())
        late = "timed out" in text.lower() or "timeout" in text.lower()
        return LostRank(
            self._signs.whom()
            or (self._signs.behind() if late else "")
            or f"the processes cannot talk to each other ({text[:100]})"
        )

    def whom(self) -> str:
        """Return which rank is lost, within a few seconds; empty if all live."""
        return self._signs.whom() if self._signs else ""

    def leave(self, last_words: str) -> bool:
        """Tell the other ranks why this one ends; return whether it must tell the user too.

        The lowest rank that lives tells the user.
        """
        if self._signs is None:
            return True
        told = self._signs.is_told()
        self._signs.close(last_words)
        return not told


@dataclass(frozen=True)
class Site:
    """A folder's copy: `ranks` write it, and those and perhaps others read it.

    The ranks are on one machine, because machines that map one file through a network would
    overwrite each other's rows.
    """

    world: World
    ranks: tuple[int, ...]

    @property
    def main(self) -> bool:
        """Whether this rank writes for all that read this copy."""
        return self.world.rank == self.ranks[0]

    def share(self, items: list[Value]) -> list[Value]:
        """Return those of the items that this rank processes; none if it only reads."""
        if self.world.rank not in self.ranks:
            return []
        return items[self.ranks.index(self.world.rank) :: len(self.ranks)]

    def from_main(self, function: Callable[[], Value]) -> Value:
        """Call a function on the main rank of each copy; return the result of this one's.

        All ranks must call this. An `InputError` is raised on all of them.
        """
        outcomes = self.world.gather_objects(_tried(function) if self.main else (None, None))
        self.world.raise_first([failure for _, failure in outcomes])
        return cast(Value, outcomes[self.ranks[0]][0])


def _tried(function: Callable[[], Value]) -> tuple[Value | None, InputError | None]:
    """The result of a function, or its `InputError`."""
    try:
        return function(), None
    except InputError as error:
        return None, error


def is_lost(error: BaseException) -> bool:
    """Whether an error of torch.distributed says that another process does not answer."""
    from tinynet.signs import LostRank

    text = str(error).lower()
    words = ("connection", "timed out", "timeout", "gloo", "nccl", "peer", "socket")
    is_torchs = isinstance(error, RuntimeError) and not isinstance(error, LostRank)
    return is_torchs and any(word in text for word in words)


_world = World()


def get_world() -> World:
    """Return this process's world: a world of one, unless it has joined others."""
    return _world


def join() -> World:
    """Join the processes that torchrun started with this one, and return the world.

    Raises `InputError` if they do not come.
    """
    global _world
    if _world.size == 1 and launched_size() > 1:
        _world = _join()
    return _world


def part() -> None:
    """End the connections to the other processes, when all is done."""
    if _world.size > 1:
        import torch.distributed as dist

        _world.barrier()
        dist.destroy_process_group()


def leave(last_words: str) -> bool:
    """Tell the other ranks why this process ends; return whether it must tell the user too."""
    if _world.size > 1:
        return _world.leave(last_words)
    # Before it has joined the others it knows nothing of them.
    return launched_size() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def _join() -> World:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from tinynet.files import HOST
    from tinynet.signs import Signs

    if not dist.is_available() or not dist.is_gloo_available():
        raise InputError(
            "torch was built without `gloo`, which the processes of torchrun need; install another "
            "build of torch, or start tinynet without torchrun"
        )
    if dist.is_initialized():
        raise InputError(
            "`torch.distributed` is already initialised by another program; start tinynet in a "
            "separate process"
        )
    local_rank = int(os.environ.get("LOCAL_RANK") or 0)
    _set_threads()
    # A rank that is lost must reach the user as a line, so NCCL must not abort the others.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    # torchrun keeps its store when it starts the processes again.
    prefix = f"tinynet/{_attempt()}"
    try:
        joining = timedelta(seconds=_JOINING)
        store, rank, size = next(iter(dist.rendezvous("env://", timeout=joining)))
        groups = dist.PrefixStore(f"{prefix}/groups", store)
        groups.set(f"here/{rank}", "1")  # a group waits for less time than ranks may start apart
        groups.wait([f"here/{other}" for other in range(size)], joining)
        dist.init_process_group(
            backend, store=groups, rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT)
        )
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        own = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            "the processes that torchrun started do not find each other "
            f"({' '.join(str(error).split())[:100]}); check nnodes, master-addr and "
            "master-port of torchrun"
        ) from None
    signs = Signs(dist.PrefixStore(f"{prefix}/signs", own), rank, size)
    world = World(rank, size, local_rank, _signs=signs)
    torch.set_rng_state(world.from_main(torch.get_rng_state))  # for random networks
    hosts = world.gather_objects(HOST)
    return World(rank, size, local_rank, tuple(map(hosts.index, hosts)), signs)


def _set_threads() -> None:
    """Share the cores of a machine; torchrun allows one thread, unless OMP_NUM_THREADS is set."""
    import torch

    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        local = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        torch.set_num_threads(max(1, (cores or 1) // local))
