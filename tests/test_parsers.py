"""Whatever is written for views, annotations and recipes is read as it is meant, or refused in a
line.
"""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinynet.data.annotations import NO_BOX, as_text, by_stem, entry_of, read_annotations
from tinynet.errors import InputError
from tinynet.score import views
from tinynet.training.config import RunConfig
from tinynet.training.recipes import RECIPES, TUNED, Network, SplitConfig, Stage

PLENTY = settings(max_examples=300, deadline=None)
STEPS = sorted(views.STEPS)


# --- views ---


@PLENTY
@given(st.text(alphabet="flipnoetscardhz+:,.-0123456789einf ", max_size=30) | st.text(max_size=10))
def test_any_text_is_a_set_of_views_or_one_line(text):
    try:
        chosen = views.view_set(text, 64)
    except InputError as error:
        assert "\n" not in str(error).replace(repr(text), "")
    else:
        assert len(chosen) >= 1 and chosen.name == text


numbers = {
    "shift": st.tuples(st.integers(1, 20)) | st.just(()),
    "rotate": st.tuples(st.integers(1, 170)) | st.just(()),
    "zoom": st.tuples(st.sampled_from([1.5, 2, 3.25])) | st.just(()),
    "resize": st.tuples(st.integers(40, 90)),
    "scales": st.lists(st.integers(40, 90), min_size=1, max_size=3, unique=True).map(tuple),
    "dense": st.tuples(st.integers(64, 96)),
}


@st.composite
def sets(draw):
    """Steps, each once, at most one that resizes, no more than one that crops: those that can be
    seen.
    """
    names = draw(
        st.lists(
            st.sampled_from(["none", "flip", "shift", "rotate", "zoom", "ten", "scales", "resize"]),
            min_size=1,
            max_size=3,
            unique=True,
        )
    )
    return [(name, draw(numbers.get(name, st.just(())))) for name in names]


@PLENTY
@given(sets())
def test_what_is_written_is_the_product_of_its_steps(steps):
    text = "+".join(
        name + (":" + ",".join(map(str, values)) if values else "") for name, values in steps
    )
    counts = {"none": 1, "flip": 2, "shift": 5, "rotate": 3, "zoom": 2, "ten": 10, "resize": 1}
    try:
        chosen = views.view_set(text, 32)
    except InputError as error:
        assert "repeats a view" in str(error)  # ten is flip, and flip
        assert {"ten", "flip"} <= {name for name, _ in steps}
        return
    assert len(chosen) == math.prod(counts.get(name) or len(values) or 3 for name, values in steps)
    assert chosen.resizes == any(name in ("scales", "resize") for name, _ in steps)
    images = torch.rand(2, 3, 48, 48)
    sizes = {tuple(seen.shape[:2]) for seen in chosen(images).values()}
    assert sizes == {(2, 3)}


# --- annotations ---


CLASSES = ("n00000001", "n00000002", "n00000003")


@PLENTY
@given(st.text(alphabet="val_0123.JPEGn\t\n -", max_size=120) | st.text(max_size=60))
def test_any_text_is_annotations_or_one_line(text):
    try:
        annotations = read_annotations(text, CLASSES)
    except ValueError as error:
        assert str(error).startswith("line ")
    else:
        assert all(wnid in CLASSES and len(box) == 4 for wnid, box in annotations.values())


boxes = st.tuples(*[st.integers(0, 63)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


@PLENTY
@given(
    st.dictionaries(
        st.integers(0, 99).map("val_{}.JPEG".format),
        st.tuples(st.sampled_from(CLASSES), boxes | st.none()),
        max_size=8,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_annotations_are_read_as_they_are_written(entries, end, encoding):
    lines = ["\t".join([file, wnid, *map(str, box or ())]) for file, (wnid, box) in entries.items()]
    text = as_text(end.join([*lines, ""]).encode(encoding))
    annotations = read_annotations(text, CLASSES)
    assert annotations == {file: (wnid, box or NO_BOX) for file, (wnid, box) in entries.items()}
    for file, entry in annotations.items():
        again = file.replace("JPEG", "png")
        assert (
            entry_of(by_stem(annotations), f"val/images/{again}")
            == entry
            == entry_of(by_stem(annotations), file)
        )


@PLENTY
@given(st.binary(max_size=60))
def test_any_bytes_are_text_or_not(data):
    try:
        assert isinstance(as_text(data), str)
    except ValueError as error:
        assert not isinstance(error, InputError)


# --- recipes ---

values = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["adam", "cyclic", "flip", "head"])
)
anything = (
    values | st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=2)
)


@PLENTY
@given(st.data(), st.sampled_from([SplitConfig, Network, Stage]))
def test_any_value_of_a_field_is_taken_or_refused_in_a_line(data, kind):
    name = data.draw(st.sampled_from([field.name for field in dataclasses.fields(kind)]))
    value = data.draw(anything)
    try:
        made = kind(**{name: tuple(value) if isinstance(value, list) else value})
    except InputError as error:
        assert (
            name in str(error)
            or "trainable" in str(error)
            or "crop" in str(error)
            or "lr" in str(error)
        )
    else:
        for field in dataclasses.fields(made):
            content = getattr(made, field.name)
            for number in content if isinstance(content, tuple) else (content,):
                assert not isinstance(number, float) or math.isfinite(number)


@PLENTY
@given(st.data(), st.sampled_from(sorted(RECIPES)))
def test_a_stored_plan_is_read_back_or_refused_whatever_was_changed(data, recipe):
    config = RunConfig(RECIPES[recipe], "data.zip", seed=3)
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert RunConfig.read(stored) == config
    place = stored
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[name], dict):
            break
        parent, place = place, place[name]
    if isinstance(place.get(name), dict) or name not in place:
        place, name = parent, name
    change = data.draw(st.just("gone") | anything)
    if change == "gone":
        place.pop(name)
    else:
        place[name] = change
    try:
        again = RunConfig.read(json.loads(json.dumps(stored)))
    except InputError as error:
        assert "Traceback" not in str(error)
    else:
        assert isinstance(again, RunConfig) and again.recipe.base.epochs > 0


@pytest.mark.parametrize(
    "kind, name, value",
    [
        (Stage, "weight_decay", float("nan")),
        (Stage, "lr", float("inf")),
        (Stage, "epochs", 2.5),
        (Stage, "batch", True),
        (Stage, "flip", "sometimes"),
        (Stage, "trainable", ("head", 3)),
        (Network, "hidden", (1.5,)),
        (SplitConfig, "split_seed", -1),
        (SplitConfig, "split_kind", ["stratified"]),
    ],
)
def test_values_that_pass_every_comparison_are_refused(kind, name, value):
    with pytest.raises(InputError, match=name):
        kind(**{name: value})
    assert TUNED.finetune.weight_decay > 0
