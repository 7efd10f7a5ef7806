"""What a stage is trained with, and the lock of its folder while it is trained."""

from contextlib import ExitStack

import torch

from tinynet import console
from tinynet.compute import Compute
from tinynet.data.batches import seeded_generator
from tinynet.data.packed import Packed
from tinynet.distributed import get_world
from tinynet.errors import InputError
from tinynet.files import locked
from tinynet.models.backbones import compute_for
from tinynet.models.checkpoint import State, load_model
from tinynet.models.classifier import Classifier
from tinynet.models.digests import weights_digest
from tinynet.runs import StageFolder
from tinynet.training.config import RunConfig, split_of
from tinynet.training.new_network import new_network
from tinynet.training.order import block_for
from tinynet.training.pace import Watch
from tinynet.training.resume import (
    check_inputs,
    check_recipe_not_lost,
    check_resumable,
    load_last_checkpoint,
    stage_facts,
    update_paths,
)
from tinynet.training.single_stage import StageJob, frozen_start


def make_job(
    folder: StageFolder,
    config: RunConfig,
    packed: Packed,
    compute: Compute,
    watch: Watch | None = None,
) -> StageJob:
    """Return everything that one stage of `config` is trained with.

    `folder`: of the stage. `watch`: as in `StageJob`. Raises `InputError` if the stage that it
    starts from is not finished or has other data or another hold-out, if the weights cannot be
    read, or if the ranks differ.
    """
    world, split = get_world(), split_of(config, packed)
    torch.manual_seed(seeded_generator("cpu", config.seed, folder.stage).initial_seed())
    compute = compute_for(compute, config.recipe.network.arch)
    start = world.from_main(lambda: config.start(folder.run, folder.stage))
    if start:  # a run, which other machines may not have
        model = world.from_main(lambda: start_model(start, config, packed))
    else:
        model = world.main_first(lambda: start_model(None, config, packed))
    torch.set_rng_state(world.from_main(torch.get_rng_state))
    in_int8 = compute.int8 and config.recipe.stage(folder.stage).cached_epochs
    if config.trains_backbone(folder.stage) and not in_int8:
        compute = compute.for_training(bool(frozen_start(model, config, folder.stage)))
    facts = stage_facts(folder, config, packed, split, compute)
    if block := world.from_main(lambda: _shuffle_block(folder, config, packed)):
        facts["shuffle_block"] = block
    # The head of base is new, so its start is the backbone alone.
    facts["start_digest"] = weights_digest(model if start else model.backbone)
    world.check_equal(facts["start_digest"], "starting weights")
    world.check_equal(
        f"{compute.device.type} {compute.precision} {compute.floats} {compute.engine} "
        f"{compute.int8_start}",
        "device, precision and engine",
    )
    if start:
        inputs = {key: facts[key] for key in ("data_digest", "split_digest")}
        world.from_main(lambda: check_inputs(start, inputs))
    job = StageJob(folder, config, packed, split, model, compute, facts, world, watch)
    facts["origin"] = job.origin
    return job


def start_model(start: StageFolder | None, config: RunConfig, packed: Packed) -> Classifier:
    """Return the network that a stage starts from.

    It is the best network of `start`; without `start`, a new head on the pretrained backbone.
    Raises `InputError` if the weights cannot be read.
    """
    if start:
        return load_model(start.best, packed.wnids, start.origin)[0]
    return new_network(config, len(packed.wnids))


def lock_stage(stack: ExitStack, job: StageJob, *, resume: bool, restart: bool) -> bool:
    """Lock the folder of a stage until `stack` ends; return whether a started stage is resumed.

    `resume`: whether a started stage is resumed. `restart`: whether it is started over, so that a
    lost recipe does not matter. Raises `InputError` if another process trains the stage, or if it
    cannot be resumed.
    """
    folder = job.folder
    resumed = resume and folder.started
    if resumed:
        check_resumable(folder, job.config, job.facts)
    folder.make()
    stack.enter_context(locked(folder.path, lambda: _refuse_busy(folder)))
    if not resumed and not restart:
        check_recipe_not_lost(folder)
    return resumed


def claim_stage(stack: ExitStack, job: StageJob, *, resume: bool, restart: bool) -> State | None:
    """Lock the folder of a stage as `lock_stage`; return the state to continue from, if any.

    The recipe of a resumed stage gets the new places of files that have moved. Raises `InputError`
    if the last checkpoint cannot be used.
    """
    resumed = lock_stage(stack, job, resume=resume, restart=restart)
    state = None
    if resumed and not restart:
        state = load_last_checkpoint(job.folder, job.packed.wnids, job.origin)
    if resumed:
        update_paths(job.folder, job.config)
    return state


def _shuffle_block(folder: StageFolder, config: RunConfig, packed: Packed) -> int:
    """Return the `block` of `Shuffle`: the one of a started stage, else one for this machine."""
    if folder.started:
        return int(folder.read_recipe().get("shuffle_block", 0))
    if config.recipe.stage(folder.stage).cached_epochs:  # features are far smaller than images
        return 0
    images = packed.train.images
    block = block_for(images.nbytes, images[:1].nbytes)
    if block:
        console.log(
            f"note: the training images ({images.nbytes / 1e9:.1f} GB) are larger than half of the "
            f"free memory, so they are read from the disk in blocks of {block} images; the order "
            "of the blocks is shuffled, then the images within each group of 256 blocks"
        )
    return block


def _refuse_busy(folder: StageFolder) -> None:
    raise InputError(
        f"{folder.path}: another process is training this stage; wait until it has finished"
        + console.advice(", or use another folder with --out")
    )
