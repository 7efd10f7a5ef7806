"""Choose the test size of a finished network on the hold-out, for its stage `fixres`."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from tinynet import console
from tinynet.compute import Compute
from tinynet.data.batches import batches, default_batch_size
from tinynet.data.packed import Packed
from tinynet.distributed import get_world
from tinynet.errors import InputError
from tinynet.models.checkpoint import load_model
from tinynet.models.classifier import Classifier
from tinynet.runs import StageFolder
from tinynet.score.metrics import score
from tinynet.score.probabilities import view_probabilities
from tinynet.score.views import resize
from tinynet.training.config import RunConfig, split_of
from tinynet.training.extraction import evaluation_compute, inference_network
from tinynet.training.plans import candidate_sizes


def with_test_size(
    config: RunConfig, start: StageFolder, packed: Packed, compute: Compute
) -> RunConfig:
    """Return `config` with the size of `fixres` that is best on the hold-out without training.

    `start`: the finished stage that fixres starts from. The sizes are those of
    `candidate_sizes` that fit.
    """
    world = get_world()
    model = world.from_main(lambda: load_model(start.best, packed.wnids, start.origin)[0])
    compute = evaluation_compute(config, start.stage, compute)
    trained = config.recipe.stage(start.stage).size
    sizes = fitting_sizes(candidate_sizes(trained), model, packed) or [trained]
    rows = split_of(config, packed).holdout
    scores = {size: _top1(model, packed, rows, size, compute) for size in sizes}
    best = world.from_main(lambda: max(sizes, key=lambda size: scores[size]))
    texts = ", ".join(f"{scores[size]:.2%} at {size} px" for size in sizes)
    console.log(f"hold-out top-1 by test size, before fixres: {texts}; fixres trains at {best} px")
    recipe = config.recipe
    return replace(
        config,
        recipe=recipe.with_stage("fixres", replace(recipe.fixres, size=best)),
        start_stage=start.stage,
    )


def fitting_sizes(sizes: Sequence[int], model: Classifier, packed: Packed) -> list[int]:
    """Return the sizes that the network takes and that are not above the side of resized images."""
    return [
        size
        for size in sizes
        if _takes(model, size) and not (packed.resized and size > packed.side)
    ]


def _takes(model: Classifier, size: int) -> bool:
    try:
        model.backbone.check_size(size)
    except InputError:
        return False
    return True


def _top1(
    model: Classifier, packed: Packed, rows: np.ndarray, size: int, compute: Compute
) -> float:
    """The accuracy at a size on the images in these rows of train."""
    world = get_world()
    images = batches(
        packed.train,
        rows[world.share(len(rows))],
        batch_size=default_batch_size(size, compute),
        device=compute.device,
    )
    network = inference_network(model, packed, size, compute)
    values = world.gather(view_probabilities(network, images, partial(resize, size=size)))
    return score(values, packed.train.required_labels[rows]).top1
