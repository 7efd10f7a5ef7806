"""Transfer learning on small images, Tiny ImageNet first, with reliable results.

    run = tinynet.fit("runs/first", data="data/tiny-imagenet-200.zip", epochs=4)
    run.evaluate(tta="flip")

The packages, in the order in which data flows and imports are allowed:

    data        archives and folders -> uint8 arrays -> splits -> batches in [0, 1]
    models      backbones, classifiers, checkpoints
    score       probabilities -> numbers: views, merges, metrics, comparisons
    training    recipes, cached features, the training loop, the stages of a run
    evaluation  networks and their data -> rows of scores
    resolution  other test sizes, and corrections for them
    report      figures, tables and pages

The commands are modules that turn flags into calls of these: see `tinynet --help`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinynet.data.dataset import Images, TinyImageNet
    from tinynet.data.synthetic import synthetic
    from tinynet.errors import InputError
    from tinynet.library.fitting import fit
    from tinynet.library.results import Rows
    from tinynet.library.run import Run, arrays, download, tta
    from tinynet.models.pretrained import load_pretrained
    from tinynet.records import ScoreRow
    from tinynet.score.compare import mcnemar
    from tinynet.training import recipes

__version__ = "0.1.0"

# Public names, imported when they are first used: torch takes seconds to import.
_NAMES = {
    "Images": "tinynet.data.dataset",
    "InputError": "tinynet.errors",
    "Rows": "tinynet.library.results",
    "Run": "tinynet.library.run",
    "ScoreRow": "tinynet.records",
    "TinyImageNet": "tinynet.data.dataset",
    "arrays": "tinynet.library.run",
    "download": "tinynet.library.run",
    "fit": "tinynet.library.fitting",
    "load_pretrained": "tinynet.models.pretrained",
    "mcnemar": "tinynet.score.compare",
    "recipes": "tinynet.training.recipes",
    "synthetic": "tinynet.data.synthetic",
    "tta": "tinynet.library.run",
}
__all__ = [
    "Images",
    "InputError",
    "Rows",
    "Run",
    "ScoreRow",
    "TinyImageNet",
    "arrays",
    "download",
    "fit",
    "load_pretrained",
    "mcnemar",
    "recipes",
    "synthetic",
    "tta",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'tinynet' has no attribute {name!r}")
    module = import_module(_NAMES[name])
    return module if name == "recipes" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
