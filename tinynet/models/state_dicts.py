"""Load state dicts safely, strip wrappers and prefixes, and check for NaN.

A wrapper leaves a word in the names of tensors (`module.` of DataParallel, `_orig_mod.` of torch.compile, `backbone.`
or `model.` of a larger module), a training script puts the state dict beside its optimizer's into another dict, and
half precision saves space. All of that is taken off by one function, and said.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinynet.errors import InputError

_WRAPPERS = {"module", "_orig_mod"}
_AVERAGED = {"ema", "average", "averaged", "swa"}
_CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "backbone",
               "encoder", "teacher", "student")
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
        raise InputError(f"--weights {path}: out of memory while reading it") from None
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
        raise InputError(f"--weights {path}: reading it needs safetensors; run pip install safetensors") from None
    return load_file(path)


@dataclass(frozen=True)
class Unwrapped:
    """`tensors`: those that are wanted, by the names that are wanted. `others`: what else is in the same dict.

    `removed`: what was taken off, in words, or nothing.
    """

    tensors: dict[str, Tensor]
    others: dict[str, Tensor]
    removed: str


def unwrap(content: Any, wanted: Mapping[str, Tensor], source: str, part: str = "") -> Unwrapped:
    """The tensors of a network with the names and shapes of `wanted`, out of the `content` of a file.

    `part`: where they are a part of a larger network, what the names of that part begin with there (`features.`).
    `source`: the file, for what is said.
    Raises `InputError` where a tensor is missing, foreign, of another shape, or holds what is no number, naming it.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"--weights {source}: holds a {type(content).__name__}, not a state dict; "
                         "save one with torch.save(model.state_dict(), ...)")
    candidates = list(_candidates(content, source))
    if not candidates:
        raise InputError(f"--weights {source}: contains no named tensors; save a state dict with "
                         "torch.save(model.state_dict(), ...)")
    best, prefix = _best(candidates, wanted, source)
    state = best.state
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    _refuse_others(inside, wanted, source, part, prefix)
    tensors = {name: inside[name].to(wanted[name].dtype) for name in wanted if name in inside}
    for name, tensor in tensors.items():
        check_numbers(tensor, f"--weights {source}: {prefix}{name}")
    outer = prefix.removesuffix(part)
    others = {name.removeprefix(outer): tensor for name, tensor in state.items()
              if name.removeprefix(prefix) not in wanted}
    kinds = {str(inside[name].dtype).removeprefix("torch.") for name in tensors if inside[name].is_floating_point()}
    return Unwrapped(tensors, others, _removed(best, outer, kinds))


def _best(candidates: Sequence["_Candidate"], wanted: Mapping[str, Tensor], source: str) -> tuple["_Candidate", str]:
    """The dict of a file with most of the wanted tensors, and what stands before their names there.

    Raises `InputError` where several fit equally well, hold other numbers, and no name says which is meant.
    """
    fitting = [(one.fitting(prefix, wanted), one, prefix) for one in candidates for prefix in one.prefixes(wanted)]
    most = max(count for count, *_ in fitting)
    # Averaged weights are what their author scored; then what is called a network comes before what is not.
    ranked = sorted(((_rank(one.place, prefix), one, prefix) for count, one, prefix in fitting if count == most),
                    key=lambda row: row[0])
    rank, best, prefix = ranked[0]
    for other_rank, other, other_prefix in ranked[1:] if most > 1 else ():
        if other_rank == rank and not _same(best, prefix, other, other_prefix, wanted):
            names = [f"{one.place}.{before}".strip(".") or "the file itself"
                     for one, before in ((best, prefix), (other, other_prefix))]
            raise InputError(f"--weights {source}: contains several networks that fit ({' and '.join(names)}); save "
                             "the one you want with torch.save(model.state_dict(), ...)")
    return best, prefix if most > 1 else ""  # one may fit by chance


def _rank(place: str, prefix: str) -> int:
    """How early weights of this place and prefix come: averaged ones, known names in their order, all others."""
    words = [word for word in re.split(r"[._]", f"{place}.{prefix}") if word]
    if _AVERAGED.intersection(words):
        return 0
    names = {piece for text in (place, prefix) for piece in text.split(".")}
    return min((1 + number for number, name in enumerate(_CONTAINERS) if name in names),
               default=1 if not words else 1 + len(_CONTAINERS))


