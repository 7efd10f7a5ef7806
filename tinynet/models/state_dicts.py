"""Load state dicts safely, strip wrappers and prefixes, and check for NaN.

A wrapper leaves a word in the names of tensors (`module.` of DataParallel, `_orig_mod.` of
torch.compile, `backbone.` or `model.` of a larger module), a training script puts the state dict
beside its optimizer's into another dict, and half precision saves space. All of that is taken off
by one function, and said.
"""

import argparse
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinynet.errors import InputError

_WRAPPERS = {"module", "_orig_mod"}
# Of several networks in one file the averaged one is what its author scored; DINO's teacher is one.
_FIRST = {"ema", "average", "averaged", "swa", "teacher"}
# MoCo's and BYOL's copies of the network that learns are not meant, nor is DINO's student.
_LAST = {"student", "encoder_k", "momentum_encoder", "target", "target_encoder", "target_network"}
_START = 64  # bytes that tell kinds of files apart
_DEPTH = 3  # dicts within dicts
# no weights: counts, and a profiler's
_COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")


def read_file(path: str | Path) -> Any:
    """What a file of weights holds, tensors on the CPU; raises `InputError` where it is none, or
    may run code.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(_START)
        if start.startswith(b"version https://git-lfs"):
            raise InputError(
                f"--weights {path}: is a pointer of Git LFS, not the weights; run git lfs pull"
            )
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < os.path.getsize(path):
            return _read_safetensors(path)
        return load(path)
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"--weights {path}: out of memory while reading it") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"--weights {path}: cannot be read ({reason}); name another file"
        ) from None
    except Exception as error:  # a broken or foreign file raises nearly anything
        raise InputError(
            f"--weights {path}: {_unsafe(error)}; save a state dict with "
            "torch.save(model.state_dict(), ...)"
        ) from None


def _unsafe(error: Exception) -> str:
    """Why a file is not read: what it would have to run, where torch says so."""
    named = re.search(r"(?:GLOBAL|class) (\w+\.[\w.]+)", str(error))
    return (
        f"contains a {named[1]}, which cannot be read safely"
        if named
        else f"not a state dict that torch can read safely ({type(error).__name__})"
    )


def load(path: str | Path) -> Any:
    """What `torch.save` wrote, tensors on the CPU; raises nearly anything where a file is broken,
    and runs no code.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > os.path.getsize(path):
            # torch compresses nothing, and a bomb would fill memory
            raise ValueError("is compressed")
    with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
        warnings.simplefilter("ignore")  # of the format; what is wrong is told in one line
        return torch.load(path, map_location="cpu", weights_only=True)


def _harmless() -> list[Any]:
    """Classes of plain values that training scripts keep beside weights: options, and numbers of
    NumPy.
    """
    core = np._core if hasattr(np, "_core") else np.core
    floats = [
        type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")
    ]
    return [
        argparse.Namespace,
        np.ndarray,
        np.dtype,
        core.multiarray.scalar,
        core.multiarray._reconstruct,
        *floats,
    ]


def _read_safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise InputError(
            f"--weights {path}: reading it needs safetensors; run pip install safetensors"
        ) from None
    return load_file(path)


@dataclass(frozen=True)
class Unwrapped:
    """`tensors`: those that are wanted, by the names that are wanted. `others`: what else is in the
    same dict.

    `removed`: what was taken off, in words, or nothing.
    """

    tensors: dict[str, Tensor]
    others: dict[str, Tensor]
    removed: str


