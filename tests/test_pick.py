"""Networks and sizes compared within a budget of time."""

import json
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from support import CPU, ON_CPU, argv, call, complaint, succeed

from tinynet import pick as command
from tinynet.data.copies import open_packed
from tinynet.data.splits import split_train
from tinynet.evaluation import pick
from tinynet.evaluation.pick import Candidate, candidates
from tinynet.report.candidates import accuracy_against_time, front

LITE = "timm/tf_efficientnet_lite0"
NETWORKS = f"--arch resnet18 {LITE} --weights none none --size 32 64"


@pytest.fixture
def where(archive_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYNET_PROGRESS", "0")
    monkeypatch.setattr(pick, "MEASURED", 0.02)
    return ["--data", archive_path, "--cache", tmp_path / "cache", *ON_CPU]


def test_the_better_half_gets_more_images(where, tmp_path):
    ran = succeed(command, *argv(f"{NETWORKS} --minutes 5 --json"), *where)
    rows = json.loads(ran.out)
    assert {(row["arch"], row["size"]) for row in rows} == {
        (arch, size) for arch in ("resnet18", LITE) for size in (32, 64)
    }
    best, second, *dropped = rows
    assert best["gain"] is None and best["top1"] >= second["top1"]
    assert best["images"] == second["images"] >= max(row["images"] for row in dropped)
    assert all(row["gain"] <= 0 for row in (second, *dropped))
    assert (tmp_path / "pick.png").stat().st_size > 10_000
    line = next(line for line in ran.err.splitlines() if line.startswith("go on with: "))
    assert f"--arch {best['arch']}" in line and f"--size {best['size']}" in line
    assert "--weights none" in line
    words = shlex.split(line.removeprefix("go on with: "))
    assert words[words.index("--data") + 1] == str(where[1])
    assert words[words.index("--precision") + 1] == "float32"


class Untouchable:
    """What must not be used at all."""

    def __getattr__(self, name):
        raise AssertionError(f"val was asked for its {name}")


def test_val_is_not_touched(where, monkeypatch):
    def without_val(*arguments):
        packed = open_packed(*arguments)
        packed.val = Untouchable()
        return packed

    monkeypatch.setattr("tinynet.data.copies.open_packed", without_val)
    succeed(command, *argv(f"{NETWORKS} --minutes 5"), *where)


def test_images_are_those_of_the_split_and_disjoint(archive_path, where):
    packed = open_packed(archive_path, where[3])
    race = pick.Race(packed, CPU, 0, 0.0)
    split = split_train(packed.train.labels)
    for table, rows in ((race.train, split.train), (race.holdout, split.holdout)):
        assert np.array_equal(np.sort(table[table >= 0]), rows)
        for label, column in enumerate(table.T):
            assert set(packed.train.labels[column[column >= 0]]) == {label}


def test_more_time_means_more_images(archive_path, where, monkeypatch):
    monkeypatch.setattr(pick, "time", SimpleNamespace(monotonic=lambda: 0.0))
    packed = open_packed(archive_path, where[3])
    contenders = [SimpleNamespace(seconds=0.01)] * 4

    def images(minutes, before=0):
        race = pick.Race(packed, CPU, 0, 60 * minutes)
        return race.images_a_class(contenders, before, 2)

    assert images(60) == 11  # all that are not held out
    assert 4 <= images(0.08) < images(0.15) <= images(60)
    # The hold-out has few images: the next round has more train images for the same time.
    assert images(0.08) + 2 < images(0.08, before=2) < images(60)
    complaint(lambda: images(0.001), "too short", "4 candidates", "about 1 minute on")


def test_candidates_are_those_that_a_network_takes(capsys):
    options = candidates(["resnet18", "vit_b_16"], [16, 64, 224], [])
    assert [(option.arch, option.size) for option in options] == [
        ("resnet18", 64),
        ("resnet18", 224),
        ("vit_b_16", 224),
    ]
    notes = capsys.readouterr().err
    assert "size 16" in notes and "size 64: vit_b_16" in notes
    complaint(lambda: candidates(["resnet18"], [64], []), "fewer than two")
    complaint(lambda: candidates(["resnet18", "resnet50"], [64], ["none"]), "1 for 2 networks")
    complaint(lambda: candidates(["resnet19"], [64, 128], []), "resnet19", "resnet18")


def test_the_front_has_what_no_cheaper_one_reaches():
    def row(seconds, top1):
        return SimpleNamespace(seconds=seconds, score=SimpleNamespace(top1=top1))

    rows = [row(3, 0.6), row(1, 0.5), row(2, 0.5), row(4, 0.55), row(5, 0.7)]
    assert [(each.seconds, each.score.top1) for each in front(rows)] == [
        (1, 0.5),
        (3, 0.6),
        (5, 0.7),
    ]


def test_labels_of_close_candidates_do_not_overlap():
    def row(seconds, top1):
        score = SimpleNamespace(top1=top1, low=top1 - 0.01, high=top1 + 0.01)
        return SimpleNamespace(
            candidate=Candidate("resnet18", 64), images=10, score=score, seconds=seconds
        )

    figure = accuracy_against_time(
        [row(0.001, 0.2), row(0.0010001, 0.2001), row(0.00101, 0.2002), row(0.01, 0.6)]
    )
    figure.draw_without_rendering()
    labels = [text for text in figure.axes[0].texts if "px" in text.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) == 4
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", ["--arch"]),
        ("--arch resnet18 --size 64", ["fewer than two"]),
        (f"{NETWORKS} --minutes 0", ["--minutes is 0"]),
        (f"{NETWORKS} --minutes nan", ["--minutes is nan"]),
        (f"{NETWORKS} --minutes 0.0001", ["--minutes", "4 candidates"]),
        (f"{NETWORKS} --out pick.gif", ["pick.gif"]),
    ],
)
def test_bad_input_takes_one_line(where, flags, words):
    ran = call(command, *argv(flags), *where)
    assert ran.status == 2 and all(word in ran.err.splitlines()[-1] for word in words), ran.err


def test_candidates_have_the_recipe_of_their_network():
    assert Candidate("vgg16", 96).recipe.base.size == 96
    assert Candidate("vgg16", 96).recipe.name == "tuned"
    assert Candidate("resnet18", 96).recipe.network.arch == "resnet18"
