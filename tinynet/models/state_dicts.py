"""Load state dicts safely, strip wrappers and prefixes, and check for NaN.

Wrappers leave words in the names of tensors (`module.` of DataParallel, `_orig_mod.` of
torch.compile, `backbone.` or `model.` of a larger module). Training scripts nest the state dict in
another dict, next to the optimizer's. Half precision saves space. `unwrap` undoes all of these and
reports each change.
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

from tinynet.console import option
from tinynet.errors import InputError

_WRAPPERS = {"module", "_orig_mod"}
# If a file has several networks, its author evaluated the averaged one. DINO's teacher is averaged.
_FIRST = {"ema", "average", "averaged", "swa", "teacher"}
# Auxiliary networks: the momentum copies of MoCo and BYOL, and DINO's student.
_LAST = {"student", "encoder_k", "momentum_encoder", "target", "target_encoder", "target_network"}
_HEADER_BYTES = 64  # enough to recognise a kind of file
_MAX_NESTING = 3  # dicts within dicts
# Names of tensors that are not weights: counters of torch and of profilers.
_COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")


def read_file(path: str | Path) -> Any:
    """Read a weights file (torch or safetensors), with tensors on the CPU.

    Raises `InputError` if the file cannot be read, or could run code when read.
    """
    try:
        with open(path, "rb") as stream:
            header = stream.read(_HEADER_BYTES)
        if header.startswith(b"version https://git-lfs"):
            raise InputError(
                f"{option('weights')} {path}: is a pointer of Git LFS, not the weights; run "
                "git lfs pull"
            )
        # safetensors: 8 bytes with the length of a JSON header, then the header
        if header[8:9] == b"{" and int.from_bytes(header[:8], "little") < os.path.getsize(path):
            return _read_safetensors(path)
        return load(path)
    except InputError:
        raise
    except MemoryError:
        raise InputError(
            f"{option('weights')} {path}: out of memory while reading it; use a smaller file"
        ) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"{option('weights')} {path}: cannot be read ({reason}); name another file"
        ) from None
    except Exception as error:  # a broken or foreign file can raise nearly any exception
        raise InputError(
            f"{option('weights')} {path}: {_unsafe(error)}; save a state dict with "
            "torch.save(model.state_dict(), ...)"
        ) from None


def _unsafe(error: Exception) -> str:
    """Explain why torch refuses a file; torch's message may name the object to blame."""
    match = re.search(r"(?:GLOBAL|class) (\w+\.[\w.]+)", str(error))
    return (
        f"contains a {match[1]}, which cannot be read safely"
        if match
        else f"not a state dict that torch can read safely ({type(error).__name__})"
    )


