"""Files of torch that contain more than tensors: code, objects, bombs."""

import builtins
import io
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.hostile import zipping
from benchmarks.hostile.case import Place


class Calls:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: Any):
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self._call


def payloads(place: Place) -> dict[str, Calls]:
    """Objects that create the trap file when they are unpickled."""
    touch, opened = f"touch '{place.trap}'", f"open({str(place.trap)!r}, 'w').close()"
    return {
        "system": Calls(os.system, touch),
        "popen": Calls(subprocess.Popen, ["touch", str(place.trap)]),
        "eval": Calls(builtins.eval, opened),
        "exec": Calls(builtins.exec, opened),
        "open": Calls(builtins.open, str(place.trap), "w"),
        "mkdir": Calls(os.mkdir, str(place.trap)),
        "hub": Calls(torch.hub.load, _hub(place), "network", "local"),
        "load": Calls(torch.load, _inner(place), None, None),
        "import": Calls(builtins.__import__, "antigravity"),
    }


def _hub(place: Place) -> str:
    """A folder whose code torch.hub would run."""
    folder = place.inputs / "hub"
    folder.mkdir(exist_ok=True)
    (folder / "hubconf.py").write_text(f"open({str(place.trap)!r}, 'w').close()\n")
    return str(folder)


def _inner(place: Place) -> str:
    path = place.inputs / "inner.pt"
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch '{place.trap}'")))
    return str(path)


def bare(value: Any, protocol: int = 2) -> bytes:
    """A pickle as Python writes it."""
    return pickle.dumps(value, protocol)


def zipped(value: Any) -> bytes:
    """The content as torch saves it now."""
    target = io.BytesIO()
    torch.save(value, target)
    return target.getvalue()


def legacy(value: Any) -> bytes:
    """The content as torch saved it before version 1.6."""
    target = io.BytesIO()
    torch.save(value, target, _use_new_zipfile_serialization=False)
    return target.getvalue()


def rewritten(data: bytes, change: Callable[[str, bytes], zipping.Entry | None]) -> bytes:
    """Write a file of torch again with `change(name, content)` of every member; None leaves the
    member out.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [change(name, archive.read(name)) for name in archive.namelist()]
    return zipping.zip_bytes(one for one in entries if one is not None)


def script() -> bytes:
    """A TorchScript archive, whose code torch.jit would run."""
    import warnings

    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), target)
    return target.getvalue()


def safetensors(state: dict[str, torch.Tensor]) -> bytes:
    """The same content in another format."""
    from safetensors.torch import save

    return save({name: value.contiguous() for name, value in state.items()})
