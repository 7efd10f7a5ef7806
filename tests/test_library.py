"""The library: every public name, used as its documentation shows."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ROOT, complaint, thin_network
from torch import nn

import tinynet

SMALL = dict(
    weights="none",
    hidden=(16,),
    holdout=0.25,
    size=32,
    batch=16,
    device="cpu",
    precision="float32",
)


@pytest.fixture(scope="module", autouse=True)
def thin():
    with thin_network():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A synthetic archive, a photo, and a run with a finished base."""
    folder = tmp_path_factory.mktemp("library")
    tinynet.synthetic(folder / "data.zip", classes=6, train=16, val=4, test=3, side=32)
    with zipfile.ZipFile(folder / "data.zip") as archive:
        name = next(name for name in archive.namelist() if "test/images/" in name)
        (folder / "photo.jpg").write_bytes(archive.read(name))
    tinynet.fit(folder / "run", folder / "data.zip", "base", epochs=2, **SMALL)
    return folder


@pytest.fixture
def run(place):
    return tinynet.Run(place / "run")


def test_every_public_name_is_there_and_documented():
    assert 10 <= len(tinynet.__all__) <= 14 and sorted(tinynet.__all__) == tinynet.__all__
    for name in tinynet.__all__:
        assert getattr(tinynet, name).__doc__, name
        assert name in dir(tinynet)
    with pytest.raises(AttributeError, match="fitt"):
        tinynet.fitt  # noqa: B018
    modules = {path.stem for path in (ROOT / "tinynet").glob("*.py")}
    folders = {path.parent.name for path in (ROOT / "tinynet").glob("*/__init__.py")}
    assert not set(tinynet.__all__) & (modules | folders)  # the module would replace the name


def test_importing_it_loads_no_torch():
    code = "import sys, tinynet; tinynet.Run; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "matplotlib", "scipy"} & set(ast.literal_eval(done.stdout))


def test_fit_returns_the_run_and_goes_on_with_it(place, run):
    again = tinynet.fit(place / "run", place / "data.zip", "base", epochs=2, **SMALL)
    assert repr(again) == repr(run) and "finished: base" in repr(run)
    assert run.config.recipe.base.epochs == 2 and run.folder.curves.is_file()


def test_fit_trains_the_stages_that_are_missing(place, tmp_path):
    settings = dict(epochs=1, crop_side=(28, 32), **SMALL)
    run = tinynet.fit(tmp_path / "run", place / "data.zip", **settings)
    assert "base, finetune, fixres" in repr(run) and run.folder.stage == "fixres"
    again = tinynet.fit(tmp_path / "run", place / "data.zip", **settings)
    assert repr(again) == repr(run)
    assert tinynet.Run(tmp_path / "run", "base").folder.stage == "base"


def test_fit_refuses_what_it_cannot_do(place, tmp_path):
    data = place / "data.zip"
    complaint(lambda: tinynet.fit(place / "run", data, "base", epochs=3), "epochs=2", "not 3")
    complaint(lambda: tinynet.fit(tmp_path / "a", data, "bse"), "bse", "finetune")
    complaint(lambda: tinynet.fit(tmp_path / "a", data, "base", epoch=3), "epoch", "epochs")
    complaint(lambda: tinynet.fit(tmp_path / "a", data, "finetune"), "no finished base")
    complaint(lambda: tinynet.fit(tmp_path / "a", data, recipe="tunde"), "tunde", "reference")
    complaint(lambda: tinynet.fit(tmp_path / "a", data, "base", cache=5), "cache is 5", "path")
    complaint(lambda: tinynet.Run(tmp_path / "nowhere"), "nowhere", "not a run")
    complaint(lambda: tinynet.Run(place / "run", "bse"), "bse", "finetune")
    assert not (tmp_path / "a").exists()


def test_evaluate_returns_rows_that_print_and_draw_themselves(run):
    rows = run.evaluate(tta="flip", device="cpu", precision="float32")
    assert [(row.split, row.views) for row in rows] == [
        (split, views) for split in ("holdout", "val") for views in ("none", "flip")
    ]
    assert "top-1" in repr(rows) and "95 % interval" in repr(rows)
    page = rows._repr_html_()
    assert page.count("<tr>") == 5 and "<svg" in page
    assert rows.to_json()[3]["gain"] == rows[3].gain.gain
    assert isinstance(rows, tinynet.Rows) and isinstance(rows[0], tinynet.ScoreRow)


def test_predict_names_classes(place, run):
    found = run.predict(place / "photo.jpg", tta="flip", top=3, device="cpu", precision="float32")
    assert [one.rank for one in found] == [1, 2, 3] and "photo.jpg" in repr(found)
    complaint(lambda: run.predict(place / "nothing.jpg"), "nothing.jpg")


