"""Configurations of new runs and of later stages, from what a user asks for. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tinynet import runs
from tinynet.console import log, option
from tinynet.errors import InputError
from tinynet.runs import STAGES, StageFolder, stage_before
from tinynet.training.config import WEIGHTS, RunConfig
from tinynet.training.plans import candidate_sizes
from tinynet.training.recipes import (
    FIRST,
    RECIPES,
    REFERENCE,
    TUNED,
    Network,
    Recipe,
    SplitConfig,
    Stage,
    recipe_for,
    typed_values,
)
from tinynet.values import as_integer

_PACK_MARGIN = 1.15  # packed side over the largest training size: crops then lose little
_OF_GROUPS = ("lr_factors", "lr_decay")
_CROPS_FOR = 64  # pixels; the recipes are for Tiny ImageNet


@dataclass(frozen=True)
class Settings:
    """What a user asks for; None: as the recipe or the earlier run has it.

    `recipe`: its name, or the recipe itself. `fields`: fields of the recipe and their values.
    `weights`: a name or a file. `labels`: a file of labels. `pack_size`: in pixels.
    """

    recipe: str | Recipe | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    weights: str | None = None
    seed: int | None = None
    cache: str | None = None
    labels: str | None = None
    pack_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", typed_values(self.fields))
        if self.seed is not None:
            object.__setattr__(self, "seed", as_integer(self.seed, option("seed")))
        if self.pack_size is not None:
            size = as_integer(self.pack_size, option("pack_size"))
            object.__setattr__(self, "pack_size", size)
        for name in ("data", "weights", "cache", "labels"):
            if getattr(self, name) == "":
                raise InputError(f"{option(name)} is ''; it must be a path or a name, or left out")
        if isinstance(self.recipe, Recipe) or self.recipe is None:
            return
        if not isinstance(self.recipe, str) or self.recipe not in RECIPES:
            raise InputError(f"recipe {self.recipe!r}: unknown; use one of {', '.join(RECIPES)}")

    def recipe_or(self, name: str) -> Recipe:
        """The recipe; the one called `name` if the user asks for none."""
        return self.recipe if isinstance(self.recipe, Recipe) else RECIPES[self.recipe or name]

    @property
    def crops_for(self) -> int | None:
        """The side in pixels of the images that the recipe's crops are for, as in `RunConfig`."""
        own = isinstance(self.recipe, Recipe) or "crop_side" in self.fields
        return None if own else _CROPS_FOR

    def of_network(self) -> dict[str, Any]:
        """The fields of a stage that depend on the network's groups of layers."""
        return {name: self.fields[name] for name in _OF_GROUPS if name in self.fields}

    def values(self, stage: str) -> dict[str, Any]:
        """The fields that the user asks for: all of a stage's if the recipe itself is given."""
        if not isinstance(self.recipe, Recipe):
            return self.fields_of(stage)
        parts = (self.recipe.data, self.recipe.network, self.recipe.stage(stage))
        values = {each.name: getattr(part, each.name) for part in parts for each in fields(part)}
        return values | self.fields_of(stage)

    def fields_of(self, stage: str) -> dict[str, Any]:
        """The fields that the user names, for one of several stages; `soup` is for finetune."""
        return {
            name: value
            for name, value in self.fields.items()
            if stage == "finetune" or name != "soup"
        }


def recipe_fields() -> list[str]:
    """The names of all fields of a recipe."""
    return _names(SplitConfig, Network, Stage)


def plan_new(settings: Settings, stages: tuple[str, ...]) -> RunConfig:
    """The configuration of a new run, which starts with base.

    The fields that the user asks for are those of base and finetune, `soup` that of finetune alone.
    Those that depend on the network's groups of layers are those of fixres, too.
    """
    usual = recipe_for(settings.fields.get("arch", TUNED.network.arch))
    trained = tuple(name for name in stages if name in runs.WHOLE)
    recipe = settings.recipe_or(usual.name)
    for name in trained:
        own = settings.fields_of(name) if len(trained) > 1 else settings.fields
        recipe = recipe.override(own, (name,))
    if "fixres" in stages:
        groups = settings.of_network()
        if len(recipe.fixres.lr_factors) != len(recipe.finetune.lr_factors):  # of another network
            groups = {name: getattr(recipe.finetune, name) for name in _OF_GROUPS}
        recipe = recipe.override(groups, ("fixres",))
    default = WEIGHTS if recipe.network.arch == TUNED.network.arch else "DEFAULT"
    weights = absolute_weights(settings.weights or default)
    return RunConfig(
        recipe,
        settings.data or "",
        stages,
        weights,
        settings.seed or 0,
        settings.cache,
        labels=settings.labels,
        pack_size=_pack_size(recipe, stages) if settings.pack_size is None else settings.pack_size,
        crops_for=settings.crops_for,
    )


def _pack_size(recipe: Recipe, stages: Sequence[str]) -> int:
    """The side in pixels to pack images at for these stages; fixres may have a larger size."""
    from tinynet.data.copies import MAX_SIZE

    sizes = [recipe.stage(name).size for name in stages if name in runs.WHOLE]
    usual = pack_size_for(sizes)
    if "fixres" not in stages:
        return usual
    larger = [size for size in candidate_sizes(recipe.finetune.size) if size <= MAX_SIZE]
    return max([usual, *larger])


