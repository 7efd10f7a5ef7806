"""Figures of a page."""

import numpy as np

from tinynet.evaluation.predict import Explanation
from tinynet.plotting import inline_svg
from tinynet.report.figures import training_curves, view_votes


def test_figures_take_the_ink_of_the_page_and_say_what_they_show():
    svg = inline_svg(training_curves([], "a & b"), 'told "so" & <so>')
    assert svg.startswith("<svg role=") and "#000000" not in svg and "currentColor" in svg
    assert 'aria-label="told &quot;so&quot; &amp; &lt;so&gt;"' in svg


def test_a_figure_of_views_is_drawn_whatever_its_image_is_called():
    figure = view_votes(
        Explanation(["plain"], [np.zeros((8, 8, 3))], [("$^$", 0.5)], "$^$", "a$^$.jpg: $^$, 50%")
    )
    assert "a$^$.jpg" in inline_svg(figure, "votes")
