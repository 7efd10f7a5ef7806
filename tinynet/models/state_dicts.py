"""State dicts as people have them: read safely, undressed of what tools put around them, checked for numbers.

A wrapper leaves a word in the names of tensors (`module.` of DataParallel, `_orig_mod.` of torch.compile, `backbone.`
or `model.` of a larger module), a training script puts the state dict beside its optimizer's into another dict, and
half precision saves space. All of that is taken off by one function, and said.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinynet.errors import InputError

_WRAPPERS = {"module", "_orig_mod"}
# Averaged weights are what their author scored, so they come before those of the last step.
_CONTAINERS = ("average", "model_ema", "state_dict_ema", "ema", "ema_state_dict", "state_dict", "model_state_dict",
               "model", "module", "net", "network", "weights", "params", "backbone", "encoder", "teacher", "student")
_DEPTH = 3  # dicts within dicts
_COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")  # no weights: counts, and a profiler's


def read_file(path: str | Path) -> Any:
    """What a file of weights holds, tensors on the CPU; raises `InputError` where it is none, or may run code."""
    try:
        if Path(path).suffix == ".safetensors":
            return _read_safetensors(path)
        return load(path)
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"--weights {path}: needs more memory than there is") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"--weights {path}: cannot be read ({reason}); name another file") from None
    except Exception as error:  # a broken or foreign file raises nearly anything
        raise InputError(f"--weights {path}: not a state dict that torch can read safely "
                         f"({type(error).__name__}); save one with torch.save(model.state_dict(), ...)") from None


def load(path: str | Path) -> Any:
    """What `torch.save` wrote, tensors on the CPU; raises nearly anything where a file is broken, and runs no code."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > os.path.getsize(path):
            raise ValueError("is compressed")  # torch compresses nothing, and a bomb would fill memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the format; what is wrong is told in one line
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise InputError(f"--weights {path}: needs the package safetensors; pip install safetensors") from None
    return load_file(path)


@dataclass(frozen=True)
class Undressed:
    """`tensors`: those that are wanted, by the names that are wanted. `others`: what else is in the same dict.

    `removed`: what was taken off, in words, or nothing.
    """

    tensors: dict[str, Tensor]
    others: dict[str, Tensor]
    removed: str


def undress(content: Any, wanted: Mapping[str, Tensor], source: str, part: str = "") -> Undressed:
    """The tensors of a network with the names and shapes of `wanted`, out of the `content` of a file.

    `part`: where they are a part of a larger network, what the names of that part begin with there (`features.`).
    `source`: the file, for what is said.
    Raises `InputError` where a tensor is missing, foreign, of another shape, or holds what is no number, naming it.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"--weights {source}: holds a {type(content).__name__}, not a state dict; "
                         "save one with torch.save(model.state_dict(), ...)")
    candidates = list(_candidates(content))
    if not candidates:
        raise InputError(f"--weights {source}: holds no tensors under names; save a state dict with "
                         "torch.save(model.state_dict(), ...)")
    best = max(candidates, key=lambda one: one.matches(wanted))
    state, prefix = best.state, best.prefix(wanted)
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    _refuse_others(inside, wanted, source, part)
    tensors = {name: inside[name].to(wanted[name].dtype) for name in wanted if name in inside}
    for name, tensor in tensors.items():
        check_numbers(tensor, f"--weights {source}: {prefix}{name}")
    others = {name: tensor for name, tensor in state.items() if name.removeprefix(prefix) not in wanted}
    kinds = {str(inside[name].dtype).removeprefix("torch.") for name in tensors if inside[name].is_floating_point()}
    return Undressed(tensors, others, _removed(best, prefix.removesuffix(part), kinds))


@dataclass(frozen=True)
class _Candidate:
    """A dict of tensors somewhere in a file: where (`place`), its tensors, and the wrappers' words in their names."""

    place: str
    state: dict[str, Tensor]
    wrappers: tuple[str, ...]

    def prefix(self, wanted: Mapping[str, Tensor]) -> str:
        """What stands before the wanted names in most of this dict."""
        first = next(iter(wanted))
        prefixes = {name.removesuffix(first) for name in self.state if f".{name}".endswith(f".{first}")} or {""}
        best = max(sorted(prefixes), key=lambda prefix: self._fitting(prefix, wanted))
        return best if self._fitting(best, wanted) > 1 else ""  # one may fit by chance

    def matches(self, wanted: Mapping[str, Tensor]) -> int:
        """How many of the wanted tensors are here."""
        return self._fitting(self.prefix(wanted), wanted)

    def _fitting(self, prefix: str, wanted: Mapping[str, Tensor]) -> int:
        return sum(getattr(self.state.get(prefix + name), "shape", None) == tensor.shape
                   for name, tensor in wanted.items())