def whole_run(recipe: str | Recipe | None) -> tuple[str, ...]:
    """Return the stages of `all`; older recipes, with published results, have no fixres."""
    name = recipe.name if isinstance(recipe, Recipe) else recipe
    return runs.WHOLE if name in (FIRST.name, REFERENCE.name) else STAGES


def pack_size_for(sizes: Sequence[int]) -> int:
    """Return the side in pixels to pack images at for training at `sizes`."""
    from tinynet.data.copies import LEAST_SIZE, MAX_SIZE

    return min(max(LEAST_SIZE, math.ceil(_PACK_MARGIN * max(sizes))), MAX_SIZE)


def plan_later(settings: Settings, stage: str, start: Path, run: Path) -> RunConfig:
    """The configuration of `stage` in `run`, from the last finished stage of the run `start`.

    The split, the network and the weights are those of `start`; raises `InputError` for others.
    """
    last = stage_before(start, stage)
    assert last is not None, "the caller has found a run with a finished stage"
    before = RunConfig.of(last)
    fixed = sorted(set(settings.fields) & set(_names(SplitConfig, Network)))
    fixed += ["weights"] if settings.weights else []
    same = {
        "pack_size": (settings.pack_size, before.pack_size),
        "labels": (settings.labels and str(Path(settings.labels).resolve()), before.labels),
    }
    fixed += [name for name, (now, then) in same.items() if now is not None and now != then]
    if fixed:
        names = ", ".join(map(option, fixed))
        raise InputError(
            f"{names}: fixed by the base that {stage} starts from; train another base for another "
            "value"
        )
    later = settings.recipe_or(before.recipe.name).override(settings.fields, (stage,))
    recipe = before.recipe.with_stage(stage, later.stage(stage), later.name)
    log(f"{stage} starts from {last.path}")
    sizes = before.recipe.stage(last.stage).size, recipe.stage(stage).size
    if sizes[0] != sizes[1]:
        log(f"note: {last.stage} was trained at {sizes[0]} px, {stage} at {sizes[1]}")
    return RunConfig(
        recipe,
        settings.data or before.data,
        (stage,),
        before.weights,
        before.seed if settings.seed is None else settings.seed,
        settings.cache or before.cache,
        None if run.resolve() == start.resolve() else str(start.resolve()),
        last.stage,
        before.labels,
        before.pack_size,
        settings.crops_for,
        before.data_digest,
    )


def with_found_data(config: RunConfig) -> RunConfig:
    """`config` with absolute paths, its data downloaded if the user named none."""
    from tinynet.data.download import find_data

    data = str(find_data(config.data or None, config.labels).resolve())
    cache, labels = (
        place and str(Path(place).resolve()) for place in (config.cache, config.labels)
    )
    return replace(config, data=data, cache=cache, labels=labels)


def refuse_started(run: Path, stages: tuple[str, ...], way_out: str) -> None:
    """Raise `InputError` where one of `stages`, or a later one outside a whole run, is started."""
    for stage in stages:
        if StageFolder(run, stage).started:
            raise InputError(f"{run}: already contains {stage}; {way_out}")
        later = [name for name in STAGES[STAGES.index(stage) + 1 :] if name not in runs.WHOLE]
        if started := [name for name in later if StageFolder(run, name).started]:
            raise InputError(
                f"{run}: already contains {started[0]}; use another folder with {option('out')}"
            )


def with_new_places(config: RunConfig, settings: Settings) -> RunConfig:
    """`config` with the new places of its data, cache and weights, if they have moved."""
    return replace(
        config,
        data=str(Path(settings.data).resolve()) if settings.data else config.data,
        cache=str(Path(settings.cache).resolve()) if settings.cache else config.cache,
        labels=str(Path(settings.labels).resolve()) if settings.labels else config.labels,
        weights=absolute_weights(settings.weights) if settings.weights else config.weights,
    )


@dataclass(frozen=True)
class Device:
    """What `choose_compute` takes, as a user or a started run has it."""

    device: str = "auto"
    precision: Any = "auto"
    compiled: bool | None = None
    floats: str | None = None
    frozen: str | None = None

    def as_started(self, folder: StageFolder) -> "Device":
        """The device and the precision that a stage was started with, unless others are named."""
        settings = folder.read_recipe()["device"]
        if self.device not in ("auto", settings["type"]):
            return self
        same = self.precision == "auto"
        # A network may be trained in floats, and run in int8 before and after, if a machine has it.
        started, floats = settings["precision"], settings.get("floats")
        if "int8" in (settings.get("start"), settings.get("after")):
            started = "int8" if settings.get("start") else "auto"
            floats = settings["precision"]
        return Device(
            settings["type"],
            started if same else self.precision,
            settings.get("compiled", False) if self.compiled is None else self.compiled,
            floats if same else self.floats,
            settings.get("frozen") if same else self.frozen,
        )


def absolute_weights(name: str) -> str:
    """Weights as `recipe.json` has them: the absolute path of a file, else a name."""
    return str(Path(name).resolve()) if Path(name).is_file() else name


def _names(*kinds: type) -> list[str]:
    return [each.name for kind in kinds for each in fields(kind)]
