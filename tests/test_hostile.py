"""Hostile files: a sample of `python -m benchmarks.hostile`, and what its judge has to notice."""

import ctypes
import json
import os
import subprocess
import sys
import time
import types
from collections import Counter
from pathlib import Path

import numpy as np
import PIL
import pytest
from support import ROOT

from benchmarks.hostile import oracle, right, sandbox
from benchmarks.hostile.case import Case, Unlike
from benchmarks.hostile.corpus import KINDS, NAMES, corpus
from benchmarks.hostile.damage import altered, damaged, zip_spans
from benchmarks.hostile.image_files import WRITTEN, image_of, saved
from benchmarks.hostile.right import REFUSED, RIGHT, judge
from benchmarks.hostile.sandbox import Limits
from benchmarks.hostile.zipping import entry, members, zip_bytes
from tinynet.errors import InputError
from tinynet.flags import flag_name

COUNT, SEED = 60, 0
SAMPLE = [case.title for case in corpus(COUNT, SEED)]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """The outcome of every case of the sample, by its title; they run in processes of a process of
    their own.
    """
    room = tmp_path_factory.mktemp("hostile")
    command = [
        sys.executable,
        "-m",
        "benchmarks.hostile",
        "--cases",
        str(COUNT),
        "--seed",
        str(SEED),
        "--out",
        str(room / "results.json"),
        "--evidence",
        str(room / "evidence"),
        "--quiet",
    ]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode in (0, 1), ran.stderr
    rows = json.loads((room / "results.json").read_text())["rows"]
    assert ran.returncode == any(row["wrong"] for row in rows)
    return {f"{row['kind']}/{row['case']}": row for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("title", SAMPLE)
def test_a_hostile_file_is_refused_in_one_line_or_read_right(verdicts, title):
    row = verdicts[title]
    assert not row["wrong"], (
        f"{row['command']}\n{row['outcome']}: {row['reason']}\n--only {title} runs it alone"
    )


# --- the corpus ---


def test_a_sample_is_of_all_kinds_and_the_same_for_a_seed():
    assert {title.split("/")[0] for title in SAMPLE} == set(NAMES)
    assert (
        SAMPLE
        == [case.title for case in corpus(COUNT, SEED)]
        != [case.title for case in corpus(COUNT, SEED + 1)]
    )
    assert [case.title for case in corpus(1, 0, SAMPLE[-1])] == SAMPLE[-1:]


def test_the_corpus_has_many_cases_of_each_kind_and_each_title_once():
    cases = corpus(4000, 0)
    assert len(cases) == 4000
    assert min(Counter(case.kind for case in cases).values()) > 100
    assert all(
        len({case.title for case in kind.designed()}) == len(list(kind.designed()))
        for kind in KINDS
    )


def test_damage_is_the_same_for_a_seed_and_changes_something(archive_path):
    data = archive_path.read_bytes()
    for spans in zip_spans(data).values():
        changed = [damaged(data, spans, sandbox.Random(number)) for number in range(50)]
        assert changed == [damaged(data, spans, sandbox.Random(number)) for number in range(50)]
        assert sum(one != data for one in changed) > 40
    value = {"a": [1, {"b": 2}], "c": "d"}
    texts = {json.dumps(altered(value, sandbox.Random(number))) for number in range(50)}
    assert len(texts) > 20 and value == {"a": [1, {"b": 2}], "c": "d"}


def test_the_structures_of_a_zip_are_found(archive_path):
    data = archive_path.read_bytes()
    spans = zip_spans(data)
    assert all(data[start : start + 4] == b"PK\1\2" for start, _ in spans["central directory"])
    assert all(data[start : start + 4] == b"PK\3\4" for start, _ in spans["local header"])
    assert sum(end - start for each in spans.values() for start, end in each) == len(data)
    assert len(spans["data"]) == len(members(archive_path))


def test_the_writer_of_zips_writes_what_others_read(tmp_path):
    content = {"a.txt": b"text" * 100, "folder/\u00e9.txt": b""}
    for method in (0, 8, 12, 14):
        (tmp_path / "a.zip").write_bytes(
            zip_bytes(entry(name, data, method) for name, data in content.items())
        )
        assert members(tmp_path / "a.zip") == content


# --- the oracle ---


@pytest.mark.parametrize(
    "mode, form, quarters",
    [
        ("I;16", "PNG", [0, 10_000 / 257, 30_000 / 257, 255]),
        ("I;16B", "TIFF", [0, 10_000 / 257, 30_000 / 257, 255]),
        ("F", "TIFF", [0, 63.75, 127.5, 255]),
        ("LA", "PNG", [10, 90 * 128 / 255 + 127, 255, 255 - 5 * 64 / 255]),
        ("1", "PNG", [0, 255, 255, 0]),
    ],
)
def test_the_oracle_follows_the_rules(mode, form, quarters):
    seen_of = oracle.truth(saved(image_of(mode), form))["quarters"]
    assert np.allclose(seen_of, np.repeat(quarters, 3).reshape(4, 3), atol=0.01)


def test_oracle_rejects_ambiguous_images():
    assert oracle.truth(saved(image_of("F", (0, 1, 2, 255)), "TIFF"))["quarters"] is None
    assert oracle.truth(saved(image_of("RGB"), "JPEG")[:-100])["quarters"] is None
    assert oracle.truth(b"no image")["quarters"] is None


@pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 12, reason="earlier Pillows cannot write all of them"
)
def test_every_mode_that_is_named_can_be_written():
    for form, modes in WRITTEN.items():
        for mode in modes:
            assert saved(image_of(mode), form)


