"""Networks in files that other programs run: ONNX, torch.export and safetensors.

Each file has the names of the classes and the image size with it, as JSON under the key `tinynet`.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinynet.errors import InputError
from tinynet.models.backbones import make_backbone
from tinynet.models.classifier import Classifier
from tinynet.records import Json

# images (N, 3, H, W) float32 in [0, 1] -> probabilities (N, C) float32
Run = Callable[[np.ndarray], np.ndarray]

_KEY, _INPUT, _OUTPUT = "tinynet", "images", "probabilities"
_OPSET = 18  # the first in which ONNX resizes as torch does


@dataclass(frozen=True)
class About:
    """What an exported file says of itself.

    `class_ids`, `class_names`: of the C probabilities, in order. `image_size`: side in pixels to
    which the file resizes images. `arch`: the network. `trained_on`: the digest of the data.
    """

    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    image_size: int
    arch: str
    trained_on: str
    version: str

    @classmethod
    def read(cls, text: str | None, path: Path) -> "About":
        """Parse the JSON of a file; raises `InputError` if tinynet did not write it."""
        try:
            values: Json = json.loads(text or "")
            about = cls(**{**values, **{key: tuple(values[key]) for key in _NAMES}})
            if len(about.class_ids) != len(about.class_names) or about.image_size < 1:
                raise ValueError("its names are incomplete")
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(f"{path}: was not written by tinynet; {_NOT_OURS}") from None
        return about


_NAMES = ("class_ids", "class_names")
_NOT_OURS = "`python -m tinynet.export` writes one"


class Deployed(nn.Module):
    """A classifier that resizes images, normalises them and returns probabilities.

    `size`: the side in pixels of the square to which it resizes images, with antialiasing.
    """

    def __init__(self, network: Classifier, size: int):
        super().__init__()
        self.network, self.size = network.eval().requires_grad_(False), size

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities (N, C) of images (N, 3, H, W) in [0, 1]."""
        side = (self.size, self.size)
        images = F.interpolate(images, side, mode="bilinear", antialias=True)
        return self.network(images).softmax(1)


def check_kind(path: Path) -> None:
    """Raise `InputError` if tinynet does not write such files, or lacks a package for it."""
    if path.suffix not in WRITERS:
        *kinds, last = WRITERS
        raise InputError(
            f"{path}: unknown kind of file; use a name that ends in {', '.join(kinds)} or {last}"
        )
    try:
        if path.suffix == ".onnx":
            import onnx  # noqa: F401  these are only tried
            import onnxruntime  # type: ignore[import-untyped]  # noqa: F401
            import onnxscript  # noqa: F401
        elif path.suffix == ".safetensors":
            import safetensors  # noqa: F401
    except ImportError as error:
        raise _missing(path, error) from None


def _missing(path: Path, error: ImportError) -> InputError:
    return InputError(f"{path}: needs the package {error.name}; run pip install 'tinynet[export]'")


def write(model: Deployed, path: Path, about: About) -> None:
    """Write a network; the file's name says how: .onnx, .pt2 or .safetensors.

    Raises `InputError` where this version of torch cannot write the network so.
    """
    try:
        WRITERS[path.suffix](model, path, json.dumps(asdict(about)))
    except OSError:
        raise
    except Exception as error:  # the exporters have their own for each fault
        reason = " ".join(str(error).split())[:100]
        raise InputError(
            f"{path}: torch {torch.__version__} cannot write {about.arch} as {path.suffix} "
            f"({reason}); use a newer torch, or another format"
        ) from None


def read(path: Path) -> tuple[Run, About]:
    """Open a file that tinynet has just written; return what it computes and says of itself."""
    run, text = READERS[path.suffix](path)
    return run, About.read(text, path)


# --- ONNX ---


def _write_onnx(model: Deployed, path: Path, about: str) -> None:
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        program = torch.onnx.export(
            _traced(model),
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes=({0: "images", 2: "height", 3: "width"},),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    network = program.model_proto
    onnx.helper.set_model_props(network, {_KEY: about})
    onnx.save(network, str(path))


def _read_onnx(path: Path) -> tuple[Run, str | None]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(_KEY)
    return lambda images: session.run(None, {_INPUT: images})[0], text


# --- torch.export ---


def _traced(model: Deployed) -> Any:
    """The program of a network for any number of images of any size."""
    largest = 2**14
    names = {0: "images", 2: "height", 3: "width"}
    shapes = {axis: torch.export.Dim(name, max=largest) for axis, name in names.items()}
    example = torch.zeros(2, 3, 64, 48)
    return torch.export.export(model, (example,), dynamic_shapes=(shapes,))


def _write_pt2(model: Deployed, path: Path, about: str) -> None:
    torch.export.save(_traced(model), path, extra_files={f"{_KEY}.json": about})


def _read_pt2(path: Path) -> tuple[Run, str | None]:
    texts = {f"{_KEY}.json": ""}
    module = torch.export.load(path, extra_files=texts).module()
    return _run(module), texts[f"{_KEY}.json"]


# --- safetensors ---


def _write_safetensors(model: Deployed, path: Path, about: str) -> None:
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in model.network.state_dict().items()}
    shape = json.dumps(model.network.shape)
    save_file(weights, path, {"format": "pt", _KEY: about, "classifier": shape})


def _read_safetensors(path: Path) -> tuple[Run, str | None]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        texts = file.metadata() or {}
        about = About.read(texts.get(_KEY), path)
        network = Classifier(make_backbone(about.arch), **json.loads(texts["classifier"]))
        names = list(file.keys())
        network.load_state_dict({name: file.get_tensor(name) for name in names})
    return _run(Deployed(network, about.image_size)), texts[_KEY]


class Exported(nn.Module):
    """An exported ONNX file as a network on the CPU: images (N, 3, H, W) -> log-probabilities.

    `about`: what the file says of itself. Raises `InputError` if tinynet did not write it.
    """

    def __init__(self, path: Path):
        super().__init__()
        if path.suffix != ".onnx":  # torch.export would run code of a hostile file
            raise InputError(f"{path}: is not an .onnx file; export the run to one")
        if not path.is_file():
            raise InputError(f"{path}: no such file; {_NOT_OURS}")
        try:
            self._compute, self.about = read(path)
        except InputError:
            raise
        except ImportError as error:
            raise _missing(path, error) from None
        except Exception as error:  # onnxruntime has its own for each fault
            reason = " ".join(str(error).split())[:100]
            raise InputError(f"{path}: cannot be read ({reason}); {_NOT_OURS}") from None

    def forward(self, images: Tensor) -> Tensor:
        """Compute log-probabilities of images in [0, 1]."""
        probabilities = self._compute(images.float().contiguous().numpy())
        return torch.from_numpy(probabilities).clamp_min(torch.finfo().tiny).log()


def _run(module: nn.Module) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(images)).numpy())

    return run


WRITERS = {".onnx": _write_onnx, ".pt2": _write_pt2, ".safetensors": _write_safetensors}
READERS = {".onnx": _read_onnx, ".pt2": _read_pt2, ".safetensors": _read_safetensors}
