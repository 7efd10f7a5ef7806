"""What a hostile user types and passes: refused in one line, or done as it says."""

import json
import pathlib
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import copy_run, run_config
from support import CPU, ON_CPU, argv, complaint, flags_of, refused, succeed
from torch import nn

import tinynet
from tinynet import __main__ as entry
from tinynet import compare, evaluate, fixres, predict, train, zero_shot
from tinynet import folder as folder_command
from tinynet import select_views as select_command
from tinynet import soup as soup_command
from tinynet.data import __main__ as data_command
from tinynet.data.copies import open_packed
from tinynet.data.download import get
from tinynet.evaluation import soup
from tinynet.report import __main__ as report_command
from tinynet.runs import StageFolder
from tinynet.training.recipes import typed_values
from tinynet.values import brief, plain

pytestmark = pytest.mark.usefixtures("thin")


# --- flags: two names of one value, several values in two places, empty values ---


@pytest.mark.parametrize(
    ("command", "line", "names"),
    [
        (fixres, "--sizes 32 --size 64", ["--sizes", "--size", "same value"]),
        (train, "--taps pool5:mean --features pool5:max", ["--taps", "--features"]),
        (train, "--trainable head --learn=head", ["--trainable", "--learn"]),
        (train, "--views 1 --cached-epochs 2", ["--views", "--cached-epochs"]),
        (evaluate, "--json --format csv", ["--json", "--format"]),
        (fixres, "--no-fit --fit 64", ["--no-fit", "--fit"]),
        (evaluate, "--tta flip --tta ten", ["--tta", "twice"]),
        (evaluate, "--merge=mean --size 64 --merge=max", ["--merge", "twice"]),
        (train, "--hidden 8 --hidden 16", ["--hidden", "twice"]),
    ],
)
def test_no_flag_replaces_the_values_of_another_in_silence(empty_folder, command, line, names):
    assert refused(command, argv(line), *names) == 1


def test_a_flag_of_one_value_may_be_given_twice(run_folder):
    ran = succeed(fixres, *argv("--policy --train-size 64 --train-size 32 --json --json"))
    assert json.loads(ran.out)[0]["trained"] == 32
    # after -- there are no flags
    refused(compare, argv("-- --merge --merge"), "--merge", "twice")


COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "soup": soup_command,
    "select-views": select_command,
    "zero-shot": zero_shot,
    "folder": folder_command,
    "fixres": fixres,
    "predict": predict,
    "report": report_command,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_empty_value_is_no_default(empty_folder, name):
    paths = {"--data", "--cache", "--weights", "--out", "--run", "--arch", "--labels", "--keep"}
    flags = paths & flags_of(f"tinynet {name}")
    assert flags
    for flag in flags:
        assert refused(COMMANDS[name], [flag, ""], f"{flag} is empty", "leave it out") == 1
        refused(COMMANDS[name], [f"{flag}="], f"{flag} is empty")


def test_an_empty_word_is_no_path(empty_folder):
    refused(predict, [""], "an argument is empty")
    refused(compare, ["a.npz", ""], "an argument is empty")
    refused(evaluate, ["--tta", "flip", ""], "an argument is empty")
    refused(data_command, ["show", "--class", ""], "--class is empty")


@pytest.mark.parametrize("text", ["3.5", "many", "1e3"])
def test_a_size_that_is_no_whole_number_is_named(empty_folder, text):
    refused(evaluate, ["--size", text], "--size", repr(text), "whole number")


def test_help_of_a_command_is_help(capsys):
    for line in (["help", "soup"], ["soup", "--help"]):
        with pytest.raises(SystemExit) as ended:
            entry.main(line)
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith("usage: python -m tinynet.soup ")
    entry.main(["help"])
    assert "commands:" in capsys.readouterr().out


# --- soups ---


