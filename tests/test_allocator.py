"""Freed memory is kept for later allocations on glibc."""

import platform
import subprocess
import sys

import pytest

from tinynet.compute import choose_compute

# Page faults of twenty tensors of 64 MB, one after the other.
FAULTS = """
import resource, sys, torch
from tinynet.allocator import keep_freed_memory, keeps_freed_memory
if sys.argv[1] == "kept":
    assert not keeps_freed_memory() and keep_freed_memory() and keeps_freed_memory()
torch.set_num_threads(1)
for _ in range(10):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    ran = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_the_memory_of_a_tensor_is_used_again_without_page_faults():
    assert faults("kept") * 10 < faults("default")


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("tinynet.allocator.platform.libc_ver", lambda: ("", ""))
    from tinynet.allocator import keep_freed_memory

    assert keep_freed_memory() is False
    choose_compute("cpu", "float32")