def load(path: str | Path) -> Any:
    """Read a file of `torch.save` with tensors on the CPU, without running code from the file.

    Raises nearly any exception if the file is broken.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > os.path.getsize(path):
            # torch does not compress, and a decompression bomb would fill memory
            raise ValueError("is compressed")
    with warnings.catch_warnings(), torch.serialization.safe_globals(_safe_classes()):
        warnings.simplefilter("ignore")  # about the format; errors are reported in one line
        return torch.load(path, map_location="cpu", weights_only=True)


def _safe_classes() -> list[Any]:
    """List classes of plain values that training scripts save: options and NumPy numbers."""
    core = np._core if hasattr(np, "_core") else np.core
    dtypes = [
        type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")
    ]
    return [
        argparse.Namespace,
        np.ndarray,
        np.dtype,
        core.multiarray.scalar,
        core.multiarray._reconstruct,
        *dtypes,
    ]


def _read_safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise InputError(
            f"{option('weights')} {path}: reading it needs safetensors; run pip install safetensors"
        ) from None
    return load_file(path)


@dataclass(frozen=True)
class StateDict:
    """The tensors of a network, from a file.

    `tensors`: by the network's own names. `extras`: the other tensors of the same dict.
    `changes`: how the file's content was adapted, for a message; empty if it was not.
    """

    tensors: dict[str, Tensor]
    extras: dict[str, Tensor]
    changes: str


def unwrap(
    content: Any,
    template: Mapping[str, Tensor],
    source: str,
    submodule: str = "",
    ignored: tuple[str, ...] = (),
) -> StateDict:
    """Extract the tensors with the names and shapes of `template` from the `content` of a file.

    `template`: a state dict of the network, maybe on the meta device. `source`: the file's name for
    messages. `submodule`: the prefix of the network's names in a larger network (`features.`).
    `ignored`: prefixes of names in the file that the network lacks (`fc.`).
    Tensors are converted to the dtypes of `template`.

    Raises `InputError` that names the first tensor that is missing, unexpected, of another shape or
    kind, or not finite.
    """
    if not isinstance(content, Mapping):
        raise InputError(
            f"{option('weights')} {source}: holds a {type(content).__name__}, not a state dict; "
            "save one with torch.save(model.state_dict(), ...)"
        )
    candidates = list(_candidates(content, source))
    if not candidates:
        raise InputError(
            f"{option('weights')} {source}: contains no named tensors; save a state dict with "
            "torch.save(model.state_dict(), ...)"
        )
    best, prefix = _best(candidates, template, source)
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in best.state.items()
        if name.startswith(prefix) and not name.removeprefix(prefix).startswith(ignored)
    }
    _check_match(inside, template, source, submodule, prefix)
    tensors = {name: inside[name].to(template[name].dtype) for name in template if name in inside}
    for name, tensor in tensors.items():
        check_numbers(tensor, f"{option('weights')} {source}: {prefix}{name}")
    outer = prefix.removesuffix(submodule)
    extras = {
        name.removeprefix(outer): tensor
        for name, tensor in best.state.items()
        if name.removeprefix(prefix) not in template
    }
    float_dtypes = {
        str(inside[name].dtype).removeprefix("torch.")
        for name in tensors
        if inside[name].is_floating_point()
    }
    return StateDict(tensors, extras, _changes(best, outer, float_dtypes))


def _best(
    candidates: Sequence["_Candidate"], template: Mapping[str, Tensor], source: str
) -> tuple["_Candidate", str]:
    """Return the dict with most tensors of the template, and the prefix of their names.

    Raises `InputError` if several dicts match equally well, differ in their numbers, and no name
    tells which one to use.
    """
    matches = [
        (candidate.match_count(prefix, template), candidate, prefix)
        for candidate in candidates
        for prefix in candidate.prefixes(template)
    ]
    most = max(count for count, *_ in matches)
    ranked = sorted(
        (
            (_rank(candidate.place, prefix), candidate, prefix)
            for count, candidate, prefix in matches
            if count == most
        ),
        key=lambda row: row[0],
    )
    rank, best, prefix = ranked[0]
    for other_rank, other, other_prefix in ranked[1:] if most > 1 else ():
        if other_rank == rank and not _equal(best, prefix, other, other_prefix, template):
            names = [
                f"{candidate.place}.{before}".strip(".") or "the file itself"
                for candidate, before in ((best, prefix), (other, other_prefix))
            ]
            raise InputError(
                f"{option('weights')} {source}: contains several networks that fit "
                f"({' and '.join(names)}); save one of them alone{_how_to_save(source, best.place)}"
            )
    return best, prefix if most > 1 else ""  # a single tensor may match by chance


def _how_to_save(source: str, place: str) -> str:
    """Write a Python expression that saves one dict of a file; empty for the outermost dict."""
    keys = "".join(f"[{key!r}]" for key in place.split(".") if key)
    return (
        f", as torch.save(torch.load({Path(source).name!r}){keys}, 'one.pth') does" if keys else ""
    )


def _rank(place: str, prefix: str) -> int:
    """Rank a network by its place and prefix: 0 averaged, 1 unknown, 2 auxiliary."""
    names = set(f"{place}.{prefix}".split("."))
    words = names | set(re.split(r"[._]", f"{place}.{prefix}"))
    return 0 if _FIRST & words else 2 if _LAST & names else 1


def _equal(
    first: "_Candidate",
    first_prefix: str,
    second: "_Candidate",
    second_prefix: str,
    template: Mapping[str, Tensor],
) -> bool:
    """Tell whether two networks of a file have equal tensors."""
    pairs = [
        (first.state.get(first_prefix + name), second.state.get(second_prefix + name))
        for name in template
    ]
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@dataclass(frozen=True)
class _Candidate:
    """A dict of tensors in a file.

    `place`: its dotted keys in the file. `state`: the tensors, by names without wrappers.
    `wrappers`: the words removed from the names.
    """

    place: str
    state: dict[str, Tensor]
    wrappers: tuple[str, ...]

    def prefixes(self, template: Mapping[str, Tensor]) -> list[str]:
        """List the possible prefixes of the template's names in this dict."""
        first = next(iter(template))
        return sorted(
            {name.removesuffix(first) for name in self.state if f".{name}".endswith(f".{first}")}
            or {""}
        )

    def match_count(self, prefix: str, template: Mapping[str, Tensor]) -> int:
        """Count the tensors with the template's names, after this prefix, and shapes."""
        return sum(
            getattr(self.state.get(prefix + name), "shape", None) == tensor.shape
            for name, tensor in template.items()
        )


