"""Feed broken and hostile files to every command of tinynet, each in a process of its own, and
check the outcome.

    python -m benchmarks.hostile    1,200 cases, about five minutes on one core
    python -m benchmarks.hostile --cases 3000    every designed case, and random damage
    python -m benchmarks.hostile --only zips --cases 100    one kind
    python -m benchmarks.hostile --only zips/bomb-pack    one case

A case passes if the command gives the right result, or refuses in one line with status 2, within 10
s and 1 GB, and writes nothing outside its folder. The folders of failed cases stay in --evidence,
each with its command line, its output and the reason. The exit status is 1 if any case fails.
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

_TOLD = 20  # wrong cases that are told one by one


def main(argv: list[str] | None = None) -> None:
    """The command."""
    # a job in the background of a script ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = _parser().parse_args(argv)
    if options.only and options.only.split("/")[0] not in NAMES:
        raise InputError(f"--only {options.only}: no such kind; there are {', '.join(NAMES)}")
    evidence = Path(options.evidence)
    if evidence.exists() and not (evidence / "world").is_dir() and any(evidence.iterdir()):
        raise InputError(f"--evidence {evidence}: holds something else; name an empty folder")
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
        for verdict in wrong[:_TOLD]:
            console.log(f"{verdict.case.title}: {verdict.outcome}: {verdict.reason}")
        console.log(f"{len(wrong):,} cases are wrong; each has a folder in {evidence}/cases")
        raise SystemExit(1)
    shutil.rmtree(evidence)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("benchmarks.hostile", __doc__)
    parser.add_argument(
        "--cases", type=positive_int, default=1200, metavar="N", help="how many (default: 1200)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all damage (default: 0)"
    )
    parser.add_argument(
        "--only",
        metavar="KIND|CASE",
        help=f"one kind ({', '.join(NAMES)}), or the title of one case",
    )
    parser.add_argument("--out", metavar="FILE.json", help="where every case and its outcome go")
    parser.add_argument(
        "--evidence",
        default="hostile-evidence",
        metavar="DIR",
        help="where the folders of wrong cases stay (default: hostile-evidence)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
