"""The values that everything here passes around: a case, the place where it happens, and how its
command ended.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

WORLD = "../../../world"  # the good inputs, as a command sees them from the folder of its case


@dataclass(frozen=True)
class Place:
    """The folders of one case; a command may write below `out` alone, and to `tmp` if it tidies up.

    `world`: the good inputs that all cases share. `trap`: a file that code makes which must not
    run.
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
        """Make the folders."""
        for path in (self.inputs, self.out, self.home, self.tmp):
            path.mkdir(parents=True)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    `status`: of its exit, None where it had to be stopped. `memory`: its peak in bytes. `events`:
    what it wrote to outside its folders, and what it executed, as (`wrote` or `executed`, what).
    `fresh`: files that it left below `out` and its temporary folder. `truth`: what the maker of the
    case returned.
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
    """The outcome is not what it must be: the name of the outcome, and the reason in words."""

    def __init__(self, outcome: str, reason: str):
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


Maker = Callable[[Place, Random], Any]
Right = Callable[[Ended], str]  # the outcome's name; raises `Unlike`


@dataclass(frozen=True)
class Case:
    """A hostile input, the command that reads it, and what is right.

    `make(place, draw)` writes the input and returns plain values that `right` needs. `flags` are
    those of the shell, seen from the folder of the case.
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
        """What one would type."""
        return f"python -m {self.command.removesuffix('.__main__')} {shlex.join(self.flags)}"
