"""Kill commands at random moments, resume them, and check that no result is lost.

    python -m benchmarks.faults --kills 200 --out results.json
    python -m benchmarks.faults --short    one kill for each moment and signal
    python -m benchmarks.faults --moments pack --signals SIGKILL --kills 10 --parts

The commands of tinynet run on synthetic images, with a thin network that is saved often. Signals
end them at random moments, half of these just before a change to a file. Then they run again, with
the command line that they printed, if they did. The final files are compared with those of an
undisturbed run: the bits of weights, features, probabilities and packed images, the rows of log and
scores (without times and rates), and the pages. No temporary file, lock or process may remain.
Other parts: a full disk, failing workers, two processes at once, signals to the process group, a
second signal.

Most processes are forks of one that has imported torch; every tenth is started with `python -m`.
Needs Linux.
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
_LONGEST = 3  # kills in a chain
_DRAWS = 3  # trials of a part at a moment
_SHORT = ("full disk", "worker killed", "SIGTERM group")  # parts of --short
_SHORT_SECONDS = 50.0  # --short begins no trial after this time


@dataclass
class Book:
    """The trials so far, by moment and kind.

    The folder of a trial is deleted unless it is the first one with its kind of fault. `end`: the
    time after which no trial begins.
    """

    bar: Any
    end: float
    trials: dict[tuple[str, str], list[Trial]] = field(default_factory=lambda: defaultdict(list))
    _known: set[str] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.Lock)

    def add(self, trial: Trial, progress: int) -> None:
        """Add a trial; the progress bar advances by `progress`."""
        with self._lock:
            self.trials[trial.moment, trial.kind].append(trial)
            new_faults = {alike(fault) for fault in trial.faults} - self._known
            self._known |= new_faults
            self.bar.update(progress)
        if not new_faults:
            shutil.rmtree(trial.room.path, ignore_errors=True)

    @property
    def closed(self) -> bool:
        """Whether the time for new trials is over."""
        return time.monotonic() > self.end


def main(argv: list[str] | None = None) -> None:
    """Run the command; exits with status 1 if there are faults."""
    flags = _parser().parse_args(argv)
    if not Path("/proc/self/stat").is_file():
        raise InputError(
            "benchmarks.faults: needs /proc, to find the processes that remain; run it on Linux"
        )
    # A background job of a shell ignores SIGINT, and its children would ignore it too.
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
        if flags.also:  # only now: the undisturbed runs must not be broken
            processes.environment["FAULTS_ALSO"] = str(Path(flags.also).resolve())
        trials = _try(scene, flags)
    result = _result(scene, flags, trials, time.monotonic() - started)
    if flags.out:
        # The folder will be deleted, and its path is one of this machine.
        write_json(
            flags.out, json.loads(json.dumps(result).replace(json.dumps(str(root))[1:-1], "ROOM"))
        )
    print(_table(result["rows"]), "", _table(result["parts"]), sep="\n")
    if not result["kills"]:
        raise InputError(f"no process was killed, so nothing was tested; see {root}")
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
        help="number of kills (default: 200)",
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help="stop after about a minute: one kill for each moment and signal, and "
        f"{', '.join(_SHORT)} at one moment each",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of all random moments (default: 0)"
    )
    parser.add_argument(
        "--moments",
        nargs="+",
        choices=tuple(MOMENTS),
        default=list(MOMENTS),
        metavar="NAME",
        help=f"commands to kill: {', '.join(MOMENTS)} (default: all)",
    )
    parser.add_argument(
        "--signals",
        nargs="+",
        choices=SIGNALS,
        default=list(SIGNALS),
        metavar="NAME",
        help=f"signals to send: {', '.join(SIGNALS)} (default: all)",
    )
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=tuple(PARTS),
        default=list(PARTS),
        metavar="NAME",
        help=f"other faults to try at these moments: {'; '.join(map(repr, PARTS))} (default: all)",
    )
    parser.add_argument(
        "--jobs", type=positive_int, default=2, metavar="N", help="trials at once (default: 2)"
    )
    parser.add_argument(
        "--keep", metavar="DIR", help="a new folder for the trials (default: a temporary one)"
    )
    parser.add_argument(
        "--also",
        metavar="FILE",
        help="a Python file that every process runs first, to break something and see that it is "
        "reported",
    )
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    return parser


def _try(scene: Scene, flags: Any) -> dict[tuple[str, str], list[Trial]]:
    """Run all trials that the flags ask for, `--jobs` at once; the trials by moment and kind."""
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
            total=kills + draws * len(parts), label="killing processes", unit="kills"
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
    count = sum(trial.kills for cell in cells for trial in book.trials[cell])
    if count < kills:
        console.log(
            f"{count} of {kills} kills: the time was over, or commands ended before their signal"
        )
    return book.trials


def _cell(scene: Scene, book: Book, cell: tuple[str, str], seed: int, kills: int) -> None:
    """Run chains of one moment and signal until they have `kills` kills in all."""
    name, kind = cell
    number, most = 0, 10 + 4 * kills  # some chains end before their signal
    while kills > 0 and number < most and not book.closed:
        key = f"{seed}, {number}"
        length = min(kills, random.Random(f"{key}: {name}, {kind}, length").randint(1, _LONGEST))
        trial = chain(
            scene, MOMENTS[name], kind, draw_blows(scene, MOMENTS[name], kind, key, length)
        )
        kills, number = kills - trial.kills, number + 1
        book.add(trial, trial.kills)


def _part(scene: Scene, book: Book, part: tuple[str, str], seed: int, draws: int) -> None:
    """Run the trials of one part at one moment."""
    name, moment = part
    for number in range(draws):
        if not book.closed:
            book.add(PARTS[name][0](scene, MOMENTS[moment], f"{seed}, {number}"), 1)


def _result(
    scene: Scene, flags: Any, trials: dict[tuple[str, str], list[Trial]], seconds: float
) -> dict[str, Any]:
    """The result as plain values: rows by moment and signal, rows by part and moment, faults."""
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
    all_trials = [trial for group in trials.values() for trial in group]
    undisturbed = {
        name: {"seconds": one.ending.seconds, "changes": len(one.ending.traced)}
        for name, one in scene.undisturbed.items()
    }
    return {
        "what": "commands of tinynet, killed at random moments, resumed, and compared with "
        "undisturbed ones",
        "machine": facts(choose_compute("cpu", "float32")),
        "seed": flags.seed,
        "seconds": seconds,
        "kills": sum(row["kills"] for row in rows),
        "undisturbed": undisturbed,
        "rows": rows,
        "parts": parts,
        "kills of processes that are no forks": sum(
            bool(ending.struck)
            for trial in all_trials
            if trial.kind in SIGNALS
            for ending in trial.endings
            if ending.real
        ),
        "faults": _by_kind(all_trials),
        "trials": [
            {
                "moment": trial.moment,
                "kind": trial.kind,
                "lines": trial.lines,
                "faults": trial.faults,
                "note": trial.note,
            }
            for trial in all_trials
        ],
    }


def _by_kind(trials: list[Trial]) -> list[dict[str, Any]]:
    """Each kind of fault once, the most frequent first."""
    kinds: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        for kind in dict.fromkeys(map(alike, trial.faults)):
            kinds[kind].append(trial)
    faults = []
    for kind, group in sorted(kinds.items(), key=lambda item: -len(item[1])):
        example = next((trial for trial in group if trial.room.path.exists()), group[0])
        faults.append(
            {
                "fault": kind,
                "trials": len(group),
                "moments": sorted({trial.moment for trial in group}),
                "by": sorted({trial.kind for trial in group}),
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
    """Every kind of fault, with the command lines of one trial that has it."""
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