def test_the_model_is_a_module_that_knows_its_classes(place, run):
    model = run.model()
    images, labels = tinynet.arrays(place / "data.zip", "val")
    assert images.dtype == np.uint8 and images.shape == (24, 32, 32, 3) and len(labels) == 24
    batch = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        logits = model(batch)
    assert isinstance(model, nn.Module) and logits.shape == (24, 6) and not model.training
    assert len(model.class_ids) == len(model.class_names) == 6 and model.image_size == 32
    (plain,) = run.evaluate(split="val", device="cpu", precision="float32")
    assert (logits.argmax(1).numpy() == labels).mean() == plain.top1
    augmented = tinynet.tta(model, "flip")
    with torch.inference_mode():
        both = augmented(batch).exp()
        expected = (logits.softmax(1) + model(batch.flip(3)).softmax(1)) / 2
    torch.testing.assert_close(both, expected)


def test_arrays_and_dataset_agree(place):
    images, labels = tinynet.arrays(place / "data.zip", "val")
    dataset = tinynet.TinyImageNet(place / "data.zip", "val")
    assert np.array_equal(np.asarray(dataset[5][0]), images[5]) and dataset[5][1] == labels[5]
    assert tinynet.arrays(place / "data.zip", "test")[1] is None
    complaint(lambda: tinynet.arrays(place / "data.zip", "valid"), "valid", "test")


def test_a_recipe_may_be_a_value(place, tmp_path):
    """All of its fields count, and a started stage refuses another one."""
    data, names = place / "data.zip", {"weights", "device", "precision"}
    recipe = tinynet.recipes.TUNED.override(
        {"epochs": 1, **{key: SMALL[key] for key in SMALL if key not in names}}, ("base",)
    )
    rest = {key: SMALL[key] for key in names}
    run = tinynet.fit(tmp_path / "run", data, "base", recipe, **rest)
    assert run.config.recipe.base == recipe.base and run.config.recipe.network == recipe.network
    assert repr(tinynet.fit(tmp_path / "run", data, "base", recipe, **rest)) == repr(run)
    longer = recipe.override({"epochs": 2}, ("base",))
    complaint(lambda: tinynet.fit(tmp_path / "run", data, "base", longer, **rest), "epochs=1", "2")
    wider = recipe.override({"hidden": (8,), "crop_side": (28, 32)}, ("finetune",))
    complaint(lambda: tinynet.fit(tmp_path / "run", data, "finetune", wider, **rest), "hidden")
    complaint(lambda: tinynet.fit(tmp_path / "b", data, recipe=recipe.base, **rest), "recipe")


def test_fit_returns_the_run_at_the_stage_that_was_asked_for(place, tmp_path):
    settings = dict(epochs=1, crop_side=(28, 32), **SMALL)
    base = tinynet.fit(tmp_path / "run", place / "data.zip", "base", **settings)
    tinynet.fit(tmp_path / "run", place / "data.zip", **settings)
    assert base.folder.stage == "base"


ON_CPU = dict(device="cpu", precision="float32")


def test_probabilities_are_those_of_the_score(run):
    result = run.probabilities("val", tta="flip", **ON_CPU)
    assert result.log_probabilities.shape == (2, 24, 6) and len(result.labels) == 24
    rows = run.evaluate(tta="flip", split="val", **ON_CPU)
    assert (result.merged().argmax(1) == result.labels).mean() == rows[1].top1
    complaint(lambda: run.probabilities("val", tta=["flip", "ten"]), "ten", "one set")
    complaint(lambda: run.probabilities("val", size=[32, 64]), "64", "one size")
    complaint(lambda: run.probabilities("train"), "train", "holdout, val or test")


def test_views_are_selected(run):
    rows = run.select_views("flip", most=2, **ON_CPU)
    assert {"ten", "greedy 2"} <= {row.views for row in rows} and "over ten-crop" in repr(rows)
    complaint(lambda: run.select_views("flip", most=0), "most", "greater than 0")


def test_other_sizes_are_studied(run, tmp_path):
    findings = run.resolution([32, 40], out=tmp_path / "sizes", **ON_CPU)
    assert {row.size for row in findings.rows} == {32, 40} and findings.conclusions
    assert "correction" in repr(tinynet.Rows(findings.rows)) and (tmp_path / "sizes").is_dir()
    complaint(lambda: run.resolution([]), "sizes", "pixels")
    complaint(lambda: run.resolution(16), "16", "32")


def test_figures_are_drawn(place, run):
    assert len(run.curves().axes) >= 3
    figure = run.explain(place / "photo.jpg", tta="ten", **ON_CPU)
    assert len(figure.axes) == 10
    complaint(lambda: run.explain(place / "nothing.jpg"), "nothing.jpg")


