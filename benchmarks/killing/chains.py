"""A chain: a command is ended again and again, goes on each time, ends by itself, and is
compared.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.killing.launch import alike
from benchmarks.killing.moments import Moment, Scene
from benchmarks.killing.processes import Ending, Room, Strike, orphans
from benchmarks.killing.states import differences

# of a command that such a signal ended; nothing answers a SIGKILL
STATUS = {"SIGTERM": 143, "SIGINT": 130}
_ORPHANS = 8.0  # seconds after which a worker process without its parent is an orphan
_REAL_SHARE = 0.1  # of processes that are no forks
_CHANGE_SHARE = 0.5  # of strikes before a change to a file
# of strikes of real processes while they import, and the seconds of that
_IMPORT_SHARE, _IMPORTS = 0.2, 2.0
_LONGER = 1.3  # beside other chains a command takes longer than alone
_GO_ON = re.compile(r"continue with: (.+)")
_RESUME = re.compile(r"continue it with python -m tinynet.train --resume (\S+?),")

Blow = tuple[Strike, bool]  # and whether the process is a real one, no fork


@dataclass
class Trial:
    """What came of one chain, or of another part of the harness: `faults` is empty where all is as
    if undisturbed.
    """

    moment: str
    kind: str
    room: Room
    endings: list[Ending] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def kills(self) -> int:
        """How often a process was ended before it had done all."""
        return sum(_struck(ending) for ending in self.endings)

    @property
    def lines(self) -> list[str]:
        """Each command line with what happened to it."""
        return [
            f"{ending.line}    # "
            f"{'no fork; ' if ending.real else ''}{ending.struck or 'by itself'}; status "
            f"{ending.status}"
            for ending in self.endings
        ]


def chain(scene: Scene, moment: Moment, kind: str, blows: Sequence[Blow]) -> Trial:
    """A command of `moment` is struck as `blows` say, one after the other; then it goes on until it
    ends by itself.
    """
    trial = Trial(moment.name, kind, scene.room(moment, new_folder(scene, moment, kind)))
    line = scene.line(moment)
    for strike, real in blows:
        ending = scene.processes.run(
            line, trial.room, strike, limit=limit(scene, moment), real=real
        )
        trial.endings.append(ending)
        # it is the next one that is to be struck
        if not ending.struck and _RESUME.search(ending.last):
            line = next_line(ending)
            ending = scene.processes.run(
                line, trial.room, strike, limit=limit(scene, moment), real=real
            )
            trial.endings.append(ending)
        trial.faults += options(ending, kind)
        if not _struck(ending):
            break
        line = next_line(ending)
    go_on(scene, moment, trial)
    eval_fn(scene, moment, trial)
    return trial


def draw_blows(scene: Scene, moment: Moment, kind: str, key: str, kills: int) -> list[Blow]:
    """`kills` strikes at moments by chance, the same for the same `key`."""
    draw = random.Random(f"{key}: {moment.name}, {kind}")
    reals = [draw.random() < _REAL_SHARE for _ in range(kills)]
    return [(_draw(draw, scene.go(moment).ending, kind, real), real) for real in reals]


def _draw(draw: random.Random, undisturbed: Ending, kind: str, real: bool) -> Strike:
    """When to strike: half of the times before a change to a file, rare ones as often as others;
    else at any moment of the whole length.
    """
    changes = Counter(map(alike, undisturbed.traced))
    change, share = draw.choice(sorted(changes)), draw.random()
    # Two signals need time between them.
    if draw.random() < _CHANGE_SHARE and " " not in kind.removesuffix(" group"):
        return Strike(kind, change=change, number=draw.randint(1, changes[change]))
    if not real:
        return Strike(kind, undisturbed.seconds * _LONGER * share)
    if draw.random() < _IMPORT_SHARE:  # they take longer than all the rest
        return Strike(kind, _IMPORTS * share)
    return Strike(kind, undisturbed.seconds * _LONGER * share, "first")


def go_on(scene: Scene, moment: Moment, trial: Trial) -> None:
    """Run what comes after the last ending, until the command ends by itself; a refusal that names
    --resume is followed, once.
    """
    line = next_line(trial.endings[-1]) if trial.endings else scene.line(moment)
    if trial.endings and (
        trial.endings[-1].status == 0 or any(ending.still for ending in trial.endings)
    ):
        return
    for _ in range(2):
        ending = scene.processes.run(line, trial.room, limit=limit(scene, moment))
        trial.endings.append(ending)
        if not _RESUME.search(ending.last):
            break
        line = next_line(ending)
    if ending.still:
        trial.faults.append(f"stands still: {line}")
    elif ending.status != 0:
        trial.faults.append(f"does not go on: status {ending.status}: {ending.last}")


def next_line(ending: Ending) -> str:
    """What to type after an ending: what it printed to go on with, or the same again."""
    if printed := _GO_ON.findall(ending.err):
        return printed[-1].strip()
    if run := _RESUME.search(ending.last):
        return f"python -m tinynet.train --resume {run[1]}"
    return ending.line


def eval_fn(scene: Scene, moment: Moment, trial: Trial) -> None:
    """Add the workers that ended processes left, and, once all is done, what differs from the
    undisturbed room.
    """
    trial.faults += [
        f"orphans: workers live {_ORPHANS:.0f} s after their parent ended by {trial.kind}"
        for _ in orphans(trial.endings, _ORPHANS)
    ]
    if trial.endings[-1].status == 0:
        trial.faults += differences(scene.go(moment).room, trial.room)


def options(ending: Ending, kind: str) -> list[str]:
    """What is wrong with how a struck process ended: of one signal it should tell in a line and by
    its status.
    """
    if ending.still:
        return [f"stands still after {kind}"]
    name = kind.removesuffix(" group")
    if not _struck(ending) or name not in STATUS or ending.complete:
        return []
    faults = []
    if ending.status != STATUS[name]:
        faults.append(
            f"{kind} ends it "
            + (
                "at once, nothing being saved or cleared"
                if ending.status is None
                else f"with status {ending.status}, not {STATUS[name]}"
            )
        )
    if has_traceback(ending.err):
        faults.append(f"{kind} ends it with a traceback: {ending.last}")
    return faults


def has_traceback(err: str) -> bool:
    """Whether a traceback was printed, other than of what Python ignores while it clears up,
    torch's for the most.
    """
    lines = err.replace("\r", "\n").split("\n")
    return any(
        line.startswith("Traceback") and not before.startswith("Exception ignored")
        for before, line in zip(["", *lines], lines, strict=False)
    )


def limit(scene: Scene, moment: Moment) -> float:
    """Seconds after which a process of a moment stands still."""
    return 25 + 20 * scene.go(moment).ending.seconds


def _struck(ending: Ending) -> bool:
    return bool(ending.struck) and ending.status != 0


def new_folder(scene: Scene, moment: Moment, kind: str) -> Path:
    """A name for the folder of a trial."""
    place, number = scene.root / "trials" / f"{moment.name}-{kind.replace(' ', '-')}", 1
    while (path := place.with_name(f"{place.name}-{number}")).exists():
        number += 1
    return path
