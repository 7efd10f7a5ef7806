"""Write an HTML page for each run, and one that compares them: accuracy, errors, calibration.

    python -m tinynet.report runs/a                       writes runs/a/report.html
    python -m tinynet.report runs/a runs/b --out pages    writes a.html, b.html, comparison.html

Each page is one self-contained file. It shows the saved results of the run, and the commands that
compute the missing ones.
"""

import webbrowser
from pathlib import Path

from tinynet.flags import OF_RUN, Parser, add_common, run_command, user_path


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = Parser("tinynet.report", __doc__)
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="folder of a run")
    parser.add_argument("--open", action="store_true", help="show the page in a browser")
    place = "folder for the pages (default: that of the run); for one run also a file, X.html"
    add_common(parser, "data", "cache", "out", "json", data=OF_RUN, out=place)
    args = parser.parse_args(argv)
    from tinynet.report.collect import write_reports
    from tinynet.report.tables import show_paths

    out = Path(args.out) if args.out else None
    pages = write_reports([Path(run) for run in args.runs], args.data, args.cache, out)
    show_paths(pages, args.format)
    if args.open:
        webbrowser.open(pages[-1].resolve().as_uri())


if __name__ == "__main__":
    run_command(main)
