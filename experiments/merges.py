"""Merge the probabilities of two runs with several weights.

    python experiments/merges.py RUN OTHER holdout experiments/merges.json
    python experiments/merges.py RUN OTHER val experiments/merges.json

A row is (1 - weight) * RUN + weight * OTHER, each averaged over an image and its horizontal flip.
"gain" and "p" compare it with RUN alone (McNemar's paired test). The rows are added to the file.
The weight is chosen on the hold-out; val is only reported.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

import tinynet
from tinynet.files import read_json, write_json
from tinynet.score.compare import mcnemar
from tinynet.score.merges import mean

WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5)


def merges(run: str, other: str, split: str) -> list[dict[str, Any]]:
    """A row for each weight."""
    first, second = (tinynet.Run(name).probabilities(split, tta="flip") for name in (run, other))
    labels = first.required_labels
    own, others = np.exp(first.merged(mean)), np.exp(second.merged(mean))
    alone = own.argmax(1) == labels
    rows = []
    for weight in WEIGHTS:
        right = ((1 - weight) * own + weight * others).argmax(1) == labels
        gain = mcnemar(right, alone)
        rows.append(
            {
                "run": Path(run).name,
                "other": Path(other).name,
                "split": split,
                "weight": weight,
                "run alone": float(alone.mean()),
                "other alone": float((others.argmax(1) == labels).mean()),
                "top1": float(right.mean()),
                "gain": gain.gain,
                "p": gain.p,
            }
        )
    return rows


def main(run: str, other: str, split: str, out: str) -> None:
    """Add the rows to the file `out` and print them."""
    before = read_json(Path(out))["rows"] if Path(out).is_file() else []
    rows = merges(run, other, split)
    what = "merges of two runs, each with horizontal flips"
    write_json(Path(out), {"what": what, "rows": [*before, *rows]})
    for row in rows:
        print(f"{row['weight']:.1f}  {row['top1']:.2%}  {row['gain']:+.2%}  p={row['p']:.2g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
