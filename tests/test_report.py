"""The pages: what a run shows, what is missing, and that names in it are harmless."""

import base64
import importlib
import io
import json
import re
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support import SMALL, call, thin_network

from benchmarks import record
from tinynet import evaluate, runs, train
from tinynet.data.verify import same_pixels
from tinynet.evaluation.predict import Explanation
from tinynet.plotting import inline_svg, save_figure
from tinynet.records import NOT_COMPARED
from tinynet.report import __main__ as command
from tinynet.report import collect as reporting
from tinynet.report.collect import gather
from tinynet.report.figures import training_curves, view_votes
from tinynet.report.gallery import _twins
from tinynet.report.page import (
    Card,
    ClassRow,
    HardClass,
    HeatMap,
    Pair,
    RunReport,
    Twin,
    write_page,
)
from tinynet.report.tables import table
from tinynet.runs import StageFolder
from tinynet.score.calibration import fit_temperature
from tinynet.score.probabilities import Probabilities


@pytest.fixture(scope="module", autouse=True)
def thin():
    with thin_network():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, archive_path):
    """A folder with two finished, evaluated runs, runs/one and runs/two."""
    folder = tmp_path_factory.mktemp("place")
    flags = ["--data", archive_path, "--cache", folder / "cache"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, seed in (("one", 0), ("two", 1)):
            assert (
                call(
                    train,
                    "--stage",
                    "base",
                    "--out",
                    f"runs/{name}",
                    "--seed",
                    seed,
                    *SMALL,
                    "--epochs",
                    "2",
                    *flags,
                ).status
                == 0
            )
            assert (
                call(
                    evaluate,
                    "--run",
                    f"runs/{name}",
                    "--tta",
                    "flip",
                    "--device",
                    "cpu",
                    "--precision",
                    "float32",
                    *flags,
                ).status
                == 0
            )
    return SimpleNamespace(folder=folder, flags=flags)


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    return place


class Page(HTMLParser):
    """Tags that are open at the end, identifiers, links out of the page, and the text."""

    VOID = {"meta", "img", "br", "input", "link", "hr"}

    def __init__(self, path):
        super().__init__()
        self.open, self.ids, self.sources, self.text, self.tags = [], [], [], "", []
        self.html = path.read_text()
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and value:
                self.sources.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_page_shows_everything_and_needs_nothing_beside_it(there):
    ran = call(command, "runs/one", *there.flags)
    assert ran.status == 0, ran.err
    assert ran.out.strip() == "runs/one/report.html"
    page = Page(there.folder / "runs/one/report.html")
    assert page.open == []
    for heading in (
        "Scores",
        "Training",
        "Classes",
        "Confusion",
        "Most confused",
        "Most confident errors",
        "Classes with the lowest accuracy",
        "Calibration",
        "Heat maps",
        "Accuracy by object size",
    ):
        assert heading in page.text, heading
    own = {f"#{name}" for name in page.ids}
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert {link for tag, attrs in page.tags if tag == "a" for link in [attrs["href"]]} <= own
    # The SVG's own metadata name their vocabularies; nothing is fetched from there.
    assert not re.findall(r'(?:src|href|url\()\s*=?\s*["\']?https?:', page.html)
    for name in ("curves-base", "reliability", "object-size"):
        for kind, begins in (("png", b"\x89PNG"), ("svg", b"<?xml")):
            assert (there.folder / f"runs/one/report/{name}.{kind}").read_bytes().startswith(begins)


def test_a_page_begins_with_its_answer(there, tmp_path):
    scores = gather(Path("runs/one"), *there.flags[1::2]).scores
    none, flip = (
        next(row for row in scores if (row.split, row.views) == ("val", views))
        for views in ("none", "flip")
    )
    call(command, "runs/one", *there.flags)
    page = Page(there.folder / "runs/one/report.html")
    answer = (
        f"VGG16, stage base of runs/one: val top-1 {none.top1:.1%} ({none.low * 100:.1f} .. "
        f"{none.high * 100:.1f}) with one view, {flip.top1:.1%} with the mirror image."
    )
    assert page.text.index(answer) < page.text.index("Scores")
    shutil.copytree("runs/one", tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "base" / "probabilities")
    answer = gather(tmp_path / "one", *there.flags[1::2]).answer
    assert "hold-out top-1" in answer and "the best of 2." in answer


def test_the_score_table_shows_the_columns_that_matter_and_folds_the_rest(there):
    call(command, "runs/one", *there.flags)
    html = (there.folder / "runs/one/report.html").read_text()
    section, rest = html.split('<section id="scores">')[1].split("</section>", 1)
    titles, folded = (
        re.findall(r'<th scope="col">(.*?)</th>', text)
        for text in (section, rest.split("</table>")[0])
    )
    assert titles == ["split", "views", "merge", "size", "n", "top-1", "95 % interval", "gain", "p"]
    assert set(titles) < set(folded) and "calibration error" in folded
    assert rest.lstrip().startswith("<details><summary>The scores with all columns")


def test_every_image_and_canvas_has_words_and_every_input_a_label(there):
    call(command, "runs/one", *there.flags)
    page = Page(there.folder / "runs/one/report.html")
    for tag, attrs in page.tags:
        if tag == "img":
            assert attrs["alt"]
        if tag == "canvas":
            assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"
        if tag == "svg":
            assert attrs.get("aria-label")
    assert page.html.count("<label>") == sum(tag == "input" for tag, _ in page.tags)
    assert {"img", "canvas", "svg", "input"} <= {tag for tag, _ in page.tags}


def test_the_matrix_in_the_page_is_that_of_the_stored_probabilities(there):
    call(command, "runs/one", *there.flags)
    html = (there.folder / "runs/one/report.html").read_text()
    stored = json.loads(re.search(r'id="matrix-data">(.*?)</script>', html, re.S).group(1))
    shown = gather(there.folder / "runs/one", str(there.flags[1]), str(there.flags[3]))
    assert shown.split == "val" and sum(n for _, _, n in stored["counts"]) == 24
    assert sorted(stored["order"]) == list(range(6))
    right = sum(n for i, j, n in stored["counts"] if i == j)
    row = next(row for row in shown.scores if (row.split, row.views) == ("val", "none"))
    assert right == round(row.top1 * 24)
    assert sum(row.n for row in shown.classes) == 24
    called = shown.plain.log_probabilities[0].argmax(1)
    assert Counter(zip(shown.plain.labels.tolist(), called.tolist(), strict=True)) == {
        (i, j): n for i, j, n in stored["counts"]
    }


def test_a_card_has_the_image_and_the_names_that_belong_together(there, packed, tmp_path):
    """On the hold-out, whose pictures have other rows than places."""
    shutil.copytree("runs/one", tmp_path / "one")
    for kept in (tmp_path / "one" / "base" / "probabilities").glob("val-*"):
        kept.unlink()
    shown = gather(tmp_path / "one", *there.flags[1::2])
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


def test_the_temperature_is_that_of_the_holdout(there):
    shown = gather(Path("runs/one"), *there.flags[1::2])
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


def test_twins_under_two_names_are_shown_with_both(there, packed):
    """A picture of val stands in train under another name: said once, with what the network calls
    it.
    """
    shown = gather(Path("runs/one"), *there.flags[1::2])
    row = next(row for row in range(72) if packed.train.labels[row] != packed.val.labels[3])
    images = {name: np.array(packed.part(name).images) for name in ("train", "val")}
    images["val"][3] = images["train"][row]
    parts = {name: replace(packed.part(name), images=images[name]) for name in images}
    archive = SimpleNamespace(part=parts.__getitem__)
    found = list(_twins(archive, shown.split, shown.plain, shown.names))
    names = [name.split(",")[0] for name in packed.names]
    (one,) = (card for card in found if card.file == packed.val.files[3])
    assert (one.name, one.train_name) == (
        names[packed.val.labels[3]],
        names[packed.train.labels[row]],
    )
    assert one.prediction == names[shown.plain.log_probabilities[0, 3].argmax()]


def test_a_page_says_whose_images_it_shows(there, tmp_path):
    call(command, "runs/one", *there.flags)
    assert (
        "24 images of\nofficial val, in float32" in Page(there.folder / "runs/one/report.html").text
    )
    shutil.copytree("runs/one", tmp_path / "one")
    for kept in (tmp_path / "one" / "base" / "probabilities").glob("val-*"):
        kept.unlink()
    call(command, tmp_path / "one", *there.flags)
    page = Page(tmp_path / "one" / "report.html")
    assert (
        "images of\nthe hold-out, in float32" in page.text and "confidence on holdout" in page.html
    )


def test_what_is_kept_of_another_precision_or_network_is_not_mixed_in(there, tmp_path):
    assert any(
        "mirror" in row.views for row in gather(Path("runs/one"), *there.flags[1::2]).calibration
    )
    for key in ("precision", "weights"):
        shutil.copytree("runs/one", tmp_path / key)
        for path in (tmp_path / key / "base" / "probabilities").glob("*.npz"):
            kept = Probabilities.load(path)
            if kept.views == ("mirror",):
                replace(kept, about={**kept.about, key: "another"}).save(path)
        rows = gather(tmp_path / key, *there.flags[1::2]).calibration
        assert rows and not any("mirror" in row.views for row in rows)


def test_a_class_called_script_is_harmless(tmp_path):
    evil = '<script>alert("x")</script>'
    card = Card("data:,", f"val/{evil}.JPEG", evil, evil, 0.5, False)
    shown = RunReport(
        evil,
        answer=evil,
        facts=[(evil, evil)],
        names=[evil, "b", "c"],
        order=[0, 1, 2],
        counts=[(0, 1, 2)],
        classes=[ClassRow(0, evil, evil, 4, 0.1, 0.0, 0.2, evil, 0.5)],
        pairs=[Pair((0, 1), (evil, evil), 1, 2, [card])],
        missing=[evil],
        mistakes=[card],
        split="val",
        hardest=[HardClass(evil, 0.1, [card])],
        heats=[HeatMap(card, "data:,", 64, None, None)],
        twins=[Twin("data:,", evil, evil, evil, evil)],
    )
    write_page(shown, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in html and "alert(" in html
    Page(tmp_path / "page.html")


def test_figures_take_the_ink_of_the_page_and_say_what_they_show():
    svg = inline_svg(training_curves([], "a & b"), 'told "so" & <so>')
    assert svg.startswith("<svg role=") and "#000000" not in svg and "currentColor" in svg
    assert 'aria-label="told &quot;so&quot; &amp; &lt;so&gt;"' in svg


def test_a_figure_of_views_is_drawn_whatever_its_image_is_called():
    figure = view_votes(
        Explanation(["plain"], [np.zeros((8, 8, 3))], [("$^$", 0.5)], "$^$", "a$^$.jpg: $^$, 50%")
    )
    assert "a$^$.jpg" in inline_svg(figure, "votes")


@pytest.mark.parametrize(
    "title", ["$x$", "$\\frac{$", "caf\udce9", "\u7d42\u308f\u308a", "a\nb\x07"]
)
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_figure_is_saved_whatever_its_run_is_called(tmp_path, title, ending):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = training_curves([], title)
        save_figure(figure, tmp_path / f"a.{ending}", title)
    assert not any(text.get_parse_math() for text in figure.texts)
    assert (tmp_path / f"a.{ending}").stat().st_size > 1000


def test_a_gain_stands_beside_its_interval():
    row = {"top1": 0.5, "gain": 0.01, "gain_low": -0.005, "gain_high": 0.025, "p": 0.2}
    text = table([row, {"top1": 0.4, **NOT_COMPARED.to_json()}])
    assert "+1.00%" in text and "-0.50% .. +2.50%" in text


def test_the_ids_of_a_page_are_its_own(there):
    call(command, "runs/one", *there.flags)
    page = Page(there.folder / "runs/one/report.html")
    assert len(page.ids) == len(set(page.ids))


def test_several_runs_are_compared_in_pairs(there):
    ran = call(command, "runs/one", "runs/two", "--out", "pages", *there.flags)
    assert ran.out.split() == ["pages/one.html", "pages/two.html", "pages/comparison.html"]
    page = Page(there.folder / "pages/comparison.html")
    assert (
        page.open == []
        and "2 runs compared" in page.text
        and "Classes with the largest differences" in page.text
    )
    assert [link for link in page.sources if link.endswith(".html")] == ["one.html", "two.html"]
    assert "On val. p compares" in page.text
    ran = call(command, "runs/one", "runs/two", "--json", *there.flags)
    assert [row["path"] for row in json.loads(ran.out)][-1] == "runs/one/comparison.html"
    links = [
        link
        for link in Page(there.folder / "runs/one/comparison.html").sources
        if link.endswith(".html")
    ]
    assert links == ["report.html", "../two/report.html"]


def test_runs_that_saw_other_images_are_not_compared_class_by_class(there, tmp_path):
    long = "a-run-with-a-name-of-more-than-sixty-characters-that-ends-in-"
    for name in ("one", "two"):
        shutil.copytree(f"runs/{name}", tmp_path / f"{long}{name}")
    for kept in (tmp_path / f"{long}two" / "base" / "probabilities").glob("val-*"):
        kept.unlink()
    call(command, *sorted(tmp_path.iterdir()), "--out", tmp_path / "pages", *there.flags)
    page = Page(tmp_path / "pages" / "comparison.html")
    assert "Not compared in pairs" in page.text and "Classes with the largest" not in page.text
    assert len(page.ids) == len(set(page.ids))


def test_the_p_of_a_class_is_that_of_all_that_it_was_picked_from(there):
    shown = [gather(Path(f"runs/{name}"), *there.flags[1::2]) for name in ("one", "two")]
    labels = shown[0].plain.labels
    # one run is right on class 5 alone, the other on class 0
    for one, best in zip(shown, (5, 0), strict=True):
        said = np.full(one.plain.log_probabilities.shape, -9.0, np.float32)
        said[..., best] = -1.0
        one.plain = replace(one.plain, log_probabilities=said)
    for row in reporting._class_differences(shown, reporting._compare(shown)):
        apart = row.name in (shown[0].names[0], shown[0].names[5])
        assert row.difference == (1.0 if apart else 0.0)
        assert row.p == (min(1.0, 6 * 2 * 0.5 ** (labels == 0).sum()) if apart else 1.0)


def test_without_the_data_everything_but_the_images_is_there(there, tmp_path):
    shutil.copytree("runs/one", tmp_path / "one")
    recipe = StageFolder(tmp_path / "one", "base").recipe
    recipe.write_text(
        json.dumps(json.loads(recipe.read_text()) | {"data": "gone.zip", "cache": None})
    )
    ran = call(command, tmp_path / "one")
    page = Page(tmp_path / "one" / "report.html")
    assert ran.status == 0 and "No images: gone.zip" in page.text and "Confusion" in page.text
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "Most confident errors" not in page.text


def test_a_run_that_was_not_evaluated_says_how(there, tmp_path):
    shutil.copytree("runs/one", tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "base" / "probabilities")
    call(command, tmp_path / "one", *there.flags)
    page = Page(tmp_path / "one" / "report.html")
    assert f"python -m tinynet.evaluate --run {tmp_path / 'one'} --tta flip" in page.text
    assert "Training" in page.text and "Classes" not in page.text


def test_half_a_run_shows_what_is_there(there, tmp_path):
    shutil.copytree("runs/one", tmp_path / "one")
    base = StageFolder(tmp_path / "one", "base")
    base.scores.unlink()
    base.log.write_text(
        "".join(
            line + "\n"
            for line in base.log.read_text().splitlines()
            if '"epoch"' not in line.split(",")[0]
        )
    )
    ran = call(command, tmp_path / "one", *there.flags)
    page = Page(tmp_path / "one" / "report.html")
    assert (
        ran.status == 0
        and f"--resume {tmp_path / 'one'}" in page.text
        and "No epoch is finished" in page.text
    )


def test_what_is_no_run_is_refused_in_one_line(there, tmp_path):
    for flags, word in (((tmp_path,), "not a run"), (("runs/one", "runs/one"), "the same name")):
        ran = call(command, *flags, *there.flags)
        assert ran.status == 2 and word in ran.err and len(ran.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_twins_are_found_pixel_by_pixel(packed):
    images = {name: np.array(packed.part(name).images) for name in ("train", "val")}
    images["val"][3] = images["train"][5]
    twins = SimpleNamespace(part=lambda name: SimpleNamespace(images=images[name]))
    before = same_pixels(packed)
    assert set(same_pixels(twins)) - set(before) == {(("train", 5), ("val", 3))}
    assert same_pixels(packed) == before


def test_what_is_recorded_is_of_the_own_size_and_precision(there):
    before = record.record(["runs/one", "runs/two"], "two")["rows"]
    scores = StageFolder(Path("runs/one"), "base").scores
    kept = scores.read_text()
    row = next(
        row for row in runs.read_rows(scores) if (row["split"], row["views"]) == ("val", "none")
    )
    runs.put_scores(
        scores,
        [
            row | change | dict(top1=0.99)
            for change in (
                dict(size=48),
                dict(merge="gmean"),
                dict(precision="int8"),
                dict(temperature=2.0),
            )
        ],
    )
    assert (
        scores.read_text() != kept
        and record.record(["runs/one", "runs/two"], "two")["rows"] == before
    )
    scores.write_text(kept)
    assert [(row["run"], row["split"], row["views"]) for row in before] == [
        (run, split, views) for run in ("one", "two") for split, views in record.SCORES
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in record.HERE.glob("*.py")))
def test_the_benchmarks_fit_the_package(name):
    """What they import of it is there; they are run by hand."""
    importlib.import_module(f"benchmarks.{name}")
