"""The configuration of a run, which `recipe.json` stores. Imports no torch."""

import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tinynet import runs
from tinynet.console import advice, option
from tinynet.errors import InputError
from tinynet.records import Json
from tinynet.training.recipes import Network, Recipe, SplitConfig, Stage, check_types

if TYPE_CHECKING:
    from tinynet.data.packed import Packed
    from tinynet.data.splits import Split

WEIGHTS = "IMAGENET1K_V1"
FORMAT = 2  # of recipe.json
# Fields that format 1 does not have, with the values that change nothing.
_ADDED = {"arch": "vgg16", "lr_decay": 1.0, "balanced": False, "soup": 1}


@dataclass(frozen=True)
class RunConfig:
    """A recipe, its data, its starting weights and its seed.

    `data`: the path of the archive. `stages`: the stages to train, in order. `weights`: ImageNet
    weights of the backbone, a name or a file. `cache`: the folder for derived
    files, None: the default. `start_run`: the run that finetune and fixres start from, None: this
    run. `start_stage`: the stage of that run that fixres starts from. `labels`: the file of labels,
    None: the data has its own. `pack_size`: the side in pixels that images of different sizes are
    packed at, None: the default. `crops_for`: the side in pixels of the images that the recipe's
    `crop_side` is for; on others it is scaled. None: it is for the images of `data`. `data_digest`:
    the digest of the images of the run that this configuration continues; '' for a new run.
    """

    recipe: Recipe
    data: str
    stages: tuple[str, ...] = runs.WHOLE
    weights: str = WEIGHTS
    seed: int = 0
    cache: str | None = None
    start_run: str | None = None
    start_stage: str = "base"
    labels: str | None = None
    pack_size: int | None = None
    crops_for: int | None = None
    data_digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_types(self)
        if unknown := set(self.stages) - set(runs.STAGES) or {self.start_stage} - set(runs.STAGES):
            raise InputError(
                f"unknown stage {min(unknown)!r}; choose from {', '.join(runs.STAGES)}"
            )

    @classmethod
    def of(cls, folder: runs.StageFolder) -> "RunConfig":
        """Return the configuration of a stage; raises `InputError` if its recipe is invalid."""
        try:
            return cls.read(folder.read_recipe())
        except InputError as error:
            raise InputError(
                f"{folder.recipe}: {str(error).removeprefix(f'{folder.recipe}: ')}"
            ) from None

    @classmethod
    def read(cls, contents: Json) -> "RunConfig":
        """Return the configuration in the `contents` of a `recipe.json` of any format.

        Raises `InputError` if they are invalid, or of a newer version of tinynet.
        """
        kinds = {"data": SplitConfig, "network": Network, **dict.fromkeys(runs.STAGES, Stage)}
        try:
            recipe = upgrade(contents)["recipe"]
            sections = {name: kind(**_tuples(recipe[name])) for name, kind in kinds.items()}
            names = ("data", "weights", "seed", "cache", "start_run", "start_stage")
            added: Json = {
                name: contents.get(name) for name in ("labels", "pack_size", "crops_for")
            }
            return cls(
                Recipe(name=recipe["name"], **sections),
                stages=tuple(contents["stages"]),
                **{name: contents[name] for name in names},
                **added,
                data_digest=contents.get("data_digest", ""),
            )
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"not a recipe of tinynet ({type(error).__name__}: {error}); restore the "
                "file, or choose another run"
            ) from None

    def stage(self, name: str, side: int) -> Stage:
        """Return the settings of a stage for images of `side` pixels."""
        stage = self.recipe.stage(name)
        if not self.crops_for or not stage.crop_side or side == self.crops_for:
            return stage
        sides = tuple(max(1, round(each * side / self.crops_for)) for each in stage.crop_side)
        return replace(stage, crop_side=sides)

    def start(self, run: Path, stage: str) -> runs.StageFolder | None:
        """Return the stage that `stage` of `run` starts from; None for base.

        Raises `InputError` if it is not finished.
        """
        if stage == "base":
            return None
        folder = runs.StageFolder(
            Path(self.start_run or run), self.start_stage if stage == "fixres" else "base"
        )
        if not folder.finished:
            state = "is not finished" if folder.started else "does not exist"
            raise InputError(
                f"{folder.path}: {state}, but {stage} starts from it; finish it first, or choose "
                "another run" + advice(" with --run")
            )
        return folder

    def trains_backbone(self, stage: str) -> bool:
        """Whether any convolution is trained by the end of `stage`.

        If so, it was trained in floats.
        """
        return self.trained_groups(stage) != {"head"}

    def trained_groups(self, stage: str) -> set[str]:
        """Return the groups of layers, or `all`, that are trained by the end of `stage`."""
        before = {
            "base": (),
            "finetune": ("base",),
            "fixres": runs.STAGES[: runs.STAGES.index(self.start_stage) + 1],
        }
        stages = (*before[stage], stage)
        return {group for name in stages for group in self.recipe.stage(name).trainable}


