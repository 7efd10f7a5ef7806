"""The facts that identify a stage's training, and the checks that a stage can be resumed."""

import hashlib
import json
import math
import platform
from dataclasses import asdict, replace
from importlib.metadata import version

import torch
import torchvision

from tinynet import __version__, console, runs
from tinynet.allocator import keeps_freed_memory
from tinynet.compute import Compute, out_of_memory
from tinynet.data.packed import Packed
from tinynet.data.splits import Split
from tinynet.errors import InputError
from tinynet.files import write_json
from tinynet.models.checkpoint import State, load_model, load_training
from tinynet.records import Json
from tinynet.runs import StageFolder
from tinynet.training.config import FORMAT, RunConfig, in_format_1
from tinynet.training.loop import Training
from tinynet.values import counted

# Digests in `recipe.json` of what a stage is trained on -> what each digest is of.
_INPUTS = {"data_digest": "data", "split_digest": "split", "start_digest": "starting weights"}
# The options that locate an input whose files have moved.
_INPUT_FLAGS = {
    "data_digest": " (--data)",
    "split_digest": "",
    "start_digest": " (--weights, or --run for a later stage)",
}


def stage_facts(
    folder: StageFolder, config: RunConfig, packed: Packed, split: Split, compute: Compute
) -> Json:
    """Return the contents of a stage's `recipe.json`: all that is needed to repeat the stage.

    The caller adds `start_digest` and `origin`.
    """
    return {
        "format": FORMAT,
        "stage": folder.stage,
        **asdict(config),
        "data_digest": packed.contents,
        "split_digest": split.digest,
        "pictures": {"train": len(split.train), "holdout": len(split.holdout)},
        "device": compute.facts(),
        "versions": {
            "tinynet": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
            **_library_versions(config, compute),
        },
        "keeps_freed_memory": keeps_freed_memory(),
        "command": console.current_command(),
        "classes": dict(zip(packed.wnids, packed.names, strict=True)),
    }


def _library_versions(config: RunConfig, compute: Compute) -> dict[str, str]:
    """The versions of the optional libraries that the stage uses."""
    used = {
        "timm": config.recipe.network.arch.startswith("timm/"),
        "openvino": compute.engine == "openvino",
    }
    return {name: version(name) for name, needed in used.items() if needed}


def origin_digest(stage: str, config: RunConfig, facts: Json) -> str:
    """Return the digest of everything that decides a stage's weights, except its epochs.

    The stage's checkpoints contain this digest. `facts`: the three digests of `stage_facts`.
    """
    recipe = config.recipe
    digests = {name: facts[name] for name in ("data_digest", "split_digest", "start_digest")}
    settings = replace(recipe.stage(stage), epochs=1)
    values = [
        stage,
        config.seed,
        digests,
        asdict(recipe.data),
        in_format_1(recipe.network),
        in_format_1(settings),
        *([facts["shuffle_block"]] if facts.get("shuffle_block") else []),
    ]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def check_inputs(folder: StageFolder, facts: Json) -> None:
    """Check that `folder` was trained on the inputs in `facts`.

    Raises `InputError` if the data, the split or the starting weights differ. Logs a note if the
    device or the torch version differs. `facts`: any part of `stage_facts`.
    """
    recipe = folder.read_recipe()
    torch_now = facts.get("versions", {}).get("torch")
    torch_then = recipe["versions"].get("torch")
    if torch_now and torch_now != torch_then:
        console.log(
            f"note: {folder.path} was started with torch {torch_then}; results may differ slightly "
            f"with torch {torch_now}"
        )
    for key, what in _INPUTS.items():
        if key in facts and recipe[key] != facts[key]:
            raise InputError(
                f"{folder.path}: the {what} changed ({recipe[key][:12]} at its start, now "
                f"{facts[key][:12]}); use the original {what}" + console.advice(_INPUT_FLAGS[key])
            )
    if "device" in facts and recipe["device"] != facts["device"]:
        console.log(
            f"note: {folder.path} was started on {recipe['device'].get('name', 'another device')}; "
            f"results may differ slightly on {facts['device']['name']}"
        )


