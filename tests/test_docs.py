"""README and docs/: their tables are those of the result files, their links and commands exist."""

import importlib
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
    """Means, minutes and intervals, computed by hand from the files."""
    base, both, larger = frontier.points(record.RESULTS)
    assert base.none[0] == pytest.approx((0.5878 + 0.5878 + 0.5906) / 3)
    assert (both.none[0], both.flip[0], larger.flip[0]) == (0.6234, 0.6402, 0.6738)
    assert base.minutes == pytest.approx(1060.807 / 60, abs=0.01)
    assert 240 < both.minutes - base.minutes < 255 and both.minutes == larger.minutes
    assert frontier.published_minutes(record.RESULTS) == pytest.approx(38176 / 60, abs=0.1)
    for low, high in ((p.none[1], p.none[2]) for p in (base, both, larger)):
        assert 0.025 < high - low < 0.03


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