def test_heat_maps_are_of_the_images(run):
    images, labels = run.data.val.images[:3], run.data.val.labels[:3]
    heat = run.heat_maps(images, labels)
    assert heat.shape == (3, 32, 32) and (heat >= 0).all()
    assert all(total == pytest.approx(1, abs=0.05) or total == 0 for total in heat.sum((1, 2)))
    complaint(lambda: run.heat_maps(images, labels, "relu9_9"), "relu9_9", "relu4_3")
    complaint(lambda: run.heat_maps(images, None), "classes", "3 images")
    complaint(lambda: run.heat_maps(images / 255, labels), "float64", "uint8")


def test_an_archive_that_is_there_is_not_downloaded_or_written_again(place):
    before = (place / "data.zip").stat().st_mtime_ns
    assert tinynet.download(place / "data.zip") == place / "data.zip"
    assert tinynet.synthetic(place / "data.zip", exist_ok=True) == place / "data.zip"
    assert (place / "data.zip").stat().st_mtime_ns == before
    complaint(lambda: tinynet.synthetic(place / "data.zip"), "exists")
    complaint(lambda: tinynet.synthetic(place / "new.zip", valid=3), "valid", "val")
    complaint(lambda: tinynet.TinyImageNet(place / "data.zip", held=0.1), "held", "holdout")


def test_report_writes_a_page(run, tmp_path):
    page = run.report(tmp_path)
    assert page.suffix == ".html" and page.is_file() and Path(page).read_text().startswith("<!doc")


def test_recipes_are_values():
    assert tinynet.recipes.TUNED.name == "tuned"
    assert tinynet.recipes.TUNED.override({"epochs": 4}).base.epochs == 4


def test_fit_goes_on_with_data_that_has_moved(place, tmp_path):
    (tmp_path / "moved.zip").write_bytes((place / "data.zip").read_bytes())
    tinynet.fit(tmp_path / "run", tmp_path / "moved.zip", "base", epochs=1, **SMALL)
    (tmp_path / "moved.zip").rename(tmp_path / "again.zip")
    again = dict(epochs=1, **SMALL)
    complaint(lambda: tinynet.fit(tmp_path / "run", None, "base", **again), "moved.zip", "data")
    run = tinynet.fit(tmp_path / "run", tmp_path / "again.zip", "base", **again)
    assert run.folder.finished


def test_fit_drops_no_setting_in_silence(place, tmp_path):
    data = place / "data.zip"
    run = tmp_path / "run"
    tinynet.fit(run, data, "base", epochs=1, **SMALL)
    for changed in (dict(seed=7), dict(hidden=(8,)), dict(weights="IMAGENET1K_V1")):
        settings = {**SMALL, "epochs": 1, **changed}
        name = next(iter(changed))
        complaint(lambda settings=settings: tinynet.fit(run, data, "base", **settings), name)
        if name != "seed":  # finetune may have its own
            complaint(
                lambda settings=settings: tinynet.fit(run, data, "finetune", **settings), name
            )
    settings = {**SMALL, "epochs": 1, "crop_side": (28, 32), "seed": 7}
    after = tinynet.fit(run, data, "finetune", cache=str(tmp_path / "other"), **settings)
    assert after.config.seed == 7 and after.config.cache == str(tmp_path / "other")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (dict(split="train"), ["train", "holdout, val, both or test"]),
        (dict(split=["val"]), ["val", "both"]),
        (dict(split="test"), ["test: has no labels"]),
        (dict(size="32"), ["'32'", "pixels"]),
        (dict(size=[]), ["[]", "pixels"]),
        (dict(tta=None), ["None", "string"]),
        (dict(tta=["flip", 3]), ["flip", "string"]),
        (dict(merge=[]), ["merge", "mean"]),
        (dict(merge="median"), ["median", "gmean"]),
    ],
)
def test_evaluate_refuses_what_it_cannot_score(run, asked, words):
    complaint(lambda: run.evaluate(**asked), *words)


@pytest.mark.parametrize(
    ("files", "asked", "words"),
    [
        ([], {}, ["[]", "folder"]),
        ("", {}, ["''", "path"]),
        ([3], {}, ["3", "path"]),
        (5, {}, ["5", "folder"]),
        ("photo.jpg", dict(top=0), ["0", "greater than 0"]),
        ("photo.jpg", dict(tta=["flip", "ten"]), ["ten", "one set"]),
    ],
)
def test_predict_refuses_what_it_cannot_read(run, files, asked, words):
    complaint(lambda: run.predict(files, **asked), *words)


def test_all_stages_are_checked_before_one_is_trained(place, tmp_path):
    small = {**SMALL, "epochs": 1, "crop_side": (46, 64)}  # the crops do not fit in finetune
    complaint(lambda: tinynet.fit(tmp_path / "run", place / "data.zip", **small), "crop")
    assert not (tmp_path / "run").exists()
    complaint(lambda: tinynet.fit(tmp_path / "run", place / "data.zip", [], **small), "empty")
    complaint(lambda: tinynet.fit("", place / "data.zip", **small), "''", "path")
