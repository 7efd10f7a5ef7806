"""A run's folder: `base/`, `finetune/` and `fixres/`, each with recipe, log, weights, scores and
probabilities.
"""

import json
import shlex
import time
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tinynet.console import shell_command
from tinynet.errors import InputError
from tinynet.files import locked, read_json, read_text, write_text

ROOT = Path("runs")
STAGES = ("base", "finetune", "fixres")
# what --stage all trains; fixres begins with the choice of a test size
WHOLE = ("base", "finetune")

NOT_A_RUN = "not a run (no recipe.json in base/, finetune/ or fixres/)"
# What the files of a stage must hold, by type; a float may be written without a point.
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
# of a row of scores, where it has them
_NUMBERS = {"n": int, "ece": float, "forwards": int, **_SCORES}
_IN_LOG = {"kind": str, "step": int, "epoch": int}
_IN_KIND = {
    "step": {"lr": float, "loss": float},
    "epoch": {"loss": float, "seconds": float, "holdout": _SCORES},
}
_LARGEST = 2**30  # bytes of a log: ten million steps
_KINDS = {
    str: "a string",
    int: "an integer",
    float: "a finite number",
    list: "a list",
    dict: "an object",
}
_GREATEST = 1e30  # no loss, rate or time is beyond, and figures could not show it
_AS_IT_WAS = "restore the file, or move it away"


class StageFolder:
    """The files of one stage of a run; nothing is made before something is written.

    `results`: the folder for what evaluation keeps, scores and probabilities; None: the stage's
    own.
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
        """The same stage, with results saved in `out`/RUN/STAGE; None: in the stage's own folder.

        So a run in a read-only place can be scored, and reported with the same `out`.
        """
        results = Path(out) / self.run.resolve().name / self.stage if out else None
        return StageFolder(self.run, self.stage, results)

    def kept_probabilities(self, pattern: str) -> list[Path]:
        """The files of probabilities whose names fit a pattern, oldest first, those kept elsewhere
        too.
        """
        places = dict.fromkeys((self.path / "probabilities", self.probabilities))
        files = [file for place in places for file in place.glob(pattern) if file.is_file()]
        return sorted(files, key=lambda file: file.stat().st_mtime)

    def make(self) -> None:
        """Make the folder; raises `InputError` where that is not possible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be made ({error.strerror}); "
                "name a place you may write to with --out"
            ) from None

    @property
    def started(self) -> bool:
        """Whether training has written its recipe."""
        return self.recipe.is_file()

    @property
    def finished(self) -> bool:
        """Whether training came to its end: it closes with the hold-out's score."""
        return (self.path / "scores.jsonl").is_file() and self.best.is_file()

    @property
    def origin(self) -> str:
        """The digest that this stage's checkpoints carry; empty where its recipe is of before they
        had one.
        """
        origin = self.read_recipe({}).get("origin")
        return origin if isinstance(origin, str) else ""

    def read_recipe(self, keys: dict[str, Any] = _IN_RECIPE) -> dict[str, Any]:
        """What `recipe.json` says; raises `InputError` where it cannot be read, or lacks one of
        `keys`, by type.
        """
        try:
            stored = read_json(self.recipe)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.recipe}: cannot be read ({_reason(error)}); choose a run that "
                "tinynet.train wrote"
            ) from None
        if wrong := _lacks(stored, keys):
            raise InputError(f"{self.recipe}: {wrong}; choose a run that tinynet.train wrote")
        return stored

    def read_log(self) -> list[dict[str, Any]]:
        """The rows of `log.jsonl`; raises `InputError` for a line that is none."""
        rows = read_rows(self.log, _IN_LOG)
        for number, row in enumerate(rows, 1):
            if wrong := _lacks(row, _IN_KIND.get(row["kind"], {})):
                raise InputError(f"{self.log}, line {number}: {wrong}; {_AS_IT_WAS}")
        return rows

    def read_scores(self) -> list[dict[str, Any]]:
        """The rows of `scores.jsonl`, those kept elsewhere too; raises `InputError` for a line that
        is none.
        """
        places = dict.fromkeys((self.path / "scores.jsonl", self.scores))
        return list({_kind(row): row for place in places for row in _score_rows(place)}.values())


def new_run(out: str | None, recipe: str, root: Path = ROOT) -> Path:
    """The folder of a new run: `out`, or `<root>/<date>-<recipe>`."""
    return Path(out) if out else root / f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe}"


def find_run(run: str | None, fits: Callable[[Path], bool], otherwise: str) -> Path:
    """The run called `run`, or the newest below `runs/` that `fits`.

    Raises `InputError` where there is none, with what there is, or `otherwise` (what to do first).
    """
    if run is not None:
        if not started(Path(run)):
            raise InputError(f"--run {run}: {NOT_A_RUN}; {_instead(Path(run)) or otherwise}")
        if not fits(Path(run)):
            raise InputError(f"--run {run}: does not fit; {otherwise}")
        return Path(run)
    candidates = [path for path in _begun("*") if fits(path)]
    if not candidates:
        demos = [path for path in _begun("demo/*") if fits(path)]
        also = f", or name a demo's: --run {shlex.quote(str(demos[-1]))}" if demos else ""
        raise InputError(f"no run below {ROOT}/ fits; {otherwise}{also}")
    return candidates[-1]


