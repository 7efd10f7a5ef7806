"""A case, its folders, and the end of its command."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

WORLD = "../../../world"  # the good inputs, relative to the folder of a case


@dataclass(frozen=True)
class Place:
    """The folders of one case. A command may write to `out`, and temporary files to `tmp`.

    `world`: the good inputs that all cases share. `trap`: a file that appears if hostile code runs.
    """

    folder: Path
    world: Path

    @property
    def inputs(self) -> Path:
        return self.folder / "in"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"

    @property
    def trap(self) -> Path:
        return self.folder / "executed"

    def make(self) -> None:
        """Create the folders."""
        for path in (self.inputs, self.out, self.home, self.tmp):
            path.mkdir(parents=True)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    `status`: its exit status, None if it had to be stopped. `memory`: its peak in bytes. `events`:
    what it wrote outside its folders and what it executed, as (`wrote` or `executed`, what).
    `fresh`: the new files in `out` and in its temporary folder. `truth`: the value that the maker
    of the case returned.
    """

    status: int | None
    out: str
    err: str
    seconds: float
    memory: int
    events: tuple[tuple[str, str], ...]
    fresh: tuple[str, ...]
    place: Place
    truth: Any


class Unlike(Exception):
    """The outcome is wrong: its name, and the reason."""

    def __init__(self, outcome: str, reason: str):
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


Maker = Callable[[Place, Random], Any]
Right = Callable[[Ended], str]  # the outcome's name; raises `Unlike`


@dataclass(frozen=True)
class Case:
    """A hostile input, the command that reads it, and the check of the result.

    `make(place, draw)` writes the input and returns plain values for `right`. `flags` are those of
    the command line, with paths relative to the folder of the case.
    """

    kind: str
    name: str
    command: str
    flags: tuple[str, ...]
    make: Maker = field(repr=False)
    right: Right = field(repr=False)

    @property
    def title(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def line(self) -> str:
        """The command line."""
        return f"python -m {self.command.removesuffix('.__main__')} {shlex.join(self.flags)}"