def unwrap(content: Any, wanted: Mapping[str, Tensor], source: str, part: str = "") -> Unwrapped:
    """The tensors of a network with the names and shapes of `wanted`, out of the `content` of a
    file.

    `part`: where they are a part of a larger network, what the names of that part begin with there
    (`features.`). `source`: the file, for what is said. Raises `InputError` where a tensor is
    missing, foreign, of another shape, or holds what is no number, naming it.
    """
    if not isinstance(content, Mapping):
        raise InputError(
            f"--weights {source}: holds a {type(content).__name__}, not a state dict; "
            "save one with torch.save(model.state_dict(), ...)"
        )
    candidates = list(_candidates(content, source))
    if not candidates:
        raise InputError(
            f"--weights {source}: contains no named tensors; save a state dict with "
            "torch.save(model.state_dict(), ...)"
        )
    best, prefix = _best(candidates, wanted, source)
    state = best.state
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    _refuse_others(inside, wanted, source, part, prefix)
    tensors = {name: inside[name].to(wanted[name].dtype) for name in wanted if name in inside}
    for name, tensor in tensors.items():
        check_numbers(tensor, f"--weights {source}: {prefix}{name}")
    outer = prefix.removesuffix(part)
    others = {
        name.removeprefix(outer): tensor
        for name, tensor in state.items()
        if name.removeprefix(prefix) not in wanted
    }
    kinds = {
        str(inside[name].dtype).removeprefix("torch.")
        for name in tensors
        if inside[name].is_floating_point()
    }
    return Unwrapped(tensors, others, _removed(best, outer, kinds))


def _best(
    candidates: Sequence["_Candidate"], wanted: Mapping[str, Tensor], source: str
) -> tuple["_Candidate", str]:
    """The dict of a file with most of the wanted tensors, and what stands before their names there.

    Raises `InputError` where several fit equally well, hold other numbers, and no name says which
    is meant.
    """
    fitting = [
        (one.fitting(prefix, wanted), one, prefix)
        for one in candidates
        for prefix in one.prefixes(wanted)
    ]
    most = max(count for count, *_ in fitting)
    ranked = sorted(
        (
            (_rank(one.place, prefix), one, prefix)
            for count, one, prefix in fitting
            if count == most
        ),
        key=lambda row: row[0],
    )
    rank, best, prefix = ranked[0]
    for other_rank, other, other_prefix in ranked[1:] if most > 1 else ():
        if other_rank == rank and not _same(best, prefix, other, other_prefix, wanted):
            names = [
                f"{one.place}.{before}".strip(".") or "the file itself"
                for one, before in ((best, prefix), (other, other_prefix))
            ]
            raise InputError(
                f"--weights {source}: contains several networks that fit ({' and '.join(names)}); "
                f"save one of them alone{_how_to_save(source, best.place)}"
            )
    return best, prefix if most > 1 else ""  # one may fit by chance


def _how_to_save(source: str, place: str) -> str:
    """A line of Python that saves what is at a place of a file, where that has a name."""
    keys = "".join(f"[{key!r}]" for key in place.split(".") if key)
    return (
        f", as torch.save(torch.load({Path(source).name!r}){keys}, 'one.pth') does" if keys else ""
    )


def _rank(place: str, prefix: str) -> int:
    """How early a network at this place, with this prefix, comes; 1 where the names do not say."""
    names = set(f"{place}.{prefix}".split("."))
    words = names | set(re.split(r"[._]", f"{place}.{prefix}"))
    return 0 if _FIRST & words else 2 if _LAST & names else 1


def _same(
    one: "_Candidate",
    prefix: str,
    other: "_Candidate",
    other_prefix: str,
    wanted: Mapping[str, Tensor],
) -> bool:
    """Whether two networks of a file hold the same numbers."""
    pairs = [
        (one.state.get(prefix + name), other.state.get(other_prefix + name)) for name in wanted
    ]
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@dataclass(frozen=True)
class _Candidate:
    """A dict of tensors somewhere in a file: where (`place`), its tensors, and the wrappers' words
    in their names.
    """

    place: str
    state: dict[str, Tensor]
    wrappers: tuple[str, ...]

    def prefixes(self, wanted: Mapping[str, Tensor]) -> list[str]:
        """What may stand before the wanted names in this dict."""
        first = next(iter(wanted))
        return sorted(
            {name.removesuffix(first) for name in self.state if f".{name}".endswith(f".{first}")}
            or {""}
        )

    def fitting(self, prefix: str, wanted: Mapping[str, Tensor]) -> int:
        """How many of the wanted tensors are here, with this prefix."""
        return sum(
            getattr(self.state.get(prefix + name), "shape", None) == tensor.shape
            for name, tensor in wanted.items()
        )