def _begun(pattern: str) -> list[Path]:
    """The runs below `runs/` whose place fits a pattern, oldest first."""
    return sorted((path for path in ROOT.glob(pattern) if started(path)), key=_age)


def _instead(run: Path) -> str:
    """What may have been meant by something that is no run; nothing where there are no runs."""
    if run.name in STAGES and started(run.parent):
        return f"it is a stage of {run.parent}; name that run"
    there = {path.name: path for path in (*_begun("demo/*"), *_begun("*"))}
    near = get_close_matches(run.name, there, 1, cutoff=0.4) or list(there)[-1:]
    return f"did you mean --run {shlex.quote(str(there[near[0]]))}?" if near else ""


def finished_stage(run: str | None, stage: str | None) -> StageFolder:
    """The stage to score: as named, or the last finished one of the newest finished run."""
    wanted = (stage,) if stage else STAGES
    if run is not None:
        _refuse_unfinished(Path(run), wanted)
    path = find_run(
        run,
        lambda path: any(StageFolder(path, s).finished for s in wanted),
        f"train one to its end before: python -m tinynet.train --stage {wanted[0]}",
    )
    return [StageFolder(path, s) for s in wanted if StageFolder(path, s).finished][-1]


def _refuse_unfinished(run: Path, stages: Iterable[str]) -> None:
    """Raise `InputError` with what to do where stages of a run were begun, and none of them is
    finished.
    """
    folders = [folder for folder in (StageFolder(run, stage) for stage in stages) if folder.started]
    if folders and not any(folder.finished for folder in folders):
        resume = shell_command("tinynet.train", "--resume", run)
        if (folders[-1].path / "scores.jsonl").is_file():
            raise InputError(
                f"{folders[-1].best} is missing; restore it, or start the stage over: {resume} "
                "--restart"
            )
        raise InputError(f"{folders[-1].path} is not finished; continue with: {resume}")


def started(run: Path) -> list[StageFolder]:
    """The stages of a run that were begun, in order; none where it is no run."""
    return [folder for folder in (StageFolder(run, stage) for stage in STAGES) if folder.started]


def stage_before(run: Path, stage: str) -> StageFolder | None:
    """What `stage` goes on from: the last finished one of the stages before it, or None."""
    done = [
        StageFolder(run, s) for s in STAGES[: STAGES.index(stage)] if StageFolder(run, s).finished
    ]
    return done[-1] if done else None


def _age(run: Path) -> float:
    return max(folder.recipe.stat().st_mtime for folder in started(run))


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a JSON-lines file, whole lines only."""
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(_lines(rows))


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Path, keys: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, or none where there is no such file; a last line cut short is
    left out.

    `keys`: what each row must have, by type. Raises `InputError` with the number of a line that is
    no such row.
    """
    if not path.is_file():
        return []
    try:
        lines = read_text(path, _LARGEST).split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)}); {_AS_IT_WAS}") from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(
                f"{path}, line {number}: {line[:40]!r} is not JSON; {_AS_IT_WAS}"
            ) from None
        if wrong := _lacks(row, keys or {}):
            raise InputError(f"{path}, line {number}: {wrong}; {_AS_IT_WAS}")
        rows.append(row)
    return rows


def _reason(error: Exception) -> str:
    known = {"UnicodeDecodeError": "not text", "ValueError": str(error)}
    return getattr(error, "strerror", None) or known.get(type(error).__name__, "not JSON")


def _lacks(row: Any, keys: dict[str, Any]) -> str:
    """What is wrong with something that must be a dict with values of these types, or nothing."""
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}, not a JSON object"
    for name, kind in keys.items():
        if name not in row:
            return f"has no {name}"
        value = row[name]
        if isinstance(kind, dict):
            if wrong := _lacks(value, kind):
                return f"{name} {wrong}"
        elif (
            isinstance(value, bool)
            or not isinstance(value, (int, float) if kind is float else kind)
            or (kind is float and not abs(value) < _GREATEST)
        ):
            return f"{name} is {str(value)[:40]!r}, not {_KINDS[kind]}"
    return ""


def put_scores(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to a file of scores, whole or not at all; a row takes the place of an earlier one of
    its kind.
    """
    with locked(path, lambda: None):  # another command may score the same run
        scores = {_kind(row): row for row in (*_score_rows(path), *rows)}
        write_text(path, _lines(scores.values()))


def _score_rows(path: Path) -> list[dict[str, Any]]:
    rows = read_rows(path, _IN_SCORES)
    for number, row in enumerate(rows, 1):
        if wrong := _lacks(row, {name: kind for name, kind in _NUMBERS.items() if name in row}):
            raise InputError(f"{path}, line {number}: {wrong}; {_AS_IT_WAS}")
    return rows


def _kind(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a score another one."""
    named = tuple(row[name] for name in ("split", "views", "merge", "size"))
    return (*named, row.get("precision"), "temperature" in row)


def cut_log(path: Path, step: int) -> None:
    """Drop the rows that come after `step`: a checkpoint may be older than the log."""
    rows = [
        row for row in read_rows(path, _IN_LOG) if row["step"] <= step and row["kind"] != "stopped"
    ]
    write_text(path, _lines(rows))
