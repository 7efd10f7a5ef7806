"""Feed broken and hostile files to every command of tinynet, and check the outcome.

    python -m benchmarks.hostile                             1,200 cases, five minutes on one core
    python -m benchmarks.hostile --cases 3000                every designed case, and random damage
    python -m benchmarks.hostile --only zips --cases 100     one kind
    python -m benchmarks.hostile --only zips/bomb-pack       one case

Each case runs in a process of its own. It passes if the command gives the right result, or refuses
in one line with status 2, within 10 s and 1 GB, and writes nothing outside its folder. The folders
of failed cases stay in --evidence, each with its command line, its output and the reason. The exit
status is 1 if any case fails.
"""

import argparse
import shutil
import signal
from pathlib import Path

from benchmarks.hostile.corpus import NAMES, corpus
from benchmarks.hostile.report import results, table
from benchmarks.hostile.session import Session
from tinynet import console
from tinynet.errors import InputError
from tinynet.files import write_json
from tinynet.flags import Parser, positive_int, run_command

_MOST = 20  # failed cases that are listed


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    # a background job of a script ignores SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = parser().parse_args(argv)
    if options.only and options.only.split("/")[0] not in NAMES:
        raise InputError(f"--only {options.only}: no such kind; choose from {', '.join(NAMES)}")
    evidence = Path(options.evidence)
    if evidence.exists() and not (evidence / "world").is_dir() and any(evidence.iterdir()):
        raise InputError(f"--evidence {evidence}: contains other files; name an empty folder")
    shutil.rmtree(evidence, ignore_errors=True)
    cases = corpus(options.cases, options.seed, options.only)
    session = Session(evidence, options.seed)
    verdicts = [
        session.verdict(case)
        for case in console.progress(cases, label="hostile files", unit="cases")
    ]
    print(table(verdicts))
    if options.out:
        write_json(options.out, results(verdicts, vars(options)))
    wrong = [verdict for verdict in verdicts if verdict.wrong]
    if wrong:
        for verdict in wrong[:_MOST]:
            console.log(f"{verdict.case.title}: {verdict.outcome}: {verdict.reason}")
        console.log(f"{len(wrong):,} cases failed; each has a folder in {evidence}/cases")
        raise SystemExit(1)
    shutil.rmtree(evidence)


def parser() -> argparse.ArgumentParser:
    parser = Parser("benchmarks.hostile", __doc__)
    parser.add_argument(
        "--cases",
        type=positive_int,
        default=1200,
        metavar="N",
        help="number of cases (default: 1200)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the random damage (default: 0)"
    )
    parser.add_argument(
        "--only",
        metavar="KIND|CASE",
        help=f"one kind ({', '.join(NAMES)}), or the title of one case",
    )
    parser.add_argument("--out", metavar="FILE.json", help="write every case and its outcome")
    parser.add_argument(
        "--evidence",
        default="hostile-evidence",
        metavar="DIR",
        help="folder for the failed cases (default: hostile-evidence)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
