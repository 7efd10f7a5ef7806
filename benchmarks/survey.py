"""Which networks of torchvision and timm tinynet takes, and why it refuses the others.

    python -m benchmarks.survey OUT.json --every 4

Each network is built without memory for its weights (torch's meta device), with the features of its
recipe and a small head. Its groups get learning rates, and its published size is checked (every Nth
network of timm; all of torchvision). `counts`: networks by library. `reasons`: the networks that
are refused with each message. `failures`: networks that failed in another way, which is a fault.
"""

import collections
import gc
import re
import warnings
from importlib.metadata import version

import timm
import torchvision

from tinynet.console import progress
from tinynet.errors import InputError
from tinynet.files import write_json
from tinynet.flags import Parser, positive_int, run_command, user_path
from tinynet.models.backbones import VGG, backbone_template, without_numbers
from tinynet.models.classifier import Classifier
from tinynet.training.loop import weight_groups
from tinynet.training.recipes import recipe_for


def main() -> None:
    """Run the script."""
    parser = Parser("benchmarks.survey", __doc__)
    parser.add_argument("out", type=user_path, help="file to write")
    parser.add_argument("--every", type=positive_int, default=1, help="take every Nth of timm's")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    libraries = {
        "torchvision": torchvision.models.list_models(module=torchvision.models),
        "timm": [f"timm/{name}" for name in timm.list_models()][:: options.every],
    }
    counts: dict[str, collections.Counter[str]] = {}
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    failures = {}
    for library, names in libraries.items():
        counts[library] = collections.Counter()
        for name in progress(names, total=len(names), label=library, unit="networks"):
            try:
                build(name)
            except InputError as error:
                counts[library]["refused"] += 1
                reasons[without_names(str(error), name)].append(name)
            except Exception as error:  # a fault
                failures[name] = f"{type(error).__name__}: {error}"[:300]
            else:
                counts[library]["accepted"] += 1
            gc.collect()
    result = {
        "versions": {library: version(library) for library in ("torch", *libraries)},
        "every": options.every,
        "counts": counts,
        "reasons": dict(sorted(reasons.items(), key=lambda item: -len(item[1]))),
        "failures": failures,
    }
    write_json(options.out, result)
    print({library: dict(count) for library, count in counts.items()}, len(failures), "failures")


def build(name: str) -> None:
    """Build a network with the head and the learning rates of its recipe; raises what they do."""
    recipe = recipe_for(name)
    backbone = backbone_template(name)
    with without_numbers():
        network, stage = recipe.network, recipe.finetune
        model = Classifier(backbone, network.features, (8,), 10, 0.0, network.standardise)
        weight_groups(model, stage)
    backbone.check_size(stage.size if name == VGG else backbone.image_size)


def without_names(message: str, name: str) -> str:
    """A message that does not depend on the network: without its name, numbers and layers."""
    return re.sub(r"\d+", "N", re.sub(r"\([^()]*\)|'[^']*'", "...", message.replace(name, "NAME")))


if __name__ == "__main__":
    run_command(main)
