"""Heads that are fine-tuned at other test sizes (stage fixres)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinynet.evaluation.predictor import Predictor
from tinynet.resolution.study import Study
from tinynet.runs import StageFolder
from tinynet.training.observers import Observer
from tinynet.training.recipes import RECIPES
from tinynet.training.stages import train


def fine_tuned(
    predictor: Predictor,
    sizes: Sequence[int],
    method: str,
    out: Path,
    observers: Sequence[Observer],
) -> dict[int, Study]:
    """Return the run with its head fine-tuned, for each size, from the run `out/<size>`.

    A run that does not exist is trained; one that was stopped is continued.
    """
    studies = {}
    folders = {size: StageFolder(out / str(size), "fixres") for size in sizes}
    # Existing folders first: they may be of another run, which raises.
    for size, folder in sorted(folders.items(), key=lambda item: not item[1].started):
        stage = replace(
            RECIPES[predictor.config.recipe.name].fixres,
            size=size,
            feature_dtype=predictor.stage.feature_dtype,
        )
        config = replace(
            predictor.config,
            recipe=replace(predictor.config.recipe, fixres=stage),
            stages=("fixres",),
            start_run=str(predictor.folder.run.resolve()),
            start_stage=predictor.folder.stage,
            data=predictor.packed.manifest["source"],
            cache=str(predictor.packed.cache),
        )
        compute = predictor.training_compute
        train(folder.run, config, compute, resume=folder.started, observers=observers)
        studies[size] = Study(Predictor(folder, predictor.packed, predictor.compute), method)
    return studies
