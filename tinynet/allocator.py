"""glibc's memory allocator: keep the memory of one layer's output for the next.

By default glibc returns every freed block above 32 MB to the kernel, so each layer of a network
waits while the kernel clears new pages. `benchmarks/engines.py` measures the difference
(`--no-allocator`).
"""

import ctypes
import platform

# Parameters of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Freed blocks up to this many bytes are kept, and so much free memory at the end of the heap.
_KEPT = 2**31 - 1
_state = {"kept": False}  # of this process


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for this process's later allocations; return whether it does.

    False where the C library is not glibc, or refuses. Memory use stays at its peak.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    _state["kept"] = bool(mallopt(_MMAP_THRESHOLD, _KEPT) and mallopt(_TRIM_THRESHOLD, _KEPT))
    return _state["kept"]


def keeps_freed_memory() -> bool:
    """Whether `keep_freed_memory` has succeeded in this process."""
    return _state["kept"]
