"""Run every command of tinynet on hostile files, each in a process of its own, and say what became of it.

    python -m benchmarks.hostile                              1,200 cases, a quarter of an hour on one core
    python -m benchmarks.hostile --cases 3000                 every idea, and damage by chance
    python -m benchmarks.hostile --only zips --cases 100      one kind
    python -m benchmarks.hostile --only zips/bomb-pack        one case

A case is right where the command gives the right result, or refuses in one line with status 2. Each takes 10 s and
1 GB at most, and writes nothing outside its folder. The folders of the cases that are wrong stay in --evidence, each
with its command line, what it printed and why it is wrong. The exit status is 1 if there are any.
"""

import argparse
import shutil
from pathlib import Path

from benchmarks.hostile.corpus import NAMES, corpus
from benchmarks.hostile.report import results, table
from benchmarks.hostile.session import Session
from tinynet import cli
from tinynet.errors import InputError
from tinynet.files import write_json


def main(argv: list[str] | None = None) -> None:
    """The command."""
    options = _parser().parse_args(argv)
    if options.only and options.only.split("/")[0] not in NAMES:
        raise InputError(f"--only {options.only}: no such kind; there are {', '.join(NAMES)}")
    evidence = Path(options.evidence)
    if evidence.exists() and not (evidence / "world").is_dir() and any(evidence.iterdir()):
        raise InputError(f"--evidence {evidence}: holds something else; name an empty folder")
    shutil.rmtree(evidence, ignore_errors=True)
    cases = corpus(options.cases, options.seed, options.only)
    session = Session(evidence, options.seed)
    verdicts = [session.verdict(case) for case in cli.progress(cases, label="hostile files", unit="cases")]
    print(table(verdicts))
    if options.out:
        write_json(options.out, results(verdicts, vars(options)))
    wrong = [verdict for verdict in verdicts if verdict.wrong]
    if wrong:
        cli.say(f"{len(wrong):,} cases are wrong; each has a folder in {evidence}/cases")
        raise SystemExit(1)
    shutil.rmtree(evidence)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser("benchmarks.hostile", __doc__)
    parser.add_argument("--cases", type=cli.positive, default=1200, metavar="N", help="how many (default: 1200)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all damage (default: 0)")
    parser.add_argument("--only", metavar="KIND|CASE", help=f"one kind ({', '.join(NAMES)}), or the title of one case")
    parser.add_argument("--out", metavar="FILE.json", help="where every case and its outcome go")
    parser.add_argument("--evidence", default="hostile-evidence", metavar="DIR",
                        help="where the folders of wrong cases stay (default: hostile-evidence)")
    return parser


if __name__ == "__main__":
    cli.run(main)