def _candidates(
    content: Mapping, source: str, place: str = "", levels: int = _MAX_NESTING
) -> Iterator[_Candidate]:
    """Yield the dicts of tensors in `content` and in dicts up to `levels` below it."""
    tensors = {
        str(name): torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in content.items()
        if isinstance(value, Tensor) or _is_float_array(value)
    }
    if tensors:
        wrappers = _WRAPPERS.intersection(
            *[{piece for name in tensors for piece in name.split(".")}]
        )
        old_densenet = any(".denselayer1.norm.1." in name for name in tensors)
        state: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            bare = _bare_name(name, old_densenet)
            if state.setdefault(bare, tensor) is not tensor:
                raise InputError(
                    f"{option('weights')} {source}: has {bare[:80]} with and without a wrapper's "
                    "prefix, so it holds two networks; save one with "
                    "torch.save(model.state_dict(), ...)"
                )
        yield _Candidate(place, state, tuple(sorted(wrappers)))
    if levels:
        for name, value in content.items():
            if isinstance(value, Mapping):
                yield from _candidates(
                    value, source, f"{place}.{name}" if place else str(name), levels - 1
                )


def _is_float_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _bare_name(name: str, old_densenet: bool) -> str:
    """Remove wrappers from a name, and update names of torchvision's densenets.

    Their published files have names like norm.1, the networks norm1.
    """
    name = ".".join(word for word in name.split(".") if word not in _WRAPPERS)
    return (
        re.sub(r"(norm|relu|conv)\.([12])\.(?=weight|bias|running|num_)", r"\1\2.", name)
        if old_densenet
        else name
    )


def _check_match(
    inside: Mapping[str, Tensor],
    template: Mapping[str, Tensor],
    source: str,
    submodule: str,
    prefix: str,
) -> None:
    """Raise `InputError` if names, shapes or kinds of number differ from the template's."""
    missing = [name for name in template if name not in inside and not name.endswith(_COUNTERS)]
    # A file of the larger network also has its other submodules, such as a classifier. A number
    # as the first word is a layer of this submodule, so an unknown number is a layer too many.
    foreign = [
        name
        for name in inside
        if name not in template
        and not name.endswith(_COUNTERS)
        and (not submodule or name.split(".")[0].isdecimal())
    ]
    if missing or foreign:
        differences = []
        if missing:
            first = submodule + missing[0]
            differences.append(
                f"{len(missing)} of {len(template)} tensors missing (first: {first})"
            )
        if foreign:
            differences.append(f"{len(foreign)} unexpected (first: {submodule}{foreign[0][:80]})")
        else:
            start = next(iter(inside), "nothing")[:80]
            differences.append(f"the file begins with {prefix}{start}")
        raise InputError(
            f"{option('weights')} {source}: do not match the network: {', '.join(differences)}; "
            "use weights of the same architecture"
        )
    for name, tensor in template.items():
        value = inside.get(name, tensor)
        if value.shape != tensor.shape or value.is_floating_point() != tensor.is_floating_point():
            raise InputError(
                f"{option('weights')} {source}: do not match the network: {submodule}{name} is "
                f"{_kind(value)}, expected {_kind(tensor)}; use weights of the same architecture"
            )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def check_numbers(tensor: Tensor, name: str) -> None:
    """Raise `InputError` if a tensor has NaN or infinity, or more values than its storage.

    Nothing else would report NaN: training and evaluation continue with it, and a conversion to
    integers hides it. `name` is the tensor's name for messages.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise InputError(f"{name}: is a sparse, quantised or meta tensor; save dense tensors")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(
            f"{name}: has more values than the file contains, so the file is damaged; download it "
            "again"
        )
    # A finite sum implies finite values, and takes a tenth of the time of isfinite on each.
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        return
    count = int((~torch.isfinite(tensor)).sum())
    if count:
        raise InputError(
            f"{name}: {count:,} of its {tensor.numel():,} numbers are NaN or infinite; use other "
            "weights"
        )


def _changes(best: _Candidate, prefix: str, float_dtypes: set[str]) -> str:
    """Describe how a file's content was adapted; empty if it was not."""
    changes = []
    if best.place:
        changes.append(f"loaded {best.place!r}")
    if best.wrappers:
        words = " and ".join(f"{word}." for word in best.wrappers)
        changes.append(f"removed {words} from the names")
    if prefix:
        changes.append(f"removed the prefix {prefix!r}")
    if converted := sorted(float_dtypes - {"float32"}):
        changes.append(f"converted {' and '.join(converted)} to float32")
    return ", ".join(changes)
