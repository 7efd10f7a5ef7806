"""One HTML file for each run, and one that compares them: what was learnt, what goes wrong, and
why.

    python -m tinynet.report runs/a    runs/a/report.html
    python -m tinynet.report runs/a runs/b --out pages    a.html, b.html, comparison.html

A page needs no network and no other file. It shows what the run has kept; what is missing is named
there, with the command that makes it.
"""

import webbrowser
from pathlib import Path

from tinynet.flags import Parser, add_common, run_command, user_path


def main(argv: list[str] | None = None) -> None:
    """The command."""
    made = Parser("tinynet.report", __doc__)
    made.add_argument(
        "runs", nargs="+", type=user_path, metavar="RUN", help="folders that tinynet.train wrote"
    )
    made.add_argument("--open", action="store_true", help="show the page in a browser")
    add_common(made, "data", "cache", "out", "json")
    asked = made.parse_args(argv)
    from tinynet.report.collect import report
    from tinynet.report.tables import show_paths

    pages = report(
        [Path(run) for run in asked.runs], asked.data, asked.cache, asked.out and Path(asked.out)
    )
    show_paths(pages, asked.format)
    if asked.open:
        webbrowser.open(pages[-1].resolve().as_uri())


if __name__ == "__main__":
    run_command(main)
