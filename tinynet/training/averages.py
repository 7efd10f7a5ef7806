"""Average the weights of several trainings (model soups, Wortsman et al. 2022)."""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tinynet import console
from tinynet.compute import AutoBatch, Compute
from tinynet.data.batches import batches
from tinynet.data.packed import Packed
from tinynet.models.checkpoint import load_model, save_model
from tinynet.models.classifier import BN_IMAGES, Classifier, update_bn
from tinynet.records import ScoreRow
from tinynet.runs import StageFolder
from tinynet.score.views import resize
from tinynet.training.config import RunConfig, split_of
from tinynet.training.single_stage import StageJob, holdout_row, holdout_score, save_epochs


def mean_weights(models: Sequence[Classifier]) -> Classifier:
    """Return a network, in eval mode, whose weights are the means of those of `models`.

    The running statistics of its batch norms are means too, so they do not fit the network yet.
    """
    states = [model.state_dict() for model in models]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in states[0].items()
    }
    model = copy.deepcopy(models[0])
    model.load_state_dict(mean)
    return model.eval()


def with_updated_norms(
    model: Classifier,
    config: RunConfig,
    stage: str,
    packed: Packed,
    size: int,
    compute: Compute,
) -> Classifier:
    """Recompute the statistics of the batch norms of the head, and of those that `stage` trained.

    Averaged weights need statistics of their own (Izmailov et al. 2018). `size`: the side of the
    images in pixels.
    """
    rows = np.random.RandomState(0).permutation(split_of(config, packed).train)
    images = (
        resize(batch.images, size)
        for batch in batches(packed.train, rows[:BN_IMAGES], batch_size=64, device=compute.device)
    )
    network = model.to(compute.device)
    network.train_only([*config.recipe.stage(stage).trainable, "head"])
    if network.trains_backbone_norms:
        update_bn(network, images, compute.autocast)
    else:
        with torch.inference_mode(), compute.autocast():
            features = list(map(AutoBatch(network.eval().features), images))
        update_bn(network.head, features)
    return network.cpu().eval()


def training_folders(folder: StageFolder, config: RunConfig) -> dict[int, StageFolder]:
    """Return the folder of each training, by its seed; `folder` has the average of them.

    Each training is a run within `folder`.
    """
    seeds = range(config.seed, config.seed + config.recipe.stage(folder.stage).soup)
    return {seed: StageFolder(folder.path / f"seed-{seed}", folder.stage) for seed in seeds}


def trainings_of(folder: StageFolder, config: RunConfig) -> list[tuple[StageFolder, RunConfig]]:
    """Return the folder and the configuration of each training; `folder` has the average of them.

    The trainings start from the same stage, with consecutive seeds. Raises `InputError` if that
    stage is not finished.
    """
    start = config.start(folder.run, folder.stage)
    assert start is not None  # base has no soup
    stage = replace(config.recipe.stage(folder.stage), soup=1)
    one = replace(
        config,
        recipe=config.recipe.with_stage(folder.stage, stage),
        stages=(folder.stage,),
        start_run=str(Path(start.run).resolve()),
    )
    folders = training_folders(folder, config)
    return [(training, replace(one, seed=seed)) for seed, training in folders.items()]


def save_average(job: StageJob, folders: Sequence[StageFolder]) -> ScoreRow:
    """Write the average of the trainings in `folders` as a stage; return its hold-out score.

    The epochs in the stage's recipe are the mean of those of the trainings.
    """
    wnids, compute = job.packed.wnids, job.compute
    models = [load_model(folder.best, wnids, folder.origin)[0] for folder in folders]
    model = with_updated_norms(
        mean_weights(models),
        job.config,
        job.folder.stage,
        job.packed,
        job.stage.size,
        compute,
    )
    save_model(job.folder.best, model, wnids, job.stage.size, origin=job.origin)
    stages = [RunConfig.of(folder).recipe.stage(folder.stage) for folder in folders]
    save_epochs(job.folder, statistics.mean(stage.epochs for stage in stages))
    score = holdout_score(job, model.to(compute.device).to(memory_format=torch.channels_last))
    alone = [folder.read_scores()[0].top1 for folder in folders]
    texts = ", ".join(f"{top1:.2%}" for top1 in alone)
    console.log(f"hold-out top-1: trainings {texts}; average of their weights {score.top1:.2%}")
    if score.top1 < max(alone):
        best = folders[alone.index(max(alone))].run
        console.log(
            f"note: on the hold-out, {best} alone is better than the average"
            + console.advice("; to use it, name it with --run")
        )
    return holdout_row(job, score)
