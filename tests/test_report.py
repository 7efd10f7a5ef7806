"""The command report: what a page shows, and what is missing."""

import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from page_reader import PageReader
from support import call

from tinynet.report import __main__ as command
from tinynet.report import collect
from tinynet.report.collect import gather
from tinynet.runs import StageFolder

pytestmark = pytest.mark.usefixtures("thin")


def test_a_page_shows_everything_and_needs_nothing_beside_it(scored_folder, page):
    assert page.path == scored_folder.folder / "runs/one/report.html" and page.open == []
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
            assert (
                (scored_folder.folder / f"runs/one/report/{name}.{kind}")
                .read_bytes()
                .startswith(begins)
            )


def test_a_page_begins_with_its_answer(scored_folder, page, tmp_path):
    scores = gather(Path("runs/one"), *scored_folder.flags[1::2]).scores
    none, flip = (
        next(row for row in scores if (row.split, row.views) == ("val", views))
        for views in ("none", "flip")
    )
    answer = (
        f"vgg16, stage base of runs/one: val top-1 {none.top1:.1%} ({none.low * 100:.1f} .. "
        f"{none.high * 100:.1f}) with one view, {flip.top1:.1%} with horizontal flip."
    )
    assert page.text.index(answer) < page.text.index("Scores")
    shutil.copytree("runs/one", tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "base" / "probabilities")
    answer = gather(tmp_path / "one", *scored_folder.flags[1::2]).answer
    assert "hold-out top-1" in answer and "the best of 2." in answer


def test_the_score_table_shows_the_columns_that_matter_and_folds_the_rest(page):
    section, rest = page.html.split('<section id="scores">')[1].split("</section>", 1)
    titles, folded = (
        re.findall(r'<th scope="col">(.*?)</th>', text)
        for text in (section, rest.split("</table>")[0])
    )
    assert titles == ["split", "views", "merge", "size", "n", "top-1", "95 % interval", "gain", "p"]
    assert set(titles) < set(folded) and "calibration error" in folded
    assert rest.lstrip().startswith("<details><summary>The scores with all columns")


def test_every_image_and_canvas_has_words_and_every_input_a_label(page):
    for tag, attrs in page.tags:
        if tag == "img":
            assert attrs["alt"]
        if tag == "canvas":
            assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"
        if tag == "svg":
            assert attrs.get("aria-label")
    assert page.html.count("<label>") == sum(tag == "input" for tag, _ in page.tags)
    assert {"img", "canvas", "svg", "input"} <= {tag for tag, _ in page.tags}


def test_a_page_says_whose_images_it_shows(scored_folder, page, no_figures, tmp_path):
    assert "24 images of\nval, in float32" in page.text
    shutil.copytree("runs/one", tmp_path / "one")
    for kept in (tmp_path / "one" / "base" / "probabilities").glob("val-*"):
        kept.unlink()
    call(command, tmp_path / "one", *scored_folder.flags)
    page = PageReader(tmp_path / "one" / "report.html")
    assert (
        "images of\nthe hold-out, in float32" in page.text and "confidence on holdout" in page.html
    )


def test_the_ids_of_a_page_are_its_own(page):
    assert len(page.ids) == len(set(page.ids))


def test_several_runs_are_compared_in_pairs(scored_folder, no_figures, monkeypatch):
    collected = cache(lambda folder: gather(folder, *scored_folder.flags[1::2]))
    monkeypatch.setattr(collect, "gather", lambda folder, *_: collected(folder))
    ran = call(command, "runs/one", "runs/two", "--out", "pages", *scored_folder.flags)
    assert ran.out.split() == ["pages/one.html", "pages/two.html", "pages/comparison.html"]
    page = PageReader(scored_folder.folder / "pages/comparison.html")
    assert (
        page.open == []
        and "2 runs compared" in page.text
        and "Classes with the largest differences" in page.text
    )
    assert [link for link in page.sources if link.endswith(".html")] == ["one.html", "two.html"]
    assert "On val. p compares" in page.text
    ran = call(command, "runs/one", "runs/two", "--json", *scored_folder.flags)
    assert [row["path"] for row in json.loads(ran.out)][-1] == "runs/one/comparison.html"
    links = [
        link
        for link in PageReader(scored_folder.folder / "runs/one/comparison.html").sources
        if link.endswith(".html")
    ]
    assert links == ["report.html", "../two/report.html"]


def test_runs_that_saw_other_images_are_not_compared_class_by_class(
    scored_folder, no_figures, tmp_path
):
    long = "a-run-with-a-name-of-more-than-sixty-characters-that-ends-in-"
    for name in ("one", "two"):
        shutil.copytree(f"runs/{name}", tmp_path / f"{long}{name}")
    for kept in (tmp_path / f"{long}two" / "base" / "probabilities").glob("val-*"):
        kept.unlink()
    call(command, *sorted(tmp_path.iterdir()), "--out", tmp_path / "pages", *scored_folder.flags)
    page = PageReader(tmp_path / "pages" / "comparison.html")
    assert "Not compared in pairs" in page.text and "Classes with the largest" not in page.text
    assert len(page.ids) == len(set(page.ids))


def test_without_the_data_everything_but_the_images_is_there(scored_folder, no_figures, tmp_path):
    shutil.copytree("runs/one", tmp_path / "one")
    recipe = StageFolder(tmp_path / "one", "base").recipe
    recipe.write_text(
        json.dumps(json.loads(recipe.read_text()) | {"data": "gone.zip", "cache": None})
    )
    ran = call(command, tmp_path / "one")
    page = PageReader(tmp_path / "one" / "report.html")
    assert ran.status == 0 and "No images: gone.zip" in page.text and "Confusion" in page.text
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "Most confident errors" not in page.text


def test_a_run_that_was_not_evaluated_says_how(scored_folder, no_figures, tmp_path):
    shutil.copytree("runs/one", tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "base" / "probabilities")
    call(command, tmp_path / "one", *scored_folder.flags)
    page = PageReader(tmp_path / "one" / "report.html")
    assert f"python -m tinynet.evaluate --run {tmp_path / 'one'} --tta flip" in page.text
    assert "Training" in page.text and "Classes" not in page.text


def test_half_a_run_shows_what_is_there(scored_folder, no_figures, tmp_path):
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
    ran = call(command, tmp_path / "one", *scored_folder.flags)
    page = PageReader(tmp_path / "one" / "report.html")
    assert (
        ran.status == 0
        and f"--resume {tmp_path / 'one'}" in page.text
        and "No epoch is finished" in page.text
    )


def test_what_is_no_run_is_refused_in_one_line(scored_folder, tmp_path):
    for flags, word in (((tmp_path,), "not a run"), (("runs/one", "runs/one"), "the same name")):
        ran = call(command, *flags, *scored_folder.flags)
        assert ran.status == 2 and word in ran.err and len(ran.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
