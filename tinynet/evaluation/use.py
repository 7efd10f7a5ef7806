"""How a finished run is meant to be used: the views that its hold-out chose, in `use.json`."""

from contextlib import suppress
from pathlib import Path

from tinynet import console
from tinynet.compute import Compute
from tinynet.distributed import get_world
from tinynet.errors import InputError
from tinynet.evaluation.predictor import Predictor
from tinynet.files import read_json, write_json
from tinynet.runs import StageFolder, finished_stage
from tinynet.score.merges import mean
from tinynet.score.metrics import score
from tinynet.score.views import view_set
from tinynet.training.best_size import fitting_sizes
from tinynet.training.config import RunConfig, open_data
from tinynet.training.pace import Budget, plan_file
from tinynet.training.plans import larger_size


def end_run(run: Path, config: RunConfig, compute: Compute, budget: Budget | None = None) -> None:
    """Choose the views of a finished run if they are not chosen, and print what it took.

    `budget`: the minutes of the run, if it has any.
    """
    world = get_world()
    folder = world.from_main(lambda: finished_stage(str(run), None))
    if world.from_main(lambda: has_use(folder)):
        return
    if budget:
        budget.begin("views")
    choose_views(Predictor(folder, open_data(None, None, config), compute))
    if budget:
        budget.leave(folder.run)
        console.log("\n".join(budget.lines()))


def choose_views(predictor: Predictor) -> str:
    """Return the set of views that is most accurate on the hold-out, and write `use.json`.

    The sets are those of `candidates`; of equal ones, the one with fewer forward passes is taken.
    The file is written if the run saves its results.
    """
    tops = {}
    for views in predictor.sets(candidates(predictor), predictor.size):
        probabilities = predictor.predict("holdout", views)
        labels = probabilities.required_labels
        tops[views.name] = score(probabilities.merged(mean), labels).top1
    best = max(tops, key=lambda name: tops[name])  # the first of equal ones
    texts = ", ".join(
        f"{'one view' if name == 'none' else name} {top:.2%}" for name, top in tops.items()
    )
    console.log(f"hold-out top-1 by views: {texts}; evaluate uses {best}")
    if predictor.saves:
        write_json(
            use_file(predictor.folder.run),
            {
                "stage": predictor.folder.stage,
                "size": predictor.size,
                "views": best,
                "holdout": tops,
            },
        )
    return best


def candidates(predictor: Predictor) -> list[str]:
    """Return the sets of views among which the hold-out chooses, from few to many forward passes.

    After fixres there is a set with larger images, if the network and the stored images allow them.
    On the hold-out, it was better than `flip` for three networks together (experiments/soups.json).
    """
    names, size = ["none", "flip"], predictor.size
    if predictor.folder.stage == "fixres":
        larger = fitting_sizes([larger_size(size)], predictor.model, predictor.packed)
        names += [f"flip+scales:{size},{side}" for side in larger]
    return names


def usual_views(folder: StageFolder) -> tuple[str, ...]:
    """Return the views that the hold-out chose for a stage; none without `use.json`.

    Raises `InputError` if the file cannot be read.
    """
    path = use_file(folder.run)
    if not path.is_file():
        return ()
    try:
        use = read_json(path)
        stage, views, size = str(use["stage"]), str(use["views"]), use["size"]
        view_set(views, 64)
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(
            f"{path}: is not valid ({type(error).__name__}: {error}); remove it, or name views "
            f"with {console.option('tta')}"
        ) from None
    trained = folder.read_recipe()["recipe"][folder.stage]["size"]
    same = (stage, size) == (folder.stage, trained)
    return (views,) if same and views != "none" else ()


def has_use(folder: StageFolder) -> bool:
    """Whether the views of this stage have been chosen."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return bool(read_json(use_file(folder.run))["stage"] == folder.stage)
    return False


def clear_stale(run: Path) -> None:
    """Remove the plan and the views of a run that was in the folder `run` before.

    They stay if that run has trained, and only its `recipe.json` is lost.
    """
    if StageFolder(run, "base").has_weights:
        return
    for file in (plan_file(run), use_file(run)):
        file.unlink(missing_ok=True)


def use_file(run: Path) -> Path:
    """Return the file of a run that says how it is meant to be used."""
    return Path(run) / "use.json"