def _candidates(
    content: Mapping, source: str, place: str = "", node: int = _DEPTH
) -> Iterator[_Candidate]:
    tensors = {
        str(name): torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in content.items()
        if isinstance(value, Tensor) or _is_numbers(value)
    }
    if tensors:
        wrappers = _WRAPPERS.intersection(
            *[{piece for name in tensors for piece in name.split(".")}]
        )
        old = any(".denselayer1.norm.1." in name for name in tensors)
        plain: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if plain.setdefault(_plain(name, old), tensor) is not tensor:
                raise InputError(
                    f"--weights {source}: has {_plain(name, old)[:80]} with and without a "
                    "wrapper's prefix, so it holds two networks; save one with "
                    "torch.save(model.state_dict(), ...)"
                )
        yield _Candidate(place, plain, tuple(sorted(wrappers)))
    if node:
        for name, value in content.items():
            if isinstance(value, Mapping):
                yield from _candidates(
                    value, source, f"{place}.{name}" if place else str(name), node - 1
                )


def _is_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _plain(name: str, old: bool) -> str:
    """The name without wrappers; `old`: of torchvision's densenets, published with names like
    norm.1, now norm1.
    """
    name = ".".join(piece for piece in name.split(".") if piece not in _WRAPPERS)
    return (
        re.sub(r"(norm|relu|conv)\.([12])\.(?=weight|bias|running|num_)", r"\1\2.", name)
        if old
        else name
    )


def _refuse_others(
    inside: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, part: str, prefix: str
) -> None:
    """Raise `InputError` where the tensors are not those of the network."""
    missing = [name for name in wanted if name not in inside and not name.endswith(_COUNTERS)]
    # Beside numbered layers may stand other parts, such as a classifier; another number is a layer
    # too many.
    foreign = [
        name
        for name in inside
        if name not in wanted
        and not name.endswith(_COUNTERS)
        and (not part or name.split(".")[0].isdecimal())
    ]
    if missing or foreign:
        first = (
            [f"{len(missing)} of {len(wanted)} tensors missing (first: {part}{missing[0]})"]
            if missing
            else []
        )
        first += [f"{len(foreign)} unexpected (first: {part}{foreign[0][:80]})"] if foreign else []
        first += (
            []
            if foreign
            else [f"the file begins with {prefix}{next(iter(inside), 'nothing')[:80]}"]
        )
        raise InputError(
            f"--weights {source}: do not match the network: {', '.join(first)}; use weights of the "
            "same architecture"
        )
    for name, tensor in wanted.items():
        value = inside.get(name, tensor)
        if value.shape != tensor.shape or value.is_floating_point() != tensor.is_floating_point():
            raise InputError(
                f"--weights {source}: do not match the network: {part}{name} is {_kind(value)}, "
                f"expected {_kind(tensor)}; use weights of the same architecture"
            )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def check_numbers(tensor: Tensor, name: str) -> None:
    """Raise `InputError` where a tensor has NaN or infinity, or declares more values than its
    storage holds.

    Weights with one NaN would train and score as if nothing were; integers hide it altogether.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise InputError(f"{name}: is a sparse, quantised or meta tensor; save dense tensors")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(
            f"{name}: has more values than the file contains; the file is damaged, so fetch it "
            "again"
        )
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        return  # a sum is a number only where all of them are, and costs a tenth of looking at each
    wrong = int((~torch.isfinite(tensor)).sum())
    if wrong:
        raise InputError(
            f"{name}: {wrong:,} of its {tensor.numel():,} numbers are NaN or infinite; use other "
            "weights"
        )


def _removed(best: _Candidate, prefix: str, kinds: set[str]) -> str:
    """What was taken off, in words; `kinds`: of the floats."""
    return ", ".join(
        filter(
            None,
            (
                f"loaded {best.place!r}" if best.place else "",
                f"removed {' and '.join(f'{word}.' for word in best.wrappers)} from the names"
                if best.wrappers
                else "",
                f"removed the prefix {prefix!r}" if prefix else "",
                f"converted {' and '.join(sorted(kinds - {'float32'}))} to float32"
                if kinds - {"float32"}
                else "",
            ),
        )
    )
