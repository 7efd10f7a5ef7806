"""The images whose labels a person should check: a list, and cards of the most likely ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tinynet.data.packed import Packed
from tinynet.report.gallery import data_uri, part_name
from tinynet.report.page import LabelCheck, RunReport
from tinynet.score.label_issues import LabelIssue, label_issues
from tinynet.score.probabilities import Probabilities

_CARDS, _LISTED = 24, 1000


def add_label_checks(
    report: RunReport, plain: Mapping[str, Probabilities], packed: Packed | None
) -> None:
    """Add the candidates for wrong labels to a report.

    `plain`: by split, the probabilities of its plain images, all from one network. The splits share
    the thresholds of the classes, which are means and need many images. Without `packed` the images
    are named by row.
    """
    places = [(split, int(row)) for split, result in plain.items() for row in result.rows]
    issues = label_issues(
        np.concatenate([result.log_probabilities[0] for result in plain.values()]),
        np.concatenate([result.required_labels for result in plain.values()]),
    )
    counts = Counter(places[issue.position][0] for issue in issues)
    report.label_counts = {
        split: (counts[split], len(result.rows)) for split, result in plain.items()
    }
    report.label_checks = [
        _named(issue, report.names, places[issue.position], packed) for issue in issues[:_LISTED]
    ]
    if packed is not None:
        for index, issue in enumerate(issues[:_CARDS]):
            split, row = places[issue.position]
            image = data_uri(packed.part(part_name(split)).images[row])
            report.label_checks[index] = replace(report.label_checks[index], image=image)


def _named(
    issue: LabelIssue, names: Sequence[str], place: tuple[str, int], packed: Packed | None
) -> LabelCheck:
    """The issue with names; `names`: of the classes. `place`: the split and row of the image."""
    part, row = part_name(place[0]), place[1]
    return LabelCheck(
        file=f"{part}, row {row}" if packed is None else packed.part(part).files[row],
        name=names[issue.label],
        suggestion=names[issue.suggestion],
        p_label=issue.p_label,
        p_suggestion=issue.p_suggestion,
    )
