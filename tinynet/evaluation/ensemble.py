"""Stored probabilities are merged, put together and compared: seconds of arithmetic, no second
pass.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinynet.errors import InputError
from tinynet.evaluation.evaluate import NOT_PAIRED, paired, score_row
from tinynet.score import merges as merging
from tinynet.score.probabilities import Probabilities, same_images


def score_files(files: Sequence[str], merges: Sequence[str]) -> list[dict[str, Any]]:
    """Rows for each file and, where there are several, for all of them together (the mean of what
    each says).

    `gain` and `p` compare with the first row, by the exact paired test of McNemar. Raises
    `InputError` where the files are not of the same pictures in the same order, or have no labels.
    """
    chosen = {name: merging.get(name) for name in merges}
    read = [Probabilities.load(Path(file)) for file in files]
    for file, found in zip(files, read, strict=True):
        if found.labels is None:
            raise InputError(f"{file}: is of pictures without labels, which cannot be scored")
        same_images(read[0], found, (files[0], file))
    rows, first = [], None
    for name, merge in chosen.items():
        values = [found.merged(merge) for found in read]
        sources = [
            {
                "run": found.about.get("run", file),
                "stage": found.about.get("stage"),
                "views": found.about.get("tta"),
            }
            for file, found in zip(files, read, strict=True)
        ]
        if len(read) > 1:
            together = Probabilities(
                tuple(view for found in read for view in found.views),
                np.stack(values),
                read[0].rows,
                read[0].labels,
                read[0].wnids,
                np.concatenate([found.seconds for found in read]),
            )
            read, values = [*read, together], [*values, together.merged(merging.mean)]
            sources.append({"run": f"all {len(files)} together"})
        for source, found, merged in zip(sources, read, values, strict=True):
            right = merged.argmax(1) == found.labels
            beside = NOT_PAIRED if first is None else paired(right, first)
            first = right if first is None else first
            rows.append(
                {
                    **source,
                    "split": read[0].about.get("split"),
                    "merge": name,
                    **score_row(found, merged),
                    **beside,
                }
            )
        read = read[: len(files)]
    return rows