# --- the judge ---


def _refuse():
    raise InputError("in/x.txt: no such class")


def _warn():
    print("/library.py:3: UserWarning: something\n  warnings.warn(", file=sys.stderr)
    _refuse()


def _undo():
    path = Path.cwd().parent / "elsewhere.txt"
    path.write_text("x")
    path.unlink()
    _refuse()


def _through_a_link():
    (Path("out") / "link").symlink_to(Path.cwd().parent)
    (Path("out") / "link" / "elsewhere.txt").write_text("x")
    _refuse()


def _take(megabytes):
    block = b"x" * (megabytes << 20)
    raise InputError(f"in/x.txt: {len(block)} bytes")


def _end(status, line):
    print(line, file=sys.stderr)
    raise SystemExit(status)


def _ask_the_network():
    import urllib.request

    urllib.request.urlopen("http://127.0.0.1:1/x", timeout=1)


# What a command does, and what the judge has to say of it where a refusal that names in/x.txt is
# right.
DEEDS = {
    "refuses": (_refuse, REFUSED),
    "raises": (lambda: [][0], "traceback"),
    "hangs": (lambda: time.sleep(60), "too long"),
    "loops": (lambda: [None for _ in iter(int, 1)], "too long"),
    "takes-memory": (lambda: _take(900), "too much memory"),
    "takes-some-memory": (lambda: _take(50), REFUSED),
    "warns": (_warn, "library's lines"),
    "says-two-lines": (lambda: _end(2, "error: in/x.txt\nerror: in/x.txt"), "not one line"),
    "says-a-long-line": (lambda: _end(2, "error: in/x.txt" + "x" * 10_000), "not one line"),
    "says-escapes": (lambda: _end(2, "error: in/x.txt \x1b[31m"), "not one line"),
    "says-nothing": (lambda: _end(2, ""), "library's lines"),
    "names-nothing": (lambda: _end(2, "error: --size 3"), "other cause named"),
    "ends-with-1": (lambda: _end(1, "error: in/x.txt"), "wrong status"),
    "ends-with-0": (lambda: None, "wrong status"),
    "dies": (lambda: os.kill(os.getpid(), 11), "traceback"),
    "prints": (lambda: (print("x"), _refuse()), "wrong result"),
    "writes-home": (lambda: ((Path.home() / ".cache").mkdir(), _refuse()), "wrote outside"),
    "writes-beside": (lambda: (Path("x.txt").write_text("x"), _refuse()), "wrote outside"),
    "writes-input": (lambda: (Path("in/x.txt").write_text("y"), _refuse()), "wrote outside"),
    "removes-input": (lambda: (Path("in/x.txt").unlink(), _refuse()), "wrote outside"),
    "writes-and-undoes": (_undo, "wrote outside"),
    "writes-through-a-link": (_through_a_link, "wrote outside"),
    "changes-canary": (
        lambda: ((Path.cwd().parents[2] / "canary/file.txt").write_text("x"), _refuse()),
        "wrote outside",
    ),
    "writes-cache": (
        lambda: (Path("out/cache").mkdir(), Path("out/cache/x").write_text("x"), _refuse()),
        REFUSED,
    ),
    "leaves-partial": (lambda: (Path("out/.x.1.partial").write_text("x"), _refuse()), "left over"),
    "leaves-temporary": (
        lambda: ((Path(os.environ["TMPDIR"]) / "x").write_text("x"), _refuse()),
        "left over",
    ),
    "leaves-result": (lambda: (Path("out/result.json").write_text("x"), _refuse()), "left over"),
    "runs-a-program": (lambda: (subprocess.run(["true"]), _refuse()), "executed"),
    "runs-a-shell": (lambda: (os.system("touch executed"), _refuse()), "executed"),
    "asks-the-network": (_ask_the_network, "executed"),
}


