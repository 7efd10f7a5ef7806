"""Whether anything is lost when a process is ended at any moment.

    python -m benchmarks.faults --kills 200 --out results.json
    python -m benchmarks.faults --short    one kill for each moment and signal
    python -m benchmarks.faults --moments pack --signals SIGKILL --kills 10 --parts

Commands of tinynet run in small on drawn images: a thin network, frequent saving. They are ended by
signals at random moments, half of them just before a change to a file, and run again, by the line
that they printed to go on with if they did. What they leave in the end is compared with an
undisturbed run: bits of weights, features, probabilities and packed images, rows of log and scores
without times and rates, pages; no temporary file, lock or process may be left. Parts: a full disk,
failing workers, two processes at once, signals to the group, a second signal.

Forks of a process that has imported torch stand for most processes; every tenth is started by
`python -m`. Needs Linux.
"""

import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.killing.chains import Trial, chain, draw_blows
from benchmarks.killing.launch import alike
from benchmarks.killing.moments import MOMENTS, Scene
from benchmarks.killing.parts import PARTS
from benchmarks.killing.processes import Processes
from benchmarks.machine import facts
from tinynet import console
from tinynet.compute import choose_compute
from tinynet.errors import InputError
from tinynet.files import refuse_existing, write_json
from tinynet.flags import Parser, positive_int, run_command
from tinynet.report.tables import columns

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
_LONGEST = 3  # kills of a chain
_DRAWS = 3  # trials of a part at a moment
_SHORT = ("full disk", "worker killed", "SIGTERM group")  # parts of --short
_SHORT_SECONDS = 50.0  # after which --short begins nothing more


@dataclass
class Book:
    """The trials so far, by moment and kind; a room is kept for every kind of fault, others are
    removed.

    `end`: the time after which no trial begins.
    """

    bar: Any
    end: float
    trials: dict[tuple[str, str], list[Trial]] = field(default_factory=lambda: defaultdict(list))
    _known: set[str] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.Lock)

    def add(self, trial: Trial, progress: int) -> None:
        """Write down a trial, by which there is so much less to do."""
        with self._lock:
            self.trials[trial.moment, trial.kind].append(trial)
            news = {alike(fault) for fault in trial.faults} - self._known
            self._known |= news
            self.bar.update(progress)
        if not news:
            shutil.rmtree(trial.room.path, ignore_errors=True)

    @property
    def closed(self) -> bool:
        """Whether no trial may begin any more."""
        return time.monotonic() > self.end


def main(argv: list[str] | None = None) -> None:
    """The command; exits with status 1 where anything differs."""
    flags = _parser().parse_args(argv)
    if not Path("/proc/self/stat").is_file():
        raise InputError(
            "benchmarks.faults: needs Linux, whose /proc says which processes are left"
        )
    # A job in the background of a shell ignores SIGINT, and what it starts would ignore it too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    root = Path(flags.keep or tempfile.mkdtemp(prefix="tinynet-faults-")).resolve()
    if flags.keep:
        refuse_existing("--keep", root)
        root.mkdir(parents=True)
    started = time.monotonic()
    with closing(Processes(root)) as processes, closing(Scene(root, processes)) as scene:
        with ThreadPoolExecutor(flags.jobs) as pool:
            list(pool.map(scene.go, [MOMENTS[name] for name in flags.moments]))
        if flags.also:  # what is compared with is not broken
            processes.environment["FAULTS_ALSO"] = str(Path(flags.also).resolve())
        trials = _try(scene, flags)
    result = _result(scene, flags, trials, time.monotonic() - started)
    if flags.out:
        # The room is gone with this run, and its path is of this machine.
        write_json(
            flags.out, json.loads(json.dumps(result).replace(json.dumps(str(root))[1:-1], "ROOM"))
        )
    print(_table(result["rows"]), "", _table(result["parts"]), sep="\n")
    if not result["kills"]:
        raise InputError(f"no process was ended, so nothing is shown; see {root}")
    if result["faults"]:
        print(
            _faults(result["faults"]),
            f"\n{len(result['faults'])} kinds of faults; evidence in {root}",
            sep="\n",
        )
        sys.stdout.flush()
        raise SystemExit(1)
    shutil.rmtree(root)


