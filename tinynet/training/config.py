"""What a run was asked to do, as a value: `recipe.json` holds it, and resuming reads it back.
Imports no torch.
"""

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import runs
from tinynet.errors import InputError
from tinynet.training.recipes import Network, Recipe, SplitConfig, Stage, check_types

if TYPE_CHECKING:
    from tinynet.data.packed import Packed
    from tinynet.data.splits import Split

WEIGHTS = "IMAGENET1K_V1"
FORMAT = 2  # of recipe.json


@dataclass(frozen=True)
class RunConfig:
    """A recipe, the pictures it is for, and where it starts.

    `data`: path of the archive. `stages`: those to train, in order. `weights`: of the backbone, as
    `--weights` takes them. `start_run`: the run that finetune and fixres go on from, None: this
    one; `start_stage`: the stage of it that fixres goes on from.
    """

    recipe: Recipe
    data: str
    stages: tuple[str, ...] = runs.WHOLE
    weights: str = WEIGHTS
    seed: int = 0
    cache: str | None = None
    start_run: str | None = None
    start_stage: str = "base"

    def __post_init__(self) -> None:
        check_types(self)
        if unknown := set(self.stages) - set(runs.STAGES) or {self.start_stage} - set(runs.STAGES):
            raise InputError(
                f"unknown stage {min(unknown)!r}; choose from {', '.join(runs.STAGES)}"
            )

    @classmethod
    def of(cls, folder: runs.StageFolder) -> "RunConfig":
        """The plan that a stage was trained by; raises `InputError` with its file where that holds
        none.
        """
        try:
            return cls.read(folder.read_recipe())
        except InputError as error:
            raise InputError(
                f"{folder.recipe}: {str(error).removeprefix(f'{folder.recipe}: ')}"
            ) from None

    @classmethod
    def read(cls, stored: dict[str, Any]) -> "RunConfig":
        """The configuration that `recipe.json` contains, in any format.

        Raises `InputError` for a file of a newer version of tinynet, or of none.
        """
        kinds = {"data": SplitConfig, "network": Network, **dict.fromkeys(runs.STAGES, Stage)}
        try:
            recipe = upgrade(stored)["recipe"]
            parts = {name: kind(**_tuples(recipe[name])) for name, kind in kinds.items()}
            names = ("data", "weights", "seed", "cache", "start_run", "start_stage")
            return cls(
                Recipe(name=recipe["name"], **parts),
                stages=tuple(stored["stages"]),
                **{name: stored[name] for name in names},
            )
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                "is not a recipe of this version of tinynet "
                f"({type(error).__name__}: {error}); choose a run that it wrote"
            ) from None

    def start(self, run: Path, stage: str) -> runs.StageFolder | None:
        """What `stage` of `run` goes on from; None for base.

        Raises `InputError` where that is not finished.
        """
        if stage == "base":
            return None
        folder = runs.StageFolder(
            Path(self.start_run or run), self.start_stage if stage == "fixres" else "base"
        )
        if not folder.finished:
            what = "is not finished" if folder.started else "does not exist"
            raise InputError(
                f"{folder.path}: {what}, but {stage} starts from it; finish it first, or choose "
                "another run with --run"
            )
        return folder

    def trains_backbone(self, stage: str) -> bool:
        """Whether any convolution has learnt when `stage` is over; if none has, 8-bit integers may
        serve them.
        """
        before = {
            "base": (),
            "finetune": ("base",),
            "fixres": runs.STAGES[: runs.STAGES.index(self.start_stage) + 1],
        }
        return any(
            self.recipe.stage(name).trainable != ("head",) for name in (*before[stage], stage)
        )


def upgrade(stored: dict[str, Any]) -> dict[str, Any]:
    """`recipe.json` of any earlier format in the present one; raises `InputError` for a newer one.

    Format 1, which has no `format`, calls some fields by other names.
    """
    version = stored.get("format", 1)
    if version == FORMAT:
        return stored
    if version != 1:
        raise InputError(
            f"has format {version!r}, and this version of tinynet reads formats up to {FORMAT}; "
            "install a newer version of tinynet"
        )
    recipe = dict(stored["recipe"])
    for name, kind in {"network": Network, **dict.fromkeys(runs.STAGES, Stage)}.items():
        recipe[name] = {_present(kind).get(key, key): value for key, value in recipe[name].items()}
    return {**stored, "format": FORMAT, "recipe": recipe}


def in_format_1(part: Network | Stage) -> dict[str, Any]:
    """The fields of a part of a recipe by their names of format 1, which digests are made of."""
    was = {present: old for old, present in _present(type(part)).items()}
    return {was.get(name, name): value for name, value in asdict(part).items()}


def _present(kind: type) -> dict[str, str]:
    """Names of fields in format 1 -> their present names."""
    return {field.metadata["was"]: field.name for field in fields(kind) if field.metadata["was"]}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }


def open_data(data: str | None, cache: str | None, config: RunConfig) -> "Packed":
    """The pictures named by `data` and `cache`, or else those that `plan` was made for.

    Raises `InputError` where those are gone.
    """
    from tinynet.data.download import find_data
    from tinynet.data.packed import open_packed

    place = data or (config.data if Path(config.data).exists() else None)
    if place is None and not os.environ.get("TINYNET_DATA"):
        raise InputError(
            f"{config.data}: the data of this run is not there any more; name it with --data"
        )
    return open_packed(find_data(place), cache or config.cache)


def split_of(config: RunConfig, packed: "Packed") -> "Split":
    """The pictures that the plan learns from and holds out."""
    from tinynet.data.splits import split_train

    chosen = config.recipe.data
    return split_train(
        packed.train.labels, chosen.split_kind, chosen.holdout, chosen.split_seed, chosen.per_class
    )