@pytest.fixture
def room(tmp_path, monkeypatch):
    """An empty world, and a command that does what its one flag says."""
    (tmp_path / "world").mkdir()
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary/file.txt").write_text("nothing may change this")
    command = types.ModuleType("hostile_command")
    command.main = lambda flags: DEEDS[flags[0]][0]()
    monkeypatch.setitem(sys.modules, command.__name__, command)
    return tmp_path


def usual_limits(room, seconds=10.0):
    """400 MB on top of what a child inherits from this process, which grows with every test.

    The inheritance is measured on a child: a fork does not map all that its parent has mapped.
    """
    if sys.platform == "linux":
        # A child would take what this process has freed and keeps before it takes more.
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    idle = Case("deeds", "idle", "hostile_command", ("refuses",), _no_input, right.refused())
    memory = sandbox.run(idle, room, SEED, Limits()).memory
    return Limits(seconds=seconds, memory=memory + (400 << 20))


def _no_input(place, draw):
    """Make nothing."""


@pytest.mark.parametrize("deed", DEEDS)
def test_the_judge_notices(deed, room):
    def make(place, draw):
        (place.inputs / "x.txt").write_text("x")

    case = Case("deeds", deed, "hostile_command", (deed,), make, right.refused("in/x.txt"))
    # Only what never ends waits for the limit; on a busy machine 900 MB can take two seconds.
    limits = usual_limits(room, 2 if DEEDS[deed][1] == "too long" else 10)
    outcome, reason = judge(case, sandbox.run(case, room, SEED, limits), limits)
    assert outcome == DEEDS[deed][1], reason


@pytest.mark.parametrize(
    "printed, outcome",
    [
        ('[{"n": 3}]', RIGHT),
        ('[{"n": 4}]', "wrong result"),
        ('[{"n": NaN}]', "wrong result"),
        ("no rows", "wrong result"),
    ],
)
def test_a_result_is_looked_at(printed, outcome, room, monkeypatch):
    def check(ended):
        right.need(right.rows(ended)[0]["n"] == 3, "other than three")

    monkeypatch.setitem(DEEDS, "prints-rows", (lambda: print(printed), outcome))
    case = Case(
        "deeds",
        "prints-rows",
        "hostile_command",
        ("prints-rows",),
        _no_input,
        right.gives(check),
    )
    limits = usual_limits(room)
    assert judge(case, sandbox.run(case, room, SEED, limits), limits)[0] == outcome


def test_any_accepted_outcome_passes(room):
    def never(ended):
        raise Unlike("wrong status", "another one")

    case = Case(
        "deeds",
        "refuses",
        "hostile_command",
        ("refuses",),
        _no_input,
        right.any_of(never, right.refused("in/x.txt")),
    )
    limits = usual_limits(room)
    assert judge(case, sandbox.run(case, room, SEED, limits), limits)[0] == REFUSED


def test_an_input_that_cannot_be_made_is_no_outcome_of_the_command(room):
    case = Case(
        "deeds",
        "unmade",
        "hostile_command",
        ("refuses",),
        lambda place, draw: 1 / 0,
        right.refused(),
    )
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        sandbox.run(case, room, SEED, Limits())


def test_the_sample_is_run_by_a_command_that_says_what_it_takes():
    from benchmarks.hostile import __main__ as command

    with pytest.raises(InputError, match="choose from zips, texts"):
        command.main(["--only", "nothing"])
    assert flag_name("only") in command.parser().format_help()
