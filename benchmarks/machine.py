"""The machine and the versions, which every result file names."""

import os
import platform
import subprocess
import time

import torch
import torchvision

from tinynet.compute import Compute, processor


def facts(compute: Compute) -> dict[str, str | int]:
    """Processor, cores, device, versions, commit and date."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "device": str(compute),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }
