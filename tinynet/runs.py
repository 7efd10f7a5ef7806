"""The folder of a run: the files of its stages `base/`, `finetune/` and `fixres/`."""

import json
import shlex
import time
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tinynet.console import advice, command_flags, shell_command
from tinynet.errors import InputError
from tinynet.files import locked, read_json, read_text, write_text
from tinynet.records import LOG_ROWS, Json, LogRow, ScoreRow

ROOT = Path("runs")
STAGES = ("base", "finetune", "fixres")
# The stages that have a training size; fixres has a test size, which may be chosen after them.
WHOLE = ("base", "finetune")

NOT_A_RUN = "not a run (no recipe.json in base/, finetune/ or fixres/)"
# The keys that a stage's files must have, with their types; a float may look like an integer.
_IN_RECIPE = {
    "recipe": dict,
    "data": str,
    "weights": str,
    "seed": int,
    "data_digest": str,
    "split_digest": str,
    "start_digest": str,
    "pictures": {"train": int, "holdout": int},
    "versions": dict,
    "command": list,
    "device": {"type": str, "precision": str},
}
_SCORES = {"top1": float, "top5": float, "loss": float, "low": float, "high": float}
_IN_SCORES = {"split": str, "views": str, "merge": str, "size": int, "top1": float}
# Optional keys of a row of scores.
_OPTIONAL = {
    "n": int,
    "ece": float,
    "balanced": float,
    "worst": float,
    "worst_class": str,
    "forwards": int,
    **_SCORES,
}
_IN_LOG = {"kind": str, "step": int, "epoch": int}
_IN_KIND: dict[str, Json] = {
    "step": {"lr": float, "loss": float},
    "epoch": {"loss": float, "seconds": float, "holdout": _SCORES},
}
_MAX_BYTES = 2**30  # of a log: ten million steps
_TYPE_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a finite number",
    list: "a list",
    dict: "an object",
}
_MAX_NUMBER = 1e30  # larger than any loss, rate or time; figures could not show more
_RESTORE = "restore the file, or move it away"


class StageFolder:
    """The paths of the files of one stage of a run; creates no folder.

    `results`: the folder for scores and probabilities of evaluation, None: the stage's own.
    """

    def __init__(self, run: Path, stage: str, results: Path | None = None):
        self.run, self.stage, self.path = Path(run), stage, Path(run) / stage
        self.recipe, self.log = self.path / "recipe.json", self.path / "log.jsonl"
        self.best, self.last = self.path / "best.pt", self.path / "last.pt"
        self.curves = self.path / "curves.png"
        self.results = results or self.path
        self.scores, self.probabilities = (
            self.results / "scores.jsonl",
            self.results / "probabilities",
        )

    def with_results(self, out: str | Path | None) -> "StageFolder":
        """Return the same stage with results in `out`/RUN/STAGE; None: in the stage's own folder.

        So a read-only run can be evaluated, and reported with the same `out`.
        """
        results = Path(out) / self.run.resolve().name / self.stage if out else None
        return StageFolder(self.run, self.stage, results)

    def probability_files(self, pattern: str) -> list[Path]:
        """Return the saved probabilities whose names match a glob pattern, oldest first.

        They come from the stage's own folder and from `results`.
        """
        folders = dict.fromkeys((self.path / "probabilities", self.probabilities))
        files = [file for folder in folders for file in folder.glob(pattern) if file.is_file()]
        return sorted(files, key=lambda file: file.stat().st_mtime)

    def make(self) -> None:
        """Create the folder; raises `InputError` if that is impossible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be created ({error.strerror}); choose a writable folder"
                + advice(" with --out")
            ) from None

    @property
    def started(self) -> bool:
        """Whether training has started, and so has written its recipe."""
        return self.recipe.is_file()

    @property
    def finished(self) -> bool:
        """Whether training is finished; the score of the hold-out is the last file it writes."""
        return (self.path / "scores.jsonl").is_file() and self.best.is_file()

    @property
    def has_weights(self) -> bool:
        """Whether it was trained, even if its recipe is lost: it has weights or a log."""
        return self.best.is_file() or bool(read_rows(self.log))

    @property
    def origin(self) -> str:
        """The digest in this stage's checkpoints; empty for a recipe of an early version."""
        origin = self.read_recipe({}).get("origin")
        return origin if isinstance(origin, str) else ""

    def read_recipe(self, keys: Json = _IN_RECIPE) -> Json:
        """Read `recipe.json`.

        `keys`: the required keys, with their types. Raises `InputError` if the file cannot be read
        or a key is missing or has another type.
        """
        try:
            recipe = read_json(self.recipe)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.recipe}: cannot be read ({_reason(error)}); restore the file, or choose "
                "another run"
            ) from None
        if problem := _mismatch(recipe, keys):
            raise InputError(f"{self.recipe}: {problem}; restore the file, or choose another run")
        return recipe

    def read_log(self) -> list[LogRow]:
        """Read the rows of `log.jsonl`; raises `InputError` for an invalid line.

        Rows of an unknown kind are left out.
        """
        rows = []
        for number, row in enumerate(read_rows(self.log, _IN_LOG), 1):
            if problem := _mismatch(row, _IN_KIND.get(row["kind"], {})):
                raise InputError(f"{self.log}, line {number}: {problem}; {_RESTORE}")
            if row["kind"] in LOG_ROWS:
                rows.append(LOG_ROWS[row["kind"]].from_json(row))
        return rows

    def read_scores(self) -> list[ScoreRow]:
        """Read the rows of `scores.jsonl`, from the stage's own folder and from `results`.

        Raises `InputError` for an invalid line.
        """
        files = dict.fromkeys((self.path / "scores.jsonl", self.scores))
        rows = {_score_key(row): row for file in files for row in _score_rows(file)}
        return [ScoreRow.from_json(row) for row in rows.values()]


def new_run(out: str | None, recipe: str, root: Path = ROOT) -> Path:
    """Return the folder of a new run: `out`, or `<root>/<date>-<recipe>`."""
    return Path(out) if out else root / f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe}"


def find_run(run: str | None, fits: Callable[[Path], bool], need: str, remedy: str) -> Path:
    """Return the folder `run`, or by default the newest run below `runs/` that `fits`.

    `need`: what a run must have to fit. `remedy`: what a user can do to get such a run. Raises
    `InputError` with these two if the run is not a run or does not fit, or if none fits.
    """
    if run is not None:
        if not started_stages(Path(run)):
            suggestion = _suggestion(Path(run)) or remedy
            raise InputError(f"{_run_argument(run)}: {NOT_A_RUN}; {suggestion}")
        if not fits(Path(run)):
            raise InputError(f"{_run_argument(run)}: does not have {need}; {remedy}")
        return Path(run)
    candidates = [path for path in _runs_by_age("*") if fits(path)]
    if not candidates:
        demos = [path for path in _runs_by_age("demo/*") if fits(path)]
        also = f", or use the demo's run: {_run_argument(demos[-1])}" if demos else ""
        raise InputError(f"no run below {ROOT}/ has {need}; {remedy}{also}")
    return candidates[-1]


def _runs_by_age(pattern: str) -> list[Path]:
    """The runs below `runs/` whose paths match a glob pattern, oldest first."""
    return sorted((path for path in ROOT.glob(pattern) if started_stages(path)), key=_start_time)


def _suggestion(run: Path) -> str:
    """The run that a user may have meant by a path that is not a run; empty without any runs."""
    if run.name in STAGES and started_stages(run.parent):
        return f"it is a stage of {run.parent}; pass that run"
    paths = {path.name: path for path in (*_runs_by_age("demo/*"), *_runs_by_age("*"))}
    names = get_close_matches(run.name, paths, 1, cutoff=0.4) or list(paths)[-1:]
    return f"did you mean {_run_argument(paths[names[0]])}?" if names else ""


def _run_argument(run: str | Path) -> str:
    """A run as the user names it: with --run, if the running command has this flag."""
    flag = "--run " if "--run" in (command_flags() or ()) else ""
    return flag + shlex.quote(str(run))


def finished_stage(run: str | None, stage: str | None) -> StageFolder:
    """Return the stage to evaluate: the last finished stage of `run`, or only `stage`.

    `run` None: the newest run with such a stage. Raises `InputError` if there is none.
    """
    names = (stage,) if stage else STAGES
    if run is not None:
        _refuse_unfinished(Path(run), names)
    path = find_run(
        run,
        lambda path: any(StageFolder(path, name).finished for name in names),
        f"a finished {stage} stage" if stage else "a finished stage",
        f"train one first: {shell_command('tinynet.train', '--stage', names[0])}",
    )
    return [StageFolder(path, name) for name in names if StageFolder(path, name).finished][-1]


def _refuse_unfinished(run: Path, stages: Iterable[str]) -> None:
    """Raise `InputError` with a remedy if some `stages` of a run started and none is finished."""
    folders = [folder for folder in (StageFolder(run, stage) for stage in stages) if folder.started]
    if folders and not any(folder.finished for folder in folders):
        last = folders[-1]
        resume = shell_command("tinynet.train", "--resume", run)
        if (last.path / "scores.jsonl").is_file():
            raise InputError(
                f"{last.best} is missing; restore it, or start the stage over: {resume} --restart"
            )
        raise InputError(f"{last.path} is not finished; continue with: {resume}")


def started_stages(run: Path) -> list[StageFolder]:
    """Return the started stages of a run in order; none if the folder is not a run."""
    return [folder for folder in (StageFolder(run, stage) for stage in STAGES) if folder.started]


def stage_to_continue(run: Path) -> StageFolder | None:
    """Return the stage that a run goes on with, None if the folder is not a run.

    It is the last started one, unless that is finished and one before it is not.
    """
    started = started_stages(run)
    unfinished = [folder for folder in started if not folder.finished]
    return (unfinished or started)[-1] if started else None


def stage_before(run: Path, stage: str) -> StageFolder | None:
    """Return the last finished stage before `stage`, from which `stage` can start, or None."""
    earlier = [StageFolder(run, name) for name in STAGES[: STAGES.index(stage)]]
    finished = [folder for folder in earlier if folder.finished]
    return finished[-1] if finished else None


def stage_to_adapt(run: str | None, stage: str | None) -> StageFolder:
    """Return the stage to study at other test sizes: as `finished_stage`, but not fixres.

    A stage `fixres` is adapted to a size already, so the one before it is taken by default.
    """
    folder = finished_stage(run, stage)
    if stage is None and folder.stage == "fixres":
        return stage_before(folder.run, "fixres") or folder
    return folder


def _start_time(run: Path) -> float:
    return max(folder.recipe.stat().st_mtime for folder in started_stages(run))


# --- JSON-lines files ---


def append_rows(path: Path, rows: Iterable[LogRow]) -> None:
    """Append rows to a log in one write."""
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(_lines(row.to_json() for row in rows))


def _lines(rows: Iterable[Json]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Path, keys: Json | None = None) -> list[Json]:
    """Read the rows of a JSON-lines file; an incomplete last line is ignored.

    `keys`: the required keys of each row, with their types. Returns no rows if the file does not
    exist. Raises `InputError` with the number of the line for an invalid row.
    """
    if not path.is_file():
        return []
    try:
        lines = read_text(path, _MAX_BYTES).split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)}); {_RESTORE}") from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(
                f"{path}, line {number}: {line[:40]!r} is not JSON; {_RESTORE}"
            ) from None
        if problem := _mismatch(row, keys or {}):
            raise InputError(f"{path}, line {number}: {problem}; {_RESTORE}")
        rows.append(row)
    return rows


def _reason(error: Exception) -> str:
    reasons = {"UnicodeDecodeError": "not text", "ValueError": str(error)}
    return getattr(error, "strerror", None) or reasons.get(type(error).__name__, "not JSON")


def _mismatch(row: Any, keys: Json) -> str:
    """The first difference between `row` and a dict with `keys` of these types; empty for none."""
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}, not a JSON object"
    for name, kind in keys.items():
        if name not in row:
            return f"has no {name}"
        value = row[name]
        if isinstance(kind, dict):
            if problem := _mismatch(value, kind):
                return f"{name} {problem}"
        elif not _has_type(value, kind):
            return f"{name} is {str(value)[:40]!r}, not {_TYPE_NAMES[kind]}"
    return ""


def _has_type(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float)) and abs(value) < _MAX_NUMBER  # false for NaN
    return isinstance(value, kind)


def put_scores(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Add rows to a file of scores, completely or not at all.

    A row replaces an earlier row of the same split, views, merge, size and precision.
    """
    with locked(path, lambda: None):  # another command may evaluate the same run
        added = (row.to_json() for row in rows)
        scores = {_score_key(row): row for row in (*_score_rows(path), *added)}
        write_text(path, _lines(scores.values()))


def _score_rows(path: Path) -> list[Json]:
    rows = read_rows(path, _IN_SCORES)
    for number, row in enumerate(rows, 1):
        kinds = {name: kind for name, kind in _OPTIONAL.items() if name in row}
        if problem := _mismatch(row, kinds):
            raise InputError(f"{path}, line {number}: {problem}; {_RESTORE}")
    return rows


def _score_key(row: Json) -> tuple[Any, ...]:
    """What distinguishes a score from the other scores of its stage."""
    values = tuple(row[name] for name in ("split", "views", "merge", "size"))
    return (*values, row.get("precision"), "temperature" in row)


def cut_log(path: Path, step: int) -> None:
    """Remove the rows after `step`, because the log may be ahead of the last checkpoint."""
    rows = [
        row for row in read_rows(path, _IN_LOG) if row["step"] <= step and row["kind"] != "stopped"
    ]
    write_text(path, _lines(rows))