def check_resumable(folder: StageFolder, config: RunConfig, facts: Json) -> None:
    """Raise `InputError` unless `folder` was started with the same inputs, recipe and seed."""
    check_inputs(folder, {key: facts[key] for key in (*_INPUTS, "device", "versions")})
    check_config(folder, config)


def check_config(folder: StageFolder, config: RunConfig) -> None:
    """Raise `InputError` if `folder` was trained with another recipe or seed."""
    before = RunConfig.read(folder.read_recipe())
    settings_then, settings_now = (
        (c.seed, c.recipe.data, c.recipe.network, c.recipe.stage(folder.stage))
        for c in (before, config)
    )
    if settings_then != settings_now:
        raise InputError(
            f"{folder.path}: contains a run with a different recipe or seed; choose another folder"
            + console.advice(" with --out")
        )


def check_recipe_not_lost(folder: StageFolder) -> None:
    """Raise `InputError` if a stage has weights or a log, but no `recipe.json`.

    Training would overwrite these weights.
    """
    if folder.has_weights:
        raise InputError(
            f"{folder.recipe}: is missing, but {folder.path} contains a trained {folder.stage}; "
            f"restore the file, or move {folder.path} away"
        )


def note_epochs(folder: StageFolder, config: RunConfig) -> None:
    """Log a note if a finished stage has fewer or more epochs than its recipe now says."""
    stage, rows = config.recipe.stage(folder.stage), runs.read_rows(folder.log)
    epochs = sum(row.get("kind") == "epoch" for row in rows)
    if rows and not stage.patience and epochs != math.ceil(stage.epochs):
        console.log(
            f"note: {folder.path} is finished after {counted(epochs, 'epoch')}, but its "
            f"recipe.json says {stage.epochs:g}"
        )


def load_last_checkpoint(folder: StageFolder, wnids: tuple[str, ...], origin: str) -> State:
    """Return the training state in a stage's last checkpoint, after checking the other files.

    A stage writes its first checkpoint before its recipe, so a missing checkpoint is a lost one.
    Raises `InputError`, before anything is written, if a file is missing or invalid.
    """
    remedy = _start_over(folder)
    if not folder.last.is_file():
        raise InputError(
            f"{folder.last}: is missing, so {folder.stage} cannot be resumed; restore the file, or "
            f"{remedy}"
        )
    try:
        state = load_training(folder.last, wnids, origin)
        if state.get("best") is not None:
            load_model(folder.best, wnids, origin)
    except InputError as error:
        raise InputError(f"{error}; restore the file, or {remedy}") from None
    logged = max((row["step"] for row in runs.read_rows(folder.log, {"step": int})), default=0)
    epoch = state.get("epoch")
    if isinstance(epoch, int) and logged < epoch:  # an epoch has at least one step
        console.log(f"note: {folder.log} is incomplete; the curves start at epoch {epoch + 1}")
    return state


def update_paths(folder: StageFolder, config: RunConfig) -> None:
    """Update the paths of data, cache, weights and base run in a stage's recipe, if they moved."""
    recipe = folder.read_recipe()
    names = ("data", "cache", "weights", "labels", "start_run")
    paths = {name: getattr(config, name) for name in names}
    if any(recipe.get(name) != path for name, path in paths.items()):
        write_json(folder.recipe, recipe | paths)


def restore(training: Training, state: State, folder: StageFolder) -> None:
    """Load `state` into `training`; raises `InputError` if it belongs to another training."""
    try:
        training.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        raise InputError(
            f"{folder.last}: does not belong to {folder.stage} of this run "
            f"({' '.join(str(error).split())[:100]}); restore the right file, or "
            f"{_start_over(folder)}"
        ) from None


def _start_over(folder: StageFolder) -> str:
    """The advice for a stage that cannot be resumed."""
    command = console.shell_command("tinynet.train", "--resume", folder.run, "--restart")
    return f"start the stage over: {command}"