def _same(one: "_Candidate", prefix: str, other: "_Candidate", other_prefix: str, wanted: Mapping[str, Tensor]) -> bool:
    """Whether two networks of a file hold the same numbers."""
    pairs = [(one.state.get(prefix + name), other.state.get(other_prefix + name)) for name in wanted]
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@dataclass(frozen=True)
class _Candidate:
    """A dict of tensors somewhere in a file: where (`place`), its tensors, and the wrappers' words in their names."""

    place: str
    state: dict[str, Tensor]
    wrappers: tuple[str, ...]

    def prefixes(self, wanted: Mapping[str, Tensor]) -> list[str]:
        """What may stand before the wanted names in this dict."""
        first = next(iter(wanted))
        return sorted({name.removesuffix(first) for name in self.state if f".{name}".endswith(f".{first}")} or {""})

    def fitting(self, prefix: str, wanted: Mapping[str, Tensor]) -> int:
        """How many of the wanted tensors are here, with this prefix."""
        return sum(getattr(self.state.get(prefix + name), "shape", None) == tensor.shape
                   for name, tensor in wanted.items())


def _candidates(content: Mapping, source: str, place: str = "", depth: int = _DEPTH) -> Iterator[_Candidate]:
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        wrappers = _WRAPPERS.intersection(*[{piece for name in tensors for piece in name.split(".")}])
        old = any(".denselayer1.norm.1." in name for name in tensors)
        plain: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if plain.setdefault(_plain(name, old), tensor) is not tensor:
                raise InputError(f"--weights {source}: has {_plain(name, old)[:80]} with and without a wrapper's "
                                 "prefix, so it holds two networks; save one with torch.save(model.state_dict(), ...)")
        yield _Candidate(place, plain, tuple(sorted(wrappers)))
    if depth:
        for name, value in content.items():
            if isinstance(value, Mapping):
                yield from _candidates(value, source, f"{place}.{name}" if place else str(name), depth - 1)


def _plain(name: str, old: bool) -> str:
    """The name without wrappers; `old`: of torchvision's densenets, published with names like norm.1, now norm1."""
    name = ".".join(piece for piece in name.split(".") if piece not in _WRAPPERS)
    return re.sub(r"(norm|relu|conv)\.([12])\.(?=weight|bias|running|num_)", r"\1\2.", name) if old else name


def _refuse_others(inside: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, part: str,
                   prefix: str) -> None:
    """Raise `InputError` where the tensors are not those of the network."""
    missing = [name for name in wanted if name not in inside and not name.endswith(_COUNTERS)]
    # Beside numbered layers may stand other parts, such as a classifier; another number is a layer too many.
    foreign = [name for name in inside if name not in wanted and not name.endswith(_COUNTERS)
               and (not part or name.split(".")[0].isdecimal())]
    if missing or foreign:
        first = [f"{len(missing)} of {len(wanted)} tensors missing (first: {part}{missing[0]})"] if missing else []
        first += [f"{len(foreign)} unexpected (first: {part}{foreign[0][:80]})"] if foreign else []
        first += [] if foreign else [f"the file begins with {prefix}{next(iter(inside), 'nothing')[:80]}"]
        raise InputError(f"--weights {source}: do not match the network: {', '.join(first)}; use weights of the same "
                         "architecture")
    for name, tensor in wanted.items():
        value = inside.get(name, tensor)
        if value.shape != tensor.shape or value.is_floating_point() != tensor.is_floating_point():
            raise InputError(f"--weights {source}: do not match the network: {part}{name} is {_kind(value)}, expected "
                             f"{_kind(tensor)}; use weights of the same architecture")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def check_numbers(tensor: Tensor, name: str) -> None:
    """Raise `InputError` where a tensor has NaN or infinity, or declares more values than its storage holds.

    Weights with one NaN would train and score as if nothing were; integers hide it altogether.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise InputError(f"{name}: is a sparse, quantised or meta tensor; save dense tensors")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{name}: has more values than the file contains; the file is damaged, so fetch it again")
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        return  # a sum is a number only where all of them are, and costs a tenth of looking at each
    wrong = int((~torch.isfinite(tensor)).sum())
    if wrong:
        raise InputError(f"{name}: {wrong:,} of its {tensor.numel():,} numbers are NaN or infinite; use other "
                         "weights")


def _removed(best: _Candidate, prefix: str, kinds: set[str]) -> str:
    """What was taken off, in words; `kinds`: of the floats."""
    return ", ".join(filter(None, (
        f"loaded {best.place!r}" if best.place else "",
        f"removed {' and '.join(f'{word}.' for word in best.wrappers)} from the names" if best.wrappers else "",
        f"removed the prefix {prefix!r}" if prefix else "",
        f"converted {' and '.join(sorted(kinds - {'float32'}))} to float32" if kinds - {"float32"} else "")))