def _parser() -> Parser:
    parser = Parser("benchmarks.faults", __doc__)
    parser.add_argument(
        "--kills",
        type=positive_int,
        metavar="N",
        help="how often a process is ended (default: 200)",
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help=f"about a minute: a kill for each moment and signal; {', '.join(_SHORT)} at one "
        "moment each; what there is no time for is left out",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all moments (default: 0)"
    )
    parser.add_argument(
        "--moments", nargs="+", choices=tuple(MOMENTS), default=list(MOMENTS), help="default: all"
    )
    parser.add_argument(
        "--signals", nargs="+", choices=SIGNALS, default=list(SIGNALS), help="default: all"
    )
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=tuple(PARTS),
        default=list(PARTS),
        help="what else is tried, at the moments that are named (default: all of it)",
    )
    parser.add_argument(
        "--jobs", type=positive_int, default=2, metavar="N", help="chains at once (default: 2)"
    )
    parser.add_argument(
        "--keep", metavar="DIR", help="a new folder for evidence (default: a temporary one)"
    )
    parser.add_argument(
        "--also",
        metavar="FILE",
        help="a Python file that every ended process runs first, to break "
        "something and see that it is reported",
    )
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    return parser


def _try(scene: Scene, flags: Any) -> dict[tuple[str, str], list[Trial]]:
    """Everything that the flags name, `--jobs` at once; the trials by moment and kind."""
    cells = [(moment, kind) for moment in flags.moments for kind in flags.signals]
    parts = [
        (part, moment)
        for part in flags.parts
        for moment in PARTS[part][1]
        if moment in flags.moments
    ]
    order = random.Random(flags.seed)
    order.shuffle(cells)
    if flags.short:
        parts = [
            (part, order.choice(moments))
            for part in _SHORT
            if (moments := [moment for other, moment in parts if other == part])
        ]
    kills, draws = flags.kills or (len(cells) if flags.short else 200), 1 if flags.short else _DRAWS
    with (
        console.progress(
            total=kills + draws * len(parts), label="ending processes", unit="kills"
        ) as bar,
        ThreadPoolExecutor(flags.jobs) as pool,
    ):
        book = Book(bar, time.monotonic() + (_SHORT_SECONDS if flags.short else float("inf")))
        work = [pool.submit(_part, scene, book, part, flags.seed, draws) for part in parts]
        work += [
            pool.submit(_cell, scene, book, cell, flags.seed, len(range(number, kills, len(cells))))
            for number, cell in enumerate(cells)
        ]
        try:
            for job in work:
                job.result()
        except BaseException:
            book.end = 0.0
            pool.shutdown(cancel_futures=True)
            raise
    struck = sum(trial.kills for cell in cells for trial in book.trials[cell])
    if struck < kills:
        console.log(
            f"{struck} of {kills} kills: for the rest there was no time, or the commands ended "
            "before they came"
        )
    return book.trials


def _cell(scene: Scene, book: Book, cell: tuple[str, str], seed: int, kills: int) -> None:
    """Chains of one moment and signal, until there are as many kills as there should be."""
    name, kind = cell
    number, most = 0, 10 + 4 * kills  # some chains end before they are struck
    while kills > 0 and number < most and not book.closed:
        key = f"{seed}, {number}"
        length = min(kills, random.Random(f"{key}: {name}, {kind}, length").randint(1, _LONGEST))
        trial = chain(
            scene, MOMENTS[name], kind, draw_blows(scene, MOMENTS[name], kind, key, length)
        )
        kills, number = kills - trial.kills, number + 1
        book.add(trial, trial.kills)


