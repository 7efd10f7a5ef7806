"""README and docs/: their tables are those of the result files, their links and commands exist."""

import importlib
import json
import re
import shlex

import pytest
from PIL import Image
from support import ROOT

from benchmarks import frontier, record
from tinynet import console

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    *DOCS,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "data/README.md",
    ROOT / "benchmarks/README.md",
]
EACH = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(text, language=""):
    """The code blocks of one language."""
    fenced = re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    return [code for name, code in fenced if name == language]


def commands(text):
    """(command, its words) of every `tinynet COMMAND` and `python -m tinynet.COMMAND` in code."""
    for block in blocks(text):
        for line in block.splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] == ["tinynet"] and len(words) > 1:
                    yield words[1], words[2:]
                elif words[:2] == ["python", "-m"] and words[2].startswith("tinynet."):
                    yield words[2].removeprefix("tinynet."), words[3:]


@pytest.mark.parametrize("page", record.PAGES)
def test_tables_are_those_of_the_result_files(page):
    text = (record.DOCS / page).read_text(encoding="utf-8")
    assert record.with_tables(text, record.PAGES[page]) == text
    for name in record.PAGES[page]:
        make, folder = record.TABLES[name]
        table = make(record.RESULTS / folder)
        assert table in text
        stale = text.replace(table, table.replace("4", "5"))
        assert stale != text and record.with_tables(stale, record.PAGES[page]) == text


def test_figures_are_those_of_the_result_files():
    for path, text in (
        (record.COST, record.speed.cost(record.RESULTS)),
        (record.ACCURACY, frontier.description(record.RESULTS)),
    ):
        with Image.open(path) as figure:
            assert figure.info["Description"] == text


def test_points_of_the_accuracy_figure():
    """The minutes and accuracies of runs, those of peers computed from their rates by hand."""
    points = frontier.points(record.RESULTS)
    ten = next(point for point in points if 9.5 < point.minutes < 10.5)
    assert (ten.one_view[0], ten.chosen_views[0]) == (0.6354, 0.6438)
    assert [point.minutes for point in points] == sorted(point.minutes for point in points)
    for low, high in ((point.one_view[1], point.one_view[2]) for point in points):
        assert 0.025 < high - low < 0.03
    base, finetune = (
        json.loads((record.RESULTS / "amx" / f"{name}.json").read_text())
        for name in ("base", "finetune")
    )
    runs = json.loads((record.RESULTS / "minutes.json").read_text())["runs"]
    assert {run["device"]["processor"] for run in runs if run["device"]["type"] == "cpu"} == {
        file["machine"]["processor"] for file in (base, finetune)
    }
    (gpu,) = frontier.points(record.RESULTS, gpu=True)
    assert gpu.machine == "NVIDIA H200" and gpu not in points
    assert (gpu.minutes < 3.01, gpu.chosen_views[0]) == (True, 0.7058)
    for peer in frontier.peers(record.RESULTS):
        rates = [file["rates"][peer.name]["median"] for file in (base, finetune)]
        hours = 95_000 / rates[0] / 3600, 95_000 / rates[1] / 3600
        assert peer.published[0] == pytest.approx(60 * 10 * hours[0])
        assert peer.published[1] == pytest.approx(60 * (10 * hours[0] + 5 * hours[1]))
        assert peer.first_recipe == pytest.approx(60 * (12 * hours[0] + 4 * hours[1]))


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90 and len(text.split()) <= 650
    assert len(text[: text.index("python -m venv")].split()) <= 120


def test_figures_of_the_readme_are_in_the_results():
    readme, results = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md")
    )
    section = readme[readme.index("## Results") : readme.index("## Train")]
    assert len([line for line in section.splitlines() if line.startswith("|")]) == 8
    cells = re.findall(r"\d+\.\d%(?: \([\d.]+ \.\. [\d.]+\))?", section)
    assert len(cells) == 16
    for cell in cells:
        assert cell in results, cell


@EACH
def test_links_lead_to_files(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "#")):
            continue
        name, _, anchor = target.partition("#")
        assert (path.parent / name).exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", (path.parent / name).read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]


@EACH
def test_commands_are_understood(path):
    """Every command line parses: its flags exist."""
    for name, words in commands(path.read_text(encoding="utf-8")):
        assert re.fullmatch(r"[a-z-]+", name), name
        module = importlib.import_module(f"tinynet.{name.replace('-', '_')}")
        if hasattr(module, "parser"):
            try:
                module.parser().parse_args(words)
            except SystemExit as error:
                pytest.fail(f"{path.name}: {name} {shlex.join(words)}: status {error.code}")
            finally:
                console.set_flags(None)


@EACH
def test_python_compiles(path):
    for block in blocks(path.read_text(encoding="utf-8"), "python"):
        compile(block, str(path), "exec")


def test_the_site_has_every_page_and_the_address():
    tomllib = pytest.importorskip("tomllib")
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    text = str(site["nav"])
    assert all(f"'{path.name}'" in text for path in DOCS)
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert site["repo_url"] == urls["Repository"]
    assert urls["Repository"].endswith("/" + site["repo_name"])
