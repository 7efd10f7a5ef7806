"""What stands beside every measurement: the machine and the versions."""

import os
import platform
import subprocess
import time
from pathlib import Path

import torch
import torchvision

from tinynet.device import Device


def facts(device: Device) -> dict[str, str | int]:
    """Processor, cores, device, versions, commit and date."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        processor = f"{fields.get('model name', '')}, family {fields.get('cpu family')} model {fields.get('model')}"
        flags = fields.get("flags", "").split()
        processor += ", " + " ".join(f for f in ("avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f in flags)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {"processor": processor, "cores": os.cpu_count() or 0, "device": str(device), "torch": torch.__version__,
            "torchvision": torchvision.__version__, "python": platform.python_version(), "commit": commit,
            "date": time.strftime("%Y-%m-%d")}
