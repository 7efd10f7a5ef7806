"""A chain: kill a command several times and resume it each time; at the end compare its files."""

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

# Exit status after each signal; a process cannot handle SIGKILL.
STATUS = {"SIGTERM": 143, "SIGINT": 130}
_ORPHANS = 8.0  # seconds after which a worker process without its parent is an orphan
_REAL_SHARE = 0.1  # share of processes that are no forks
_CHANGE_SHARE = 0.5  # share of kills just before a change to a file
# Share of kills of real processes during their imports, and the seconds that these take.
_IMPORT_SHARE, _IMPORTS = 0.2, 2.0
_LONGER = 1.3  # other chains run at the same time, so a command takes longer than alone
_GO_ON = re.compile(r"continue with: (.+)")
_RESUME = re.compile(r"continue it with python -m tinynet.train --resume (\S+?),")

Blow = tuple[Strike, bool]  # True: in a process started with `python -m`, not a fork


@dataclass
class Trial:
    """The result of one chain, or of another part: `faults` is empty if no result was lost."""

    moment: str
    kind: str
    room: Room
    endings: list[Ending] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def kills(self) -> int:
        """How many processes were ended before they had finished."""
        return sum(_struck(ending) for ending in self.endings)

    @property
    def lines(self) -> list[str]:
        """Each command line, with the signal and the exit status."""
        return [
            f"{ending.line}    # "
            f"{'no fork; ' if ending.real else ''}{ending.struck or 'by itself'}; status "
            f"{ending.status}"
            for ending in self.endings
        ]


def chain(scene: Scene, moment: Moment, kind: str, blows: Sequence[Blow]) -> Trial:
    """Start the command of `moment`, kill it with each of `blows` in turn, and let it finish."""
    trial = Trial(moment.name, kind, scene.room(moment, new_folder(scene, moment, kind)))
    line = scene.line(moment)
    for strike, real in blows:
        ending = scene.processes.run(
            line, trial.room, strike, limit=limit(scene, moment), real=real
        )
        trial.endings.append(ending)
        # The command only named the one that continues; kill that one.
        if not ending.struck and _RESUME.search(ending.last):
            line = next_line(ending)
            ending = scene.processes.run(
                line, trial.room, strike, limit=limit(scene, moment), real=real
            )
            trial.endings.append(ending)
        trial.faults += signal_faults(ending, kind)
        if not _struck(ending):
            break
        line = next_line(ending)
    go_on(scene, moment, trial)
    check(scene, moment, trial)
    return trial


def draw_blows(scene: Scene, moment: Moment, kind: str, key: str, kills: int) -> list[Blow]:
    """`kills` kills at random times, the same for the same `key`."""
    draw = random.Random(f"{key}: {moment.name}, {kind}")
    reals = [draw.random() < _REAL_SHARE for _ in range(kills)]
    return [(_draw(draw, scene.go(moment).ending, kind, real), real) for real in reals]


def _draw(draw: random.Random, undisturbed: Ending, kind: str, real: bool) -> Strike:
    """Draw the time of a kill: for half of them, just before a change to a file; else any time.

    All kinds of changes are equally likely, whatever their number.
    """
    changes = Counter(map(alike, undisturbed.traced))
    change, share = draw.choice(sorted(changes)), draw.random()
    # Two signals need time between them.
    if draw.random() < _CHANGE_SHARE and " " not in kind.removesuffix(" group"):
        return Strike(kind, change=change, number=draw.randint(1, changes[change]))
    if not real:
        return Strike(kind, undisturbed.seconds * _LONGER * share)
    if draw.random() < _IMPORT_SHARE:  # imports take longer than the command itself
        return Strike(kind, _IMPORTS * share)
    return Strike(kind, undisturbed.seconds * _LONGER * share, "first")


def go_on(scene: Scene, moment: Moment, trial: Trial) -> None:
    """Continue after the last kill, until the command ends by itself.

    If the command only names a command with --resume, that one runs too.
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
    """The next command line: the one that the process printed to continue, or the same again."""
    if printed := _GO_ON.findall(ending.err):
        return printed[-1].strip()
    if run := _RESUME.search(ending.last):
        return f"python -m tinynet.train --resume {run[1]}"
    return ending.line


def check(scene: Scene, moment: Moment, trial: Trial) -> None:
    """Add faults: orphaned workers, and, if the command finished, differences from an undisturbed
    run.
    """
    trial.faults += [
        f"orphans: workers live {_ORPHANS:.0f} s after their parent ended by {trial.kind}"
        for _ in orphans(trial.endings, _ORPHANS)
    ]
    if trial.endings[-1].status == 0:
        trial.faults += differences(scene.go(moment).room, trial.room)


def signal_faults(ending: Ending, kind: str) -> list[str]:
    """Faults of a process that a signal ended: it must print one line and have the right status."""
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
                "at once, without saving"
                if ending.status is None
                else f"with status {ending.status}, not {STATUS[name]}"
            )
        )
    if has_traceback(ending.err):
        faults.append(f"{kind} ends it with a traceback: {ending.last}")
    return faults


def has_traceback(err: str) -> bool:
    """Whether a traceback was printed, except for exceptions that Python ignores at exit."""
    lines = err.replace("\r", "\n").split("\n")
    return any(
        line.startswith("Traceback") and not before.startswith("Exception ignored")
        for before, line in zip(["", *lines], lines, strict=False)
    )


def limit(scene: Scene, moment: Moment) -> float:
    """Seconds after which a process of a moment counts as hanging."""
    return 25 + 20 * scene.go(moment).ending.seconds


def _struck(ending: Ending) -> bool:
    return bool(ending.struck) and ending.status != 0


def new_folder(scene: Scene, moment: Moment, kind: str) -> Path:
    """A new name for the folder of a trial."""
    stem, number = scene.root / "trials" / f"{moment.name}-{kind.replace(' ', '-')}", 1
    while (path := stem.with_name(f"{stem.name}-{number}")).exists():
        number += 1
    return path
