"""A run's folder: `base/`, `finetune/` and `fixres/`, each with recipe, log, weights, scores and probabilities."""

import json
import time
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tinynet.errors import InputError
from tinynet.files import locked, write_text

ROOT = Path("runs")
STAGES = ("base", "finetune", "fixres")
WHOLE = ("base", "finetune")  # what --stage all trains; fixres begins with the choice of a test size

NOT_A_RUN = "not a run (no recipe.json in base/, finetune/ or fixres/)"


class StageFolder:
    """The files of one stage of a run; nothing is made before something is written."""

    def __init__(self, run: Path, stage: str):
        self.run, self.stage, self.path = Path(run), stage, Path(run) / stage
        self.recipe, self.log = self.path / "recipe.json", self.path / "log.jsonl"
        self.best, self.last = self.path / "best.pt", self.path / "last.pt"
        self.scores, self.curves = self.path / "scores.jsonl", self.path / "curves.png"
        self.probabilities = self.path / "probabilities"

    def make(self) -> None:
        """Make the folder; raises `InputError` where that is not possible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be made ({error.strerror}); "
                             "name a place you may write to with --out") from None

    @property
    def started(self) -> bool:
        return self.recipe.is_file()

    @property
    def finished(self) -> bool:
        """Whether training came to its end: it closes with the hold-out's score."""
        return self.scores.is_file() and self.best.is_file()

    def read_recipe(self) -> dict[str, Any]:
        """What `recipe.json` says; raises `InputError` where it cannot be read."""
        try:
            return json.loads(self.recipe.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.recipe}: cannot be read ({type(error).__name__}); "
                             "name a folder that tinynet.train wrote with --run") from None


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
        also = f", or name a demo's: --run {demos[-1]}" if demos else ""
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
    return f"did you mean --run {there[near[0]]}?" if near else ""


def finished_stage(run: str | None, stage: str | None) -> StageFolder:
    """The stage to score: as named, or the last finished one of the newest finished run."""
    wanted = (stage,) if stage else STAGES
    found = find_run(run, lambda path: any(StageFolder(path, s).finished for s in wanted),
                     f"train one to its end before: python -m tinynet.train --stage {wanted[0]}")
    return [StageFolder(found, s) for s in wanted if StageFolder(found, s).finished][-1]


def started(run: Path) -> list[StageFolder]:
    """The stages of a run that were begun, in order; none where it is no run."""
    return [folder for folder in (StageFolder(run, stage) for stage in STAGES) if folder.started]


def stage_before(run: Path, stage: str) -> StageFolder | None:
    """What `stage` goes on from: the last finished one of the stages before it, or None."""
    done = [StageFolder(run, s) for s in STAGES[:STAGES.index(stage)] if StageFolder(run, s).finished]
    return done[-1] if done else None


def _age(run: Path) -> float:
    return max(folder.recipe.stat().st_mtime for folder in started(run))


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a JSON-lines file, whole lines only."""
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(_lines(rows))


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, or none where there is no such file; a last line cut short is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def put_scores(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to a file of scores, whole or not at all; a row takes the place of an earlier one of its kind."""

    def kind(row: dict[str, Any]) -> tuple[Any, ...]:
        named = tuple(row[name] for name in ("split", "views", "merge", "size"))
        return (*named, row.get("precision"), "temperature" in row)

    with locked(path.with_name(f".{path.name}.lock"), lambda: None):  # another command may score the same run
        kept = {kind(row): row for row in (*read_rows(path), *rows)}
        write_text(path, _lines(kept.values()))


def cut_log(path: Path, step: int) -> None:
    """Drop the rows that come after `step`: a checkpoint may be older than the log."""
    kept = [row for row in read_rows(path) if row["step"] <= step and row["kind"] != "stopped"]
    write_text(path, _lines(kept))
