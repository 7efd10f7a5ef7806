"""Save matplotlib figures as files and as SVG inside a page."""

import hashlib
import io
import re
import warnings
from html import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tinynet.console import printable
from tinynet.errors import InputError
from tinynet.files import atomic_file
from tinynet.interrupts import postponed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_path(path: str | Path) -> Path:
    """Return the path of a figure; raises `InputError` unless it is that of a PNG or an SVG."""
    ending = Path(path).suffix
    if ending.lower() not in ("", ".png", ".svg"):
        raise InputError(f"{path}: a figure cannot be a {ending} file; use .png or .svg")
    return Path(path)


def save_figure(figure: "Figure", path: str | Path, description: str = "") -> None:
    """Write a figure completely or not at all, as SVG if the path ends in .svg, else as PNG.

    `description`: stored in the file's metadata, for instance the source of the data.
    """
    text = "\n".join(map(printable, description.split("\n")))
    with atomic_file(path) as stream:
        _save(
            figure,
            stream,
            format="svg" if Path(path).suffix.lower() == ".svg" else "png",
            dpi=110,
            metadata={"Description": text} if text else {},
        )


def _save(figure: "Figure", stream: IO[Any], **options: Any) -> None:
    """Save a figure whose texts may contain any characters, because they contain file names."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
    for text in (*figure.texts, *(panel.title for panel in figure.axes)):
        text.set_parse_math(False)  # a file name may be $x$
    with postponed(), warnings.catch_warnings():
        # A character that is missing in all fonts is drawn as a box.
        warnings.filterwarnings("ignore", r"Glyph .* missing")
        figure.savefig(stream, **options)


def inline_svg(figure: "Figure", description: str) -> str:
    """Return a figure as an SVG element for an HTML page.

    Its lines and texts have the text colour of the page, in light and dark mode. `description`: the
    alternative text.
    """
    import matplotlib

    stream, description = io.StringIO(), printable(description)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        _save(figure, stream, format="svg", transparent=True)
    svg = stream.getvalue()
    svg = (
        svg[svg.index("<svg") :]
        .replace("#000000", "currentColor")
        .replace("fill: #ffffff", "fill: none")
    )
    # matplotlib gives every figure the same ids, so this figure gets its own prefix
    prefix = "f" + hashlib.sha256(description.encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    label = escape(description, quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