def upgrade(contents: Json) -> Json:
    """Convert the contents of a `recipe.json` of any earlier format to the present format.

    Format 1 has no key `format`, and other names for some fields. Raises `InputError` for a newer
    format.
    """
    version = contents.get("format", 1)
    if version == FORMAT:
        return contents
    if version != 1:
        raise InputError(
            f"format {version!r} is unknown, this version of tinynet reads formats up to {FORMAT}; "
            "install a newer version of tinynet"
        )
    recipe = dict(contents["recipe"])
    for name, kind in {"network": Network, **dict.fromkeys(runs.STAGES, Stage)}.items():
        names = _present_names(kind)
        if both := [old for old, new in names.items() if {old, new} <= recipe[name].keys()]:
            raise InputError(
                f"{name} has both {both[0]} and {names[both[0]]}, which are one field; remove "
                f"{both[0]}"
            )
        recipe[name] = {names.get(key, key): value for key, value in recipe[name].items()}
    return {**contents, "format": FORMAT, "recipe": recipe}


def in_format_1(section: Network | Stage) -> Json:
    """Return a recipe's section with the field names of format 1, which digests depend on."""
    names = {present: old for old, present in _present_names(type(section)).items()}
    return {
        names.get(name, name): value
        for name, value in asdict(section).items()
        if (name, value) not in _ADDED.items()
    }


def _present_names(kind: type[Network] | type[Stage]) -> dict[str, str]:
    """Names of fields in format 1 -> their present names."""
    return {field.metadata["was"]: field.name for field in fields(kind) if field.metadata["was"]}


def _tuples(fields: Json) -> Json:
    """Fields from JSON, with tuples for lists."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }


def open_data(data: str | None, cache: str | None, config: RunConfig) -> "Packed":
    """Open `data`, or by default the data of `config`, with its packed copy.

    `cache`: the folder for the packed copy, by default that of `config`. Raises `InputError` if the
    data does not exist.
    """
    from tinynet.data.copies import PackRequest, open_packed
    from tinynet.data.download import find_data

    path = data if data is not None or not Path(config.data).exists() else config.data
    if path is None and not os.environ.get("TINYNET_DATA"):
        raise InputError(
            f"{config.data}: the data of this run no longer exists; pass its new path as "
            f"{option('data')}"
        )
    request = PackRequest(config.pack_size, config.labels, config.data_digest)
    place = cache if cache is not None else config.cache or None
    return open_packed(find_data(path, config.labels), place, request)


def split_of(config: RunConfig, packed: "Packed") -> "Split":
    """Return the rows of train that the configuration trains on and holds out."""
    from tinynet.data.splits import split_train

    labels, split = packed.train.labels, config.recipe.data
    assert labels is not None  # train has labels
    return split_train(labels, split.split_kind, split.holdout, split.split_seed, split.per_class)
