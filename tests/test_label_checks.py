"""Images whose label a person should check, in a report."""

import base64
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from page_reader import PageReader
from PIL import Image
from support import call

from tinynet.report import __main__ as command
from tinynet.report.collect import gather
from tinynet.report.label_checks import add_label_checks
from tinynet.report.page import RunReport, write_page
from tinynet.score.probabilities import Probabilities

pytestmark = pytest.mark.usefixtures("thin")


def sure_of(labels, planted):
    """(1, N, 6) log-probabilities: 0.9 for the label; of the positions `planted` 0.98 for the next
    class, and less for each position after the first.
    """
    values = np.full((1, len(labels), 6), 0.02, np.float32)
    values[0, np.arange(len(labels)), labels] = 0.9
    for rank, position in enumerate(planted):
        label = labels[position]
        values[0, position] = (0.02 + 0.005 * rank) / 5
        values[0, position, (label + 1) % 6] = 0.98 - 0.005 * rank
    return np.log(values)


def plant(run, target, **planted):
    """Copy a run, with a network that is sure of another class on the `planted` positions alone."""
    shutil.copytree(run, target)
    for path in (target / "base" / "probabilities").glob("*.npz"):
        result = Probabilities.load(path)
        values = sure_of(result.labels, planted[result.about["split"]])
        replace(result, log_probabilities=values).save(path)
    return target


def section(path):
    """The section of a page on labels to check, and its text; empty if there is none."""
    _, *rest = path.read_text().split('<section id="labels">')
    return rest[0].split("</section>")[0] if rest else ""


def test_planted_labels_of_both_splits_are_listed_with_their_images(
    scored_folder, packed, tmp_path
):
    run = plant(Path("runs/one"), tmp_path / "one", val=[7, 20], holdout=[3])
    report = gather(run, *scored_folder.flags[1::2])
    rows = next(
        Probabilities.load(path).rows for path in run.glob("base/probabilities/holdout-*.npz")
    )
    places = [(packed.val, 7), (packed.train, rows[3]), (packed.val, 20)]
    assert rows[3] != 3 and report.label_counts == {"val": (2, 24), "holdout": (1, len(rows))}
    assert {check.file for check in report.label_checks} == {
        part.files[row] for part, row in places
    }
    assert [check.p_suggestion for check in report.label_checks] == [
        pytest.approx(p) for p in (0.98, 0.98, 0.975)
    ]
    names = [name.split(",")[0] for name in packed.names]
    for check in report.label_checks:
        part, row = next(place for place in places if place[0].files[place[1]] == check.file)
        label = part.labels[row]
        assert (check.name, check.suggestion) == (names[label], names[(label + 1) % 6])
        assert check.p_label < 0.01
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(check.image.split(",")[1]))))
        assert np.abs(pixels.astype(int) - part.images[row]).mean() < 10


def test_the_page_has_the_cards_and_the_list(scored_folder, packed, no_figures, tmp_path):
    run = plant(Path("runs/one"), tmp_path / "one", val=[7, 20], holdout=[3])
    call(command, run, *scored_folder.flags)
    page = PageReader(run / "report.html")
    labels = section(run / "report.html")
    assert page.open == [] and ("a", {"href": "#labels"}) in page.tags
    assert page.html.index('id="mistakes"') < page.html.index('id="labels"')
    assert labels.count("<img") == 3 and labels.count("<tr><td>") == 3
    assert "2\nof the 24 images of val and 1\nof the" in labels
    assert (
        "images of the hold-out are candidates" in labels and "the network may be wrong" in labels
    )
    assert "Everything below, except the labels to check, is about" in page.text
    cards, table = labels.split("<details>")
    assert "<summary>The candidates as a table</summary>" in table
    for row in (7, 20):
        assert f"<td>{packed.val.files[row]}</td>" in table
        assert f"<small>{packed.val.files[row]}</small>" in cards
    for text in ("98.0%", "97.5%", "0.4%"):
        assert text in cards and text in table


def test_one_split_is_enough(scored_folder, no_figures, tmp_path):
    for split, other in (("val", "holdout"), ("holdout", "val")):
        run = plant(Path("runs/one"), tmp_path / split, val=[7], holdout=[3])
        for path in run.glob(f"base/probabilities/{other}-*.npz"):
            path.unlink()
        call(command, run, *scored_folder.flags)
        page, labels = PageReader(run / "report.html"), section(run / "report.html")
        assert labels.count("<img") == 1 and "Everything below is about" in page.text
        assert ("the hold-out" in labels) == (split == "holdout")
        assert ("images of val" in labels) == (split == "val")


def test_without_candidates_there_is_no_section(scored_folder, no_figures, tmp_path):
    run = plant(Path("runs/one"), tmp_path / "one", val=[], holdout=[])
    call(command, run, *scored_folder.flags)
    page = PageReader(run / "report.html")
    assert "Confusion" in page.text and "#labels" not in page.html
    assert section(run / "report.html") == "" and "Labels to check" not in page.text


def test_without_the_data_images_are_named_by_row(scored_folder, no_figures, tmp_path):
    run = plant(Path("runs/one"), tmp_path / "one", val=[7], holdout=[3])
    call(command, run, "--data", "gone.zip")
    labels = section(run / "report.html")
    row = next(
        Probabilities.load(path).rows[3] for path in run.glob("base/probabilities/holdout-*.npz")
    )
    assert "<img" not in labels and "<ul" not in labels
    assert "<td>val, row 7</td>" in labels and f"<td>train, row {row}</td>" in labels


def test_the_list_ends_at_a_thousand_and_the_cards_at_24(packed, tmp_path):
    """Of 4,000 images that are the 24 of val, again and again."""
    rows = np.arange(4000) % 24
    labels = packed.val.labels[rows]
    result = Probabilities(
        ("plain",), sure_of(labels, []), rows, labels, packed.wnids, np.zeros(1), {"split": "val"}
    )
    # 1,200 of them, all of labels 0 ... 4, are taken for the next class
    wrong = np.flatnonzero(labels < 5)[:1200]
    result.log_probabilities[0, wrong] = sure_of((labels[wrong] + 1) % 6, [])[0]
    report = RunReport("one", names=list(packed.names))
    add_label_checks(report, {"val": result}, packed)
    assert report.label_counts == {"val": (1200, 4000)} and len(report.label_checks) == 1000
    images = [check.image is not None for check in report.label_checks]
    assert images == [True] * 24 + [False] * 976
    write_page(report, tmp_path / "page.html")
    labels = section(tmp_path / "page.html")
    assert (labels.count("<img"), labels.count("<tr><td>")) == (24, 1000)
    assert "1,200\nof the 4,000 images" in labels and "as a table, the 1,000 most likely<" in labels
