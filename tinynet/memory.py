"""How much memory this process may use."""

import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
_LIMIT_1 = "memory.limit_in_bytes"  # of version 1
OWN_GROUPS = Path("/proc/self/cgroup")


def available_memory() -> int:
    """Return the free memory of this machine in bytes, or the limit of its container if smaller.

    Memory that the system uses for copies of files counts as free.
    """
    return min([_free(), *_container_limits()])


def _free() -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(AttributeError, OSError, ValueError):  # not Linux: half of the memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 2**63


def _container_limits() -> list[int]:
    """The limits of the control groups of this process; without a limit, "max" or a huge number."""
    files = [CGROUP / "memory.max", CGROUP / "memory" / _LIMIT_1]  # in a container's own view
    with suppress(OSError, ValueError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                files.append(CGROUP / path.lstrip("/") / "memory.max")
            elif "memory" in controllers.split(","):
                files.append(CGROUP / "memory" / path.lstrip("/") / _LIMIT_1)
    limits = []
    for file in files:
        with suppress(OSError, ValueError):
            limits.append(int(file.read_text()))
    return limits
