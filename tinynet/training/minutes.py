"""The configuration and the budget of a run that a user gives a number of minutes."""

from dataclasses import replace
from pathlib import Path

from tinynet import console
from tinynet.compute import Compute
from tinynet.errors import InputError
from tinynet.models.backbones import backbone_template
from tinynet.training.config import RunConfig, open_data, split_of
from tinynet.training.pace import Budget, Clock
from tinynet.training.plan import Settings, pack_size_for
from tinynet.training.plans import KINDS, Counts, Kind, candidate_sizes, choose, sizes_of
from tinynet.training.rates import measure_rates


def plan_minutes(
    minutes: float, config: RunConfig, compute: Compute, since: float, clock: Clock
) -> tuple[RunConfig, Budget]:
    """Measure this machine, print a plan for `minutes`, and return its configuration and budget.

    `config`: the data, the network and the split. `since`: the time of `clock` at which the minutes
    began. Raises `InputError` if no plan fits.
    """
    packed = open_data(None, None, config)
    split = split_of(config, packed)
    kinds = kinds_for(config)
    rates = measure_rates(config, kinds, packed, compute, minutes)
    counts = Counts(len(split.train), len(split.holdout))
    plan = choose(config.recipe, kinds, rates, counts, minutes, clock() - since)
    console.log("\n".join(plan.lines()))
    recipe = plan.kind.recipe(config.recipe, plan.epochs)
    return replace(config, recipe=recipe, stages=plan.kind.stages), Budget.of(plan, since, clock)


def kinds_for(config: RunConfig) -> list[Kind]:
    """Return the kinds of runs that suit a recipe and its network, in order of their time.

    Raises `InputError` if there is none.
    """
    recipe = config.recipe
    backbone = backbone_template(recipe.network.arch)

    def fits(kind: Kind) -> bool:
        own = kind.recipe(recipe, 1)
        try:
            for stage in kind.values:
                sizes = [own.stage(stage).size]
                if kind.fixres:
                    sizes += candidate_sizes(own.finetune.size)
                for size in sizes:
                    backbone.check_size(size)
                own.stage(stage).rate_factors([*backbone.groups, "head"])
        except InputError:
            return False
        return True

    kinds = [kind for kind in KINDS.get(recipe.name, ()) if fits(kind)]
    if not kinds:
        raise InputError(
            f"{console.option('minutes')}: no plan suits {recipe.network.arch} with the recipe "
            f"{recipe.name}; there are plans for the recipes {' and '.join(KINDS)}; use one of "
            f"these, or remove {console.option('minutes')}"
        )
    return kinds


def budget_of(run: Path, config: RunConfig) -> Budget | None:
    """Return the budget of a run that is continued with `config`.

    None for a run without minutes, and for a stage that was trained after its plan. Raises
    `InputError` if `plan.json` cannot be read.
    """
    return Budget.read(run) if "base" in config.stages else None


def with_pack_size(config: RunConfig, settings: Settings) -> RunConfig:
    """Return `config` with images packed for the largest size of its plans.

    It stays as it is if the user names another side of packed images.
    """
    if settings.pack_size is not None:
        return config
    base, later = sizes_of(kinds_for(config), config.recipe)
    return replace(config, pack_size=pack_size_for([*base, *later]))
