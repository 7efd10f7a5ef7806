"""What a page is filled with."""

import base64
import io
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinynet.report import collect as reporting
from tinynet.report.collect import gather
from tinynet.score.calibration import fit_temperature
from tinynet.score.probabilities import Probabilities

pytestmark = pytest.mark.usefixtures("thin")


def test_the_matrix_in_the_page_is_that_of_the_stored_probabilities(scored_folder, page):
    stored = json.loads(re.search(r'id="matrix-data">(.*?)</script>', page.html, re.S).group(1))
    shown = gather(
        scored_folder.folder / "runs/one", str(scored_folder.flags[1]), str(scored_folder.flags[3])
    )
    assert shown.split == "val" and sum(n for _, _, n in stored["counts"]) == 24
    assert sorted(stored["order"]) == list(range(6))
    right = sum(n for i, j, n in stored["counts"] if i == j)
    row = next(row for row in shown.scores if (row.split, row.views) == ("val", "none"))
    assert right == round(row.top1 * 24)
    assert sum(row.accuracy.n for row in shown.classes) == 24
    called = shown.plain.log_probabilities[0].argmax(1)
    assert Counter(zip(shown.plain.labels.tolist(), called.tolist(), strict=True)) == {
        (i, j): n for i, j, n in stored["counts"]
    }


def test_a_card_has_the_image_and_the_names_that_belong_together(scored_folder, packed, tmp_path):
    """On the hold-out, whose images have other rows than places."""
    shutil.copytree("runs/one", tmp_path / "one")
    for kept in (tmp_path / "one" / "base" / "probabilities").glob("val-*"):
        kept.unlink()
    shown = gather(tmp_path / "one", *scored_folder.flags[1::2])
    rows, places = (
        {value: at for at, value in enumerate(values)}
        for values in (packed.train.files, shown.plain.rows.tolist())
    )
    assert shown.split == "holdout" and shown.mistakes and shown.heats
    for card in (
        *shown.mistakes,
        *(heat.card for heat in shown.heats),
        *(card for row in shown.hardest for card in row.cards),
    ):
        row = rows[card.file]
        said = shown.plain.log_probabilities[0, places[row]]
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(card.image.split(",")[1]))))
        assert np.abs(drawn.astype(int) - packed.train.images[row]).mean() < 10
        assert card.name == packed.names[packed.train.labels[row]].split(",")[0]
        assert card.prediction == packed.names[said.argmax()].split(",")[0]
        assert card.right == (card.name == card.prediction) and card.confidence == pytest.approx(
            np.exp(said.max())
        )
    assert not any(card.right for card in shown.mistakes)


def test_the_temperature_is_that_of_the_holdout(scored_folder):
    shown = gather(Path("runs/one"), *scored_folder.flags[1::2])
    kept = [Probabilities.load(path) for path in Path("runs/one/base/probabilities").glob("*.npz")]
    fitted = {
        one.about[
            "split"
        ]: f"plain, T = {fit_temperature(one.log_probabilities[0], one.labels):.2f}"
        for one in kept
        if one.views == ("plain",)
    }
    assert fitted["holdout"] != fitted["val"]
    assert [row.views for row in shown.calibration][:2] == ["plain", fitted["holdout"]]


def test_probabilities_of_another_precision_or_network_are_not_mixed_in(scored_folder, tmp_path):
    assert any(
        "mirror" in row.views
        for row in gather(Path("runs/one"), *scored_folder.flags[1::2]).calibration
    )
    for key in ("precision", "weights"):
        shutil.copytree("runs/one", tmp_path / key)
        for path in (tmp_path / key / "base" / "probabilities").glob("*.npz"):
            kept = Probabilities.load(path)
            if kept.views == ("mirror",):
                replace(kept, about={**kept.about, key: "another"}).save(path)
        rows = gather(tmp_path / key, *scored_folder.flags[1::2]).calibration
        assert rows and not any("mirror" in row.views for row in rows)


def test_the_p_of_a_class_is_that_of_all_that_it_was_picked_from(scored_folder):
    shown = [gather(Path(f"runs/{name}"), *scored_folder.flags[1::2]) for name in ("one", "two")]
    labels = shown[0].plain.labels
    # one run is right on class 5 alone, the other on class 0
    for one, best in zip(shown, (5, 0), strict=True):
        said = np.full(one.plain.log_probabilities.shape, -9.0, np.float32)
        said[..., best] = -1.0
        one.plain = replace(one.plain, log_probabilities=said)
    for row in reporting.class_differences(shown, reporting.compare_runs(shown)):
        apart = row.name in (shown[0].names[0], shown[0].names[5])
        assert row.difference == (1.0 if apart else 0.0)
        assert row.p == (min(1.0, 6 * 2 * 0.5 ** (labels == 0).sum()) if apart else 1.0)
