"""Hostile text files of a run: recipe.json, log.jsonl and scores.jsonl."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from benchmarks.hostile import commands, right
from benchmarks.hostile import record_changes as changes
from benchmarks.hostile.case import Case, Place, Right
from benchmarks.hostile.damage import altered, damaged

KIND = "records"
# Each command, the run that it reads, and the check of its result.
_COMMANDS: dict[str, tuple[str, tuple[str, ...], str, right.Check]] = {
    "evaluate": (
        "tinynet.evaluate",
        commands.evaluate_run("out/run", "--split", "val"),
        "run",
        right.scored(("val",)),
    ),
    "report": ("tinynet.report.__main__", commands.report("out/run"), "run", right.page),
    "resume": ("tinynet.train", commands.resume("out/run"), "stopped", right.trained),
    "predict": ("tinynet.predict", commands.predict_run("out/run"), "run", right.named),
}
_READS = {
    "recipe.json": ("evaluate", "report", "resume", "predict"),
    "log.jsonl": ("report", "resume"),
    "scores.jsonl": ("evaluate", "report"),
}


def designed() -> Iterator[Case]:
    """Yield a case for each idea; the commands that read the file take turns."""
    for file, readers in _READS.items():
        for number, (name, change) in enumerate(changes.ANY_FILE.items()):
            for command in {readers[0], readers[number % len(readers)]}:
                # Without a complete row a file counts as empty; if it is no file, as missing.
                doubtful = file != "recipe.json" and name in (
                    "empty",
                    "blank",
                    "nuls",
                    *changes.INSTEAD,
                )
                words = () if name in changes.INSTEAD else (file,)
                yield _case(
                    file,
                    name,
                    change,
                    command,
                    _either(command) if doubtful else right.refused(*words),
                )
    yield from _in_turn(
        "recipe.json",
        changes.RECIPES,
        ("evaluate", "resume", "report"),
        right.refused("recipe.json"),
    )
    yield from _in_turn("recipe.json", changes.RECIPES_DOUBTFUL, ("evaluate", "resume", "report"))
    yield from _in_turn("recipe.json", changes.CLASSES, ("predict", "report"))
    yield from _in_turn("log.jsonl", changes.LOGS, ("report", "resume"))
    yield from _in_turn("scores.jsonl", changes.SCORES, ("evaluate", "report"))
    for command in _COMMANDS:
        yield _case(
            "recipe.json", "whole", lambda path: None, command, right.gives(_COMMANDS[command][3])
        )


def _in_turn(
    file: str,
    table: dict[str, changes.Change],
    readers: Sequence[str],
    expected: Right | None = None,
) -> Iterator[Case]:
    for number, (name, change) in enumerate(table.items()):
        command = readers[number % len(readers)]
        yield _case(file, name, change, command, expected or _either(command))


def random(number: int) -> Case:
    """A case with random damage: of a value, or of bytes."""
    file = ("recipe.json", "recipe.json", "log.jsonl", "scores.jsonl")[number % 4]
    command = _READS[file][number // 4 % len(_READS[file])]

    def make(place: Place, draw: Random) -> None:
        path = _copied(place, command) / file
        if not path.exists():
            return
        content = path.read_bytes()
        if draw.random() < 0.3:
            path.write_bytes(damaged(content, [(0, len(content))], draw))
        elif file == "recipe.json":
            path.write_text(json.dumps(altered(json.loads(content), draw)))
        else:
            rows = altered([json.loads(line) for line in content.splitlines()], draw)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    module, flags, _, check = _COMMANDS[command]
    # A recipe with other numbers is another recipe, which gives another result.
    expected = right.either(right.rows if command in ("evaluate", "resume") else check)
    return Case(
        KIND, f"damaged-{file.split('.')[0]}-{number:04d}-{command}", module, flags, make, expected
    )


def _either(command: str) -> Right:
    return right.either(_COMMANDS[command][3])


def _copied(place: Place, command: str) -> Path:
    shutil.copytree(place.world / _COMMANDS[command][2], place.out / "run")
    return place.out / "run/base"


def _case(file: str, name: str, change: changes.Change, command: str, expected: Right) -> Case:
    def make(place: Place, draw: Random) -> None:
        path = _copied(place, command) / file
        if not path.exists():  # an unfinished run has no scores yet
            path.write_text("")
        change(path)

    module, flags, *_ = _COMMANDS[command]
    return Case(KIND, f"{file.split('.')[0]}-{name}-{command}", module, flags, make, expected)