def _candidates(content: Mapping, place: str = "", depth: int = _DEPTH) -> Iterator[_Candidate]:
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        wrappers = _WRAPPERS.intersection(*[{piece for name in tensors for piece in name.split(".")}])
        old = any(".denselayer1.norm.1." in name for name in tensors)
        plain = {_plain(name, old): tensor for name, tensor in tensors.items()}
        yield _Candidate(place, plain, tuple(sorted(wrappers)))
    if depth:
        inner = {str(name): value for name, value in content.items() if isinstance(value, Mapping)}
        order = {name: number for number, name in enumerate(_CONTAINERS)}
        for name in sorted(inner, key=lambda name: order.get(name, len(order))):
            yield from _candidates(inner[name], f"{place}.{name}" if place else name, depth - 1)


def _plain(name: str, old: bool) -> str:
    """The name without wrappers; `old`: of torchvision's densenets, published with names like norm.1, now norm1."""
    name = ".".join(piece for piece in name.split(".") if piece not in _WRAPPERS)
    return re.sub(r"(norm|relu|conv)\.([12])\.(?=weight|bias|running|num_)", r"\1\2.", name) if old else name


def _refuse_others(inside: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, part: str) -> None:
    """Raise `InputError` where the tensors are not those of the network."""
    missing = [name for name in wanted if name not in inside and not name.endswith(_COUNTERS)]
    # Beside numbered layers may stand other parts, such as a classifier; another number is a layer too many.
    foreign = [name for name in inside if name not in wanted and not name.endswith(_COUNTERS)
               and (not part or name.split(".")[0].isdecimal())]
    if missing or foreign:
        first = [f"the first that is missing is {part}{missing[0]}"] if missing else []
        first += [f"the first that is foreign is {part}{foreign[0]}"] if foreign else []
        first += [] if foreign else [f"the file begins with {next(iter(inside), 'nothing')}"]
        raise InputError(f"--weights {source}: weights of another network: of {len(wanted)} tensors {len(missing)} are "
                         f"missing and {len(foreign)} are foreign; {', '.join(first)}")
    for name, tensor in wanted.items():
        value = inside.get(name, tensor)
        if value.shape != tensor.shape or value.is_floating_point() != tensor.is_floating_point():
            raise InputError(f"--weights {source}: weights of another network: {part}{name} is {_kind(value)}, and "
                             f"this network has {_kind(tensor)}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def check_numbers(tensor: Tensor, name: str) -> None:
    """Raise `InputError` where a tensor holds what is no number, or more than its file does.

    Weights with one NaN would train and score as if nothing were; integers hide it altogether.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise InputError(f"{name}: is sparse, quantised or empty; save plain tensors")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{name}: says more numbers than the file holds; fetch the file again")
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        return  # a sum is a number only where all of them are, and costs a tenth of looking at each
    wrong = int((~torch.isfinite(tensor)).sum())
    if wrong:
        raise InputError(f"{name}: {wrong:,} of its {tensor.numel():,} numbers are NaN or infinite; such weights are "
                         "broken, so fetch or train them again")


def _removed(best: _Candidate, prefix: str, kinds: set[str]) -> str:
    """What was taken off, in words; `kinds`: of the floats."""
    return ", ".join(filter(None, (
        f"taken from {best.place!r}" if best.place else "",
        f"without {' and '.join(f'{word}.' for word in best.wrappers)} in the names" if best.wrappers else "",
        f"without {prefix!r} before the names" if prefix else "",
        f"{' and '.join(sorted(kinds - {'float32'}))} made float32" if kinds - {"float32"} else "")))
