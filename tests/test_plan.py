"""Recipe fields as flags."""

import dataclasses

import pytest
from support import complaint

from tinynet import train
from tinynet.training.recipes import Network, SplitConfig, Stage

pytestmark = pytest.mark.usefixtures("thin")


def test_every_field_is_a_flag_and_its_default_is_no_change():
    made = train.parser()
    fields = {
        field.name for part in (SplitConfig, Network, Stage) for field in dataclasses.fields(part)
    }
    flags = {action.dest for action in made._actions}
    assert fields <= flags
    asked = made.parse_args([])
    assert not fields & set(vars(asked))
    flags = (
        "--taps pool5:mean relu4_3:max --hidden --max-grad-norm none --lr 0.5 --lr-factors 1 2 3 4 "
        "5 6.5 --no-standardise --per-class 7 --crop-side 40 64 --schedule cosine"
    )
    asked = made.parse_args(flags.split())
    given = {name: value for name, value in vars(asked).items() if name in fields}
    assert given == dict(
        features=("pool5:mean", "relu4_3:max"),
        hidden=(),
        max_grad_norm=None,
        lr=0.5,
        per_class=7,
        lr_factors=(1.0, 2.0, 3.0, 4.0, 5.0, 6.5),
        standardise=False,
        crop_side=(40, 64),
        schedule="cosine",
    )
    Stage(**{name: value for name, value in given.items() if name in Stage.__dataclass_fields__})


def test_what_the_base_fixed_cannot_be_changed_in_finetune(whole_run, tmp_path):
    asked = [
        "--stage",
        "finetune",
        "--run",
        str(whole_run),
        "--out",
        str(tmp_path / "more"),
        "--device",
        "cpu",
    ]
    for flags, name in (
        (["--hidden", "8"], "--hidden"),
        (["--features", "pool5:mean"], "--features"),
        (["--holdout", "0.3"], "--holdout"),
        (["--split-seed", "1"], "--split-seed"),
        (["--no-standardise"], "--standardise"),
    ):
        complaint(lambda flags=flags: train.main([*asked, *flags]), name, "fixed by the base")
    assert not (tmp_path / "more").exists()


def test_a_resumed_run_keeps_its_recipe(whole_run):
    complaint(
        lambda: train.main(["--resume", str(whole_run), "--lr", "0.1", "--hidden", "8"]),
        "--hidden",
        "--lr",
        "cannot be changed when a run is resumed",
    )