def test_a_soup_of_one_run_is_refused(scored_folder, tmp_path):
    assert refused(soup_command, ["runs/one", "runs/one"], "runs/one is named twice") == 1
    refused(soup_command, ["runs/one", "runs/../runs/one/"], "is the same as runs/one")
    (tmp_path / "link").symlink_to(Path("runs/one").resolve())
    refused(soup_command, ["runs/one", tmp_path / "link"], "is the same as runs/one")
    refused(compare, ["runs/one", "./runs/one"], "./runs/one is the same as runs/one")
    refused(fixres, argv("--run runs/one --beside runs/one"), "runs/one is named twice")


def test_a_soup_of_copies_is_refused(run_folder):
    copy_run("copy", 0)
    refused(soup_command, ["runs/done", "runs/copy", *ON_CPU], "runs/copy", "same weights")


def test_a_soup_is_compared_with_runs_whose_batch_norms_are_recomputed_too(scored_folder):
    ran = succeed(soup_command, *argv("runs/one runs/two --json"), *ON_CPU)
    rows = json.loads(ran.out)
    names = ["runs/one", "runs/two", "runs/one", "runs/two", "mean of 2 runs' weights"]
    assert [row["run"] for row in rows] == names
    assert [row["correction"] for row in rows] == ["as is"] * 2 + ["batch norm"] * 3
    assert rows[4]["gain"] == pytest.approx(rows[4]["top1"] - max(r["top1"] for r in rows[:2]))
    control = max(row["top1"] for row in rows[2:4])
    assert rows[4]["gain_over_control"] == pytest.approx(rows[4]["top1"] - control)
    assert "as it is (p = " in ran.err and "with recomputed batch norms (p = " in ran.err
    # the first two are the scores of the runs, the next two are what the recomputing alone does
    own = json.loads(succeed(evaluate, *argv("--run runs/two --split holdout --json"), *ON_CPU).out)
    assert own[0]["loss"] == pytest.approx(rows[1]["loss"]) and rows[3]["loss"] != rows[1]["loss"]


def spoilt(name, noise):
    """A copy of the finished run that always says class 0 until its batch norms are recomputed.

    `noise` makes its weights differ from those of another copy.
    """
    copy_run(name, 0)
    path = Path(f"runs/{name}/finetune/best.pt")
    stored = torch.load(path, weights_only=True)
    for key, value in stored["weights"].items():
        if key.startswith("head.") and key.endswith("running_var"):
            value.fill_(1e6)  # divides what comes in by a thousand
    stored["weights"]["head.5.weight"] *= 1e3
    stored["weights"]["head.5.bias"] += noise
    stored["weights"]["head.5.bias"][0] += 100
    torch.save(stored, path)


def test_a_gain_of_the_batch_norms_alone_makes_no_soup(run_folder):
    spoilt("first", 0)
    spoilt("second", 1e-4)
    ran = succeed(soup_command, *argv("runs/first runs/second --out runs/both --json"), *ON_CPU)
    rows = json.loads(ran.out)
    assert rows[4]["gain"] > 0 and rows[4]["gain_over_control"] == 0
    assert "the gain comes from the batch norms; nothing was written" in ran.err
    assert "not better" in ran.err and not Path("runs/both").exists()


def test_a_head_without_batch_norms_has_no_control(archive_path, cache_folder, tmp_path):
    from tinynet.training import stages

    for seed in (0, 1):
        config = run_config(archive_path, cache_folder, seed=seed)
        recipe = config.recipe.override({"hidden": (), "standardise": False, "epochs": 1})
        config = type(config)(**{**vars(config), "recipe": recipe, "stages": ("base",)})
        stages.train(tmp_path / str(seed), config, CPU)
    packed = open_packed(archive_path, str(cache_folder))
    folders = [StageFolder(tmp_path / str(seed), "base") for seed in (0, 1)]
    rows = soup.make_soup(folders, packed, CPU, None)
    assert [row.correction for row in rows] == ["as is"] * 3 and not rows[2].over


# --- comparisons ---


def test_a_comparison_tells_stages_and_sizes_apart(sized_folder):
    """Runs at the sizes that they were trained at, and one run at two test sizes."""
    lines = succeed(compare, *argv("runs/base runs/other"), *ON_CPU).out.splitlines()
    titles = lines[0].split()
    assert {"trained", "size", "stage"} <= set(titles)
    rows = json.loads(succeed(compare, *argv("runs/base runs/other --json"), *ON_CPU).out)
    assert [(row.get("trained"), row.get("size")) for row in rows[:2]] == [(32, 32), (64, 64)]
    assert "size" not in rows[2]  # that of all together
    for size in (32, 48):
        save = f"--run runs/base --split val --size {size} --save-probabilities {size}.npz"
        succeed(evaluate, *argv(save), *ON_CPU)
    rows = json.loads(succeed(compare, *argv("32.npz 48.npz --json")).out)
    assert [row["size"] for row in rows[:2]] == [32, 48]
    assert [row["run"] for row in rows[:2]] == ["runs/base"] * 2


def test_results_that_nothing_tells_apart_go_by_their_files(run_folder):
    for name in ("a.npz", "b.npz"):
        save = f"--split val --save-probabilities {name}"
        succeed(evaluate, *argv(save), *ON_CPU)
    rows = json.loads(succeed(compare, *argv("a.npz b.npz --json")).out)
    assert [row["run"] for row in rows] == ["a.npz", "b.npz", "all 2 together"]


# --- places of results ---


def test_a_report_goes_to_the_file_that_is_named(scored_folder, no_figures, tmp_path):
    page = tmp_path / "new" / "page.html"
    ran = succeed(report_command, "runs/one", "--out", page)
    assert ran.out.strip() == str(page) and page.read_text().startswith("<!doctype html>")
    assert tinynet.Run("runs/two").report(tmp_path / "two.HTML") == tmp_path / "two.HTML"
    refused(report_command, ["runs/one", "runs/two", "--out", "x.html"], "x.html", "2 runs")
    (tmp_path / "folder.html").mkdir()  # an earlier version made such folders
    ran = succeed(report_command, "runs/one", "--out", tmp_path / "folder.html")
    assert ran.out.strip() == str(tmp_path / "folder.html" / "one.html")
    (tmp_path / "notes.txt").write_text("")
    refused(report_command, ["runs/one", "--out", tmp_path / "notes.txt"], "is a file", ".html")


def test_a_comparison_of_reports_names_stages_and_sizes(scored_folder, no_figures, tmp_path):
    pages = succeed(report_command, "runs/one", "runs/two", "--out", tmp_path).out.splitlines()
    text = Path(pages[-1]).read_text()
    assert "<th>stage" in text.replace(' scope="col"', "") or ">stage<" in text
    assert ">size<" in text


def test_scores_are_not_dropped_where_out_is_a_file(run_folder, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    refused(evaluate, ["--out", tmp_path / "notes.txt", *ON_CPU], "notes.txt", "another folder")
    refused(
        select_command,
        ["--tta", "flip", "--out", tmp_path / "notes.txt", *ON_CPU],
        "notes.txt",
        "another folder",
    )


@pytest.mark.parametrize("name", ["votes.pdf", "votes.jpg"])
def test_a_figure_of_another_format_is_refused(run_folder, name):
    show = ["show", "--count", "2", *run_folder.flags[:2]]
    refused(data_command, [*show, "--out", name], name, ".png")
    succeed(data_command, *show, "--out", "sheet.png")
    refused(predict, [*argv(f"sheet.png --run runs/done --explain {name}")], name, ".svg")
    succeed(data_command, *show, "--out", "SHEET.SVG")
    assert "<svg" in Path("SHEET.SVG").read_text()


def test_what_would_fill_memory_is_out_of_range(tree, cell_means, empty_folder):
    flags = ["--arch", "means", "--device", "cpu"]
    on_tree = ["--data", tree, *flags]
    refused(folder_command, [*on_tree, "--workers", "99999"], "--workers 99999", "0 to 256")
    refused(folder_command, [*on_tree, "--resize", "99999"], "--resize 99999", "1 to 4096")
    image = next(tree.rglob("*.png"))
    refused(predict, [image, *flags, "--resize", "99999"], "--resize 99999", "1 to 4096")


def test_the_seed_of_a_sample_is_in_its_range(run_folder):
    refused(data_command, ["show", "--seed", "-1", *run_folder.flags[:2]], "--seed -1", "0 to")


def test_an_archive_has_the_format_of_its_name(tmp_path):
    small = dict(classes=2, train=2, val=1, test=1, side=16)
    for name in ("a.tar", "a.TAR.GZ"):
        complaint(lambda name=name: tinynet.synthetic(tmp_path / name, **small), name, "zip")
        complaint(lambda name=name: get(tmp_path / name), name, "zip")
    assert tinynet.synthetic(tmp_path / "A.ZIP", **small).is_file()


# --- the library ---


SETTINGS = dict(weights="none", hidden=(16,), holdout=0.25, size=32, batch=16, epochs=1)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (dict(epochs=True), "epochs"),
        (dict(epochs="1"), "epochs"),
        (dict(standardise=1), "standardise"),
        (dict(hidden=(16.0,)), "hidden"),
        (dict(seed=False), "seed"),
        (dict(seed=0.0), "seed"),
        (dict(flip=np.array(["none"])), "flip"),
        (dict(weights=""), "weights"),
        (dict(cache=""), "cache"),
        (dict(data=""), "data"),
    ],
)
def test_fit_refuses_values_of_another_type_on_a_finished_run(run_folder, changes, name):
    settings = {"data": run_folder.flags[1], **SETTINGS, **changes}
    complaint(lambda: tinynet.fit("runs/done", stages="base", **settings), f"{name} is ")
    complaint(lambda: tinynet.fit("runs/new", stages="base", **settings), f"{name} is ")
    assert not Path("runs/new").exists()


def test_fit_takes_numbers_of_numpy_and_torch(run_folder):
    settings = SETTINGS | dict(
        epochs=np.int64(1), hidden=[np.int32(16)], batch=torch.tensor(16), holdout=np.float64(0.25)
    )
    data, before = run_folder.flags[1], Path("runs/done/base/best.pt").stat().st_mtime_ns
    run = tinynet.fit("runs/done", data, "base", seed=np.int64(0), **settings)
    assert run.config.recipe.base.epochs == 1
    assert Path("runs/done/base/best.pt").stat().st_mtime_ns == before
    recipe = tinynet.recipes.TUNED.override(
        {"epochs": np.uint8(3), "crop_side": [np.int64(40), 64]}
    )
    assert type(recipe.base.epochs) is int and recipe.base.crop_side == (40, 64)


def test_numbers_become_those_of_python():
    assert plain([np.int64(1), (np.float64(0.5), torch.tensor(2))]) == (1, (0.5, 2))
    assert [type(plain(value)) for value in (np.int8(1), np.True_, np.str_("a"))] == [
        int,
        bool,
        str,
    ]
    assert plain("text") == "text" and plain(None) is None
    assert len(brief(np.zeros((50, 50)))) < 100 and "\n" not in brief(np.zeros((50, 50)))
    assert typed_values({"epochs": np.int64(4), "no field": 1}) == {"epochs": 4, "no field": 1}


class _Colours(nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda data: tinynet.tta(5), ["5", "torch.nn.Module"]),
        (lambda data: tinynet.tta(_Colours), ["Colours", "torch.nn.Module"]),
        (lambda data: tinynet.tta(_Colours(), 5), ["views is 5", "one set"]),
        (lambda data: tinynet.tta(_Colours(), ["flip", "ten"]), ["'ten'", "one set"]),
        (lambda data: tinynet.tta(_Colours(), merge=["max"]), ["'max'", "mean"]),
        (lambda data: tinynet.tta(_Colours(), size=0), ["0", "pixels"]),
        (lambda data: tinynet.tta(_Colours(), size="64"), ["'64'", "integer"]),
        (lambda data: tinynet.tta(_Colours())(np.zeros((1, 3, 8, 8))), ["ndarray", "tensor"]),
        (lambda data: tinynet.tta(_Colours())(torch.zeros(3, 8, 8)), ["(3, 8, 8)", "(N, 3,"]),
        (lambda data: tinynet.tta(_Colours())(torch.zeros(1, 3, 8, 8).byte()), ["uint8", "float"]),
        (lambda data: tinynet.TinyImageNet(123), ["root is 123", "path"]),
        (lambda data: tinynet.TinyImageNet(None), ["root is None", "path"]),
        (lambda data: tinynet.TinyImageNet(""), ["root is ''", "path"]),
        (lambda data: tinynet.TinyImageNet(data, transform=3), ["transform is 3", "function"]),
        (lambda data: tinynet.TinyImageNet(data, holdout="x"), ["'x'", "above 0"]),
        (lambda data: tinynet.TinyImageNet(data, holdout=None), ["None", "above 0"]),
        (lambda data: tinynet.TinyImageNet(data, split_seed=-1), ["-1", "split_seed"]),
        (lambda data: tinynet.TinyImageNet(data, split_seed=1.5), ["1.5", "integer"]),
        (lambda data: open_packed(None), ["data is None", "path"]),
        (lambda data: open_packed(""), ["data is ''", "path"]),
        (lambda data: tinynet.arrays(data, cache=""), ["cache is ''", "path"]),
        (lambda data: tinynet.arrays(data, cache=data), ["drawn.zip", "is a file", "cache"]),
        (lambda data: tinynet.fit("new", data, "base", cache=data), ["is a file", "cache"]),
        (lambda data: tinynet.mcnemar([1, 0], [1, 1]), ["int64", "(N,) bool"]),
        (lambda data: tinynet.mcnemar([True], [True, False]), ["1 images", "2;", "same images"]),
        (lambda data: tinynet.mcnemar(np.ones((2, 2), bool), [True]), ["(2, 2)", "(N,) bool"]),
        (lambda data: tinynet.mcnemar([], []), ["(0,)", "(N,) bool"]),
        (lambda data: tinynet.mcnemar(None, None), ["(N,) bool"]),
        (lambda data: tinynet.mcnemar([[True], [True, False]], [True]), ["(N,) bool"]),
        (lambda data: tinynet.load_pretrained(5), ["arch is 5", "string"]),
        (lambda data: tinynet.load_pretrained("resnet18", ""), ["weights is ''", "string"]),
        (
            lambda data: tinynet.load_pretrained("resnet18", pathlib.Path("no.pt")),
            ["no.pt", "no such file"],
        ),
        (lambda data: tinynet.load_pretrained("resnet18", "none", [1000]), ["1000", "999"]),
        (lambda data: tinynet.load_pretrained("resnet18", "none", 5), ["5", "list"]),
        (lambda data: tinynet.load_pretrained("resnet18", "none", ["a"]), ["'a'", "integer"]),
        (lambda data: tinynet.synthetic(""), ["out is ''", "path"]),
        (lambda data: tinynet.synthetic(5), ["out is 5", "path"]),
        (lambda data: tinynet.synthetic("new", classes="3"), ["classes is '3'", "integer"]),
        (lambda data: tinynet.synthetic("new", side=32.0), ["side is 32.0", "integer"]),
        (lambda data: tinynet.synthetic("new", train=True), ["train is True", "integer"]),
        (
            lambda data: tinynet.recipes.TUNED.override({"epochs": 1}, "base"),
            ["'base'", "base, finetune, fixres"],
        ),
    ],
)
def test_the_library_refuses_other_types_in_one_line(archive_path, empty_folder, action, expected):
    complaint(lambda: action(archive_path), *expected)
    assert not list(Path().iterdir())


def test_the_library_takes_integers_of_numpy(archive_path, tmp_path):
    data = tinynet.TinyImageNet(archive_path, holdout=np.float32(0.5), split_seed=np.int64(1))
    assert len(data) == 36
    path = tinynet.synthetic(
        tmp_path / "a.zip", classes=np.int64(2), train=np.uint8(2), val=1, test=1, side=np.int16(16)
    )
    assert tinynet.arrays(path)[0].shape == (4, 16, 16, 3)
    outcome = tinynet.mcnemar([True, True, False], torch.tensor([True, False, False]))
    assert outcome.wins == 1 and type(outcome.low) is float
    small = tinynet.tta(_Colours(), "flip", size=np.int64(8))
    assert small(torch.rand(2, 3, 16, 16)).shape == (2, 3)
