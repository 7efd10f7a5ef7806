"""Figures in files."""

import warnings

import pytest

from tinynet.plotting import save_figure
from tinynet.report.figures import training_curves


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
