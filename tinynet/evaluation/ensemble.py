"""Score stored probabilities, each alone and all together, without another forward pass."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tinynet.errors import InputError
from tinynet.evaluation.evaluate import GainsOverFirst, score_row
from tinynet.records import MISSING, ScoreRow
from tinynet.score import merges as merging
from tinynet.score.probabilities import Probabilities, same_images


def compare(
    names: Sequence[str],
    results: Sequence[Probabilities],
    merges: Sequence[str],
    classes: Sequence[str] = (),
) -> list[ScoreRow]:
    """Score several results on the same images: a row for each, and one for all together.

    `names`: of the results, for messages. `classes`: as for `score_row`. `gain` and `p` compare
    each row with the first one (McNemar's exact test). Raises `InputError` unless all results have
    labels and are of the same images in the same order.
    """
    functions = {name: merging.get(name) for name in merges}
    for file, probabilities in zip(names, results, strict=True):
        if probabilities.labels is None:
            raise InputError(
                f"{file}: has no labels, so it cannot be scored; use probabilities of val or the "
                "hold-out"
            )
        same_images(results[0], probabilities, (names[0], file))
    rows: list[ScoreRow] = []
    gains = GainsOverFirst()
    for name, merge in functions.items():
        merged = [probabilities.merged(merge) for probabilities in results]
        sources = _sources(names, results)
        scored = list(results)
        if len(results) > 1:
            ensemble = _ensemble(results, merged)
            scored.append(ensemble)
            merged.append(ensemble.merged(merging.mean))
            sources.append(ScoreRow(run=f"all {len(names)} together"))
        for source, probabilities, values in zip(sources, scored, merged, strict=True):
            right = values.argmax(1) == probabilities.labels
            gain = gains.gain(right)
            row = replace(source, split=results[0].about.get("split"), merge=name)
            rows.append(score_row(row, probabilities, values, gain, classes))
    return rows


def _sources(names: Sequence[str], results: Sequence[Probabilities]) -> list[ScoreRow]:
    """What each result is of; results that nothing else tells apart go by their file."""
    rows = [
        ScoreRow(
            run=about.get("run", name),
            stage=about.get("stage"),
            trained=about.get("trained", MISSING),
            views=about.get("tta"),
            size=about.get("size", MISSING),
            precision=about.get("precision"),
        )
        for name, about in zip(names, (result.about for result in results), strict=True)
    ]
    return [
        replace(row, run=name) if rows.count(row) > 1 else row
        for name, row in zip(names, rows, strict=True)
    ]


def _ensemble(results: Sequence[Probabilities], merged: Sequence[np.ndarray]) -> Probabilities:
    """Several results as one, each of them a view."""
    first = results[0]
    return Probabilities(
        tuple(view for probabilities in results for view in probabilities.views),
        np.stack(merged),
        first.rows,
        first.labels,
        first.wnids,
        np.concatenate([probabilities.seconds for probabilities in results]),
    )
