"""Merge the probabilities of two runs, or of two stages of a run, with several weights.

    python experiments/merges.py RUN OTHER holdout experiments/merges.json
    python experiments/merges.py RUN OTHER val experiments/merges.json
    python experiments/merges.py RUN RUN holdout experiments/merges.json \\
        --views flip+scales:112,144 --other-stage base --other-size 128

A row is (1 - weight) * RUN + weight * OTHER. RUN is averaged over `--views` (default: flip), OTHER
over an image and its horizontal flip. "gain" and "p" compare the merge with RUN alone (McNemar's
paired test). The rows are added to the file. The weight is chosen on the hold-out; val is only
reported.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import tinynet
from tinynet.files import read_json, write_json
from tinynet.score.compare import mcnemar
from tinynet.score.merges import mean
from tinynet.score.probabilities import same_images

WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5)


def merges(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each weight."""
    run, other = tinynet.Run(args.run), tinynet.Run(args.other, args.other_stage)
    first = run.probabilities(args.split, tta=args.views)
    second = other.probabilities(args.split, tta="flip", size=args.other_size)
    same_images(first, second, (args.run, args.other))
    labels = first.required_labels
    own, others = np.exp(first.merged(mean)), np.exp(second.merged(mean))
    alone = own.argmax(1) == labels
    rows = []
    for weight in WEIGHTS:
        right = ((1 - weight) * own + weight * others).argmax(1) == labels
        gain = mcnemar(right, alone)
        rows.append(
            {
                "run": Path(args.run).name,
                "stage": run.folder.stage,
                "size": first.about["size"],
                "views": args.views,
                "other": Path(args.other).name,
                "other stage": other.folder.stage,
                "other size": second.about["size"],
                "split": args.split,
                "weight": weight,
                "run alone": float(alone.mean()),
                "other alone": float((others.argmax(1) == labels).mean()),
                "top1": float(right.mean()),
                "gain": gain.gain,
                "p": gain.p,
            }
        )
    return rows


def main() -> None:
    """Add the rows to the file `out` and print them."""
    parser = argparse.ArgumentParser(description="Merge the probabilities of two runs.")
    parser.add_argument("run")
    parser.add_argument("other")
    parser.add_argument("split", choices=("holdout", "val"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--views", default="flip", help="of RUN")
    parser.add_argument("--other-stage", help="default: the last finished one")
    parser.add_argument("--other-size", type=int, help="in pixels (default: as trained)")
    args = parser.parse_args()
    before = read_json(args.out)["rows"] if args.out.is_file() else []
    rows = merges(args)
    what = "merges of two runs or stages; `views` are those of the first, flip for the other"
    write_json(args.out, {"what": what, "rows": [*before, *rows]})
    for row in rows:
        print(f"{row['weight']:.1f}  {row['top1']:.2%}  {row['gain']:+.2%}  p={row['p']:.2g}")


if __name__ == "__main__":
    main()