def _part(scene: Scene, book: Book, part: tuple[str, str], seed: int, draws: int) -> None:
    """Trials of one part at one moment."""
    name, moment = part
    for number in range(draws):
        if not book.closed:
            book.add(PARTS[name][0](scene, MOMENTS[moment], f"{seed}, {number}"), 1)


def _result(
    scene: Scene, flags: Any, trials: dict[tuple[str, str], list[Trial]], seconds: float
) -> dict[str, Any]:
    """Everything as plain values: a row a moment and signal, a row a part and moment, faults by
    kind.
    """
    rows = [
        {
            "moment": moment,
            "signal": kind,
            "kills": sum(trial.kills for trial in trials[moment, kind]),
            "as if undisturbed": sum(
                trial.kills for trial in trials[moment, kind] if not trial.faults
            ),
            "chains": len(trials[moment, kind]),
            "chains with faults": sum(bool(trial.faults) for trial in trials[moment, kind]),
        }
        for moment in flags.moments
        for kind in flags.signals
    ]
    parts = [
        {
            "part": part,
            "moment": moment,
            "trials": len(trials[moment, part]),
            "as if undisturbed": sum(
                not trial.faults and not trial.note.startswith("skipped")
                for trial in trials[moment, part]
            ),
            "note": next(
                (trial.note for trial in trials[moment, part] if trial.note.startswith("skipped")),
                "",
            ),
        }
        for part in flags.parts
        for moment in PARTS[part][1]
        if (moment, part) in trials
    ]
    everything = [trial for some in trials.values() for trial in some]
    undisturbed = {
        name: {"seconds": one.ending.seconds, "changes": len(one.ending.traced)}
        for name, one in scene.undisturbed.items()
    }
    return {
        "what": "commands of tinynet ended at random moments, gone on with, and compared with "
        "undisturbed ones",
        "machine": facts(choose_compute("cpu", "float32")),
        "seed": flags.seed,
        "seconds": seconds,
        "kills": sum(row["kills"] for row in rows),
        "undisturbed": undisturbed,
        "rows": rows,
        "parts": parts,
        "kills of what is no fork": sum(
            bool(ending.struck)
            for trial in everything
            if trial.kind in SIGNALS
            for ending in trial.endings
            if ending.real
        ),
        "faults": _by_kind(everything),
        "trials": [
            {
                "moment": trial.moment,
                "kind": trial.kind,
                "lines": trial.lines,
                "faults": trial.faults,
                "note": trial.note,
            }
            for trial in everything
        ],
    }


def _by_kind(trials: list[Trial]) -> list[dict[str, Any]]:
    """The faults, each kind once, those first that most trials have."""
    kinds: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        for kind in dict.fromkeys(map(alike, trial.faults)):
            kinds[kind].append(trial)
    faults = []
    for kind, some in sorted(kinds.items(), key=lambda item: -len(item[1])):
        example = next((trial for trial in some if trial.room.path.exists()), some[0])
        faults.append(
            {
                "fault": kind,
                "trials": len(some),
                "moments": sorted({trial.moment for trial in some}),
                "by": sorted({trial.kind for trial in some}),
                "lines": example.lines,
                "evidence": str(example.room.path),
            }
        )
    return faults


def _table(rows: list[dict[str, Any]]) -> str:
    return (
        columns([list(rows[0]), *([str(value) for value in row.values()] for row in rows)])
        if rows
        else ""
    )


def _faults(faults: list[dict[str, Any]]) -> str:
    """Every kind of fault with the command lines of one trial that showed it."""
    lines = []
    for fault in faults:
        lines += [
            "",
            fault["fault"],
            f"    {fault['trials']} trials; {', '.join(fault['moments'])}; "
            f"{', '.join(fault['by'])}; {fault['evidence']}",
        ]
        lines += [f"    $ {line}" for line in fault["lines"]]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
