"""Plots as SVG that stands inside a page: no file around it, its own ids, colours that follow the page's theme."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DARK_LUMA = 100
"""Brightness, 0 to 255: darker colours are lost on a dark page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A plot on a page."""

    name: str
    """Unique on the page, a valid id."""
    caption: str
    svg: str
    """An `<svg>` element, to be written as it is."""


def svg_of(plot: Callable[[], Axes], *, name: str) -> Picture:
    """Draw by a noun's own method; the plot's title becomes the caption, which wraps where the page is narrow.

    Text stays text, and nothing depends on chance or on the date: equal nouns give equal pictures.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        axes = plot()
        caption = _caption(axes.get_title(loc="left"))
        axes.set_title("", loc="left")
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        _lay_out(figure)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Picture(name=name, caption=caption, svg=_inline(file.getvalue(), name=name))


def _lay_out(figure: Figure) -> None:
    """Settle where everything goes, once and for all: left to itself, saving lays out and draws twice."""
    layout = figure.get_layout_engine()
    if layout:
        layout.execute(figure)
        figure.set_layout_engine(None)


def _caption(title: str) -> str:
    """A title's words, without what stands before the colon: the page's own title says that."""
    words = " ".join((title.partition(":\n")[2] or title).split())
    return words[:1].upper() + words[1:]


def _inline(document: str, *, name: str) -> str:
    """The `<svg>` element of a file of matplotlib's, fit for a page with others of its kind."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"\s*<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})\b", _themed, svg)
    svg = re.sub(r'\bd="[^"]*"', _shorter_path, svg)
    return svg.replace("<svg", f'<svg role="img" aria-labelledby="{name}-caption"', 1)


def _themed(color: re.Match[str]) -> str:
    """A colour that stands out as much on a dark page: greys are ink on paper, dark colours are lifted there."""
    red, green, blue = (int(channel, 16) for channel in color.groups())
    if red == green == blue:
        return f"color-mix(in srgb, var(--ink) {1 - red / 255:.0%}, var(--paper))"
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    return f"color-mix(in srgb, {color[0]}, #ffffff var(--lift))" if luma < DARK_LUMA else color[0]


def _shorter_path(path: re.Match[str]) -> str:
    """A path in hundredths of a point: half as long, and nobody sees it."""
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path[0])
