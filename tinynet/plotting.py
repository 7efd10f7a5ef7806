"""Save matplotlib figures as files and as SVG inside a page."""

import hashlib
import io
import re
import warnings
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet.console import printable
from tinynet.files import atomic_file
from tinynet.interrupts import postponed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: "Figure", path: Any, described: str = "") -> None:
    """Write a figure as SVG where its name ends in .svg, else as PNG, whole or not at all.

    `described`: kept in the file, for whoever asks what it was drawn from.
    """
    with atomic_file(path) as stream:
        _save(
            figure,
            stream,
            format="svg" if Path(path).suffix == ".svg" else "png",
            dpi=110,
            metadata={"Description": printable(described)} if described else {},
        )


def _save(figure: "Figure", stream: Any, **how: Any) -> None:
    """Draw a figure whose words may be anything: names of runs and files stand in them."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
    for text in (*figure.texts, *(panel.title for panel in figure.axes)):
        text.set_parse_math(False)  # a file may be called $x$
    with postponed(), warnings.catch_warnings():
        # a letter that no font has is drawn as a box
        warnings.filterwarnings("ignore", r"Glyph .* missing")
        figure.savefig(stream, **how)


def inline_svg(figure: "Figure", described: str) -> str:
    """A figure as SVG inside a page: its ink is the page's, in both colour schemes; `described`:
    for who cannot see.
    """
    import matplotlib

    drawn, described = io.StringIO(), printable(described)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": described}):
        _save(figure, drawn, format="svg", transparent=True)
    svg = drawn.getvalue()
    svg = (
        svg[svg.index("<svg") :]
        .replace("#000000", "currentColor")
        .replace("fill: #ffffff", "fill: none")
    )
    # matplotlib gives every figure the same ids
    mark = "f" + hashlib.sha256(described.encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{mark}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(described, quote=True)}" ', 1)
