"""Rows of horizontal bars under their names: on one scale, or in panels side by side on the same axes.

A name above its bars takes no room beside them, so that nothing is cut off, however long it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from vramtune.reports.plots.style import SMALL_WORDS, WORDS_BOX, Look

NAME_HEIGHT = 0.42
"""Share of a row that its name takes; its bars share what is left."""
GAP_HEIGHT = 0.1
"""Share of a row under its bars."""
HEADING_HEIGHT = 0.6
"""Height of a panel's heading, in rows."""

PANEL_GAP = 0.06
"""Space between panels, as a share of a panel's width."""
BAR_ROOM = 0.6
"""Share of a panel that its longest bar takes; words stand behind it."""
WORDS_GAP = 0.02
"""Space between a bar and its words, as a share of a panel's width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar and the words behind it, or without a length only the words."""

    length: float | None
    words: str
    look: Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Bars in one unit, under a heading."""

    heading: str
    rows: tuple[tuple[Bar, ...], ...]
    """The bars that share each row, from the top down."""


def bar_height(num_bars: int = 1) -> float:
    """Height of each of the bars that share a row, in rows."""
    return (1 - NAME_HEIGHT - GAP_HEIGHT) / num_bars


def bar_middle(row: int, *, bar: int = 0, num_bars: int = 1) -> float:
    """Position of the middle of a bar on the vertical axis."""
    return row + NAME_HEIGHT + (bar + 0.5) * bar_height(num_bars)


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Write each row's name above where its bars go, and make room for all rows."""
    for row, name in enumerate(names):
        place = (0, row + NAME_HEIGHT / 2)
        ax.annotate(name, place, xycoords=ax.get_yaxis_transform(), bbox=WORDS_BOX, **SMALL_WORDS)
    ax.set_ylim(len(names), 0)
    ax.set_yticks([])
    ax.spines[["top", "right", "left"]].set_visible(False)


def draw_panels(ax: Axes, panels: Sequence[Panel], *, names: Sequence[str]) -> None:
    """Draw panels from left to right, each on a scale of its own, with the values in words."""
    name_rows(ax, names)
    ax.set_ylim(len(names), -HEADING_HEIGHT)
    for index, panel in enumerate(panels):
        left = index * (1 + PANEL_GAP)
        ax.text(left, -HEADING_HEIGHT / 2, panel.heading, fontweight="bold", **SMALL_WORDS)
        longest = max((bar.length or 0.0 for row in panel.rows for bar in row), default=0.0)
        for row, bars in enumerate(panel.rows):
            for number, bar in enumerate(bars):
                middle = bar_middle(row, bar=number, num_bars=len(bars))
                _draw_bar(ax, bar, left=left, middle=middle, height=bar_height(len(bars)), longest=longest)
    ax.set_xlim(0, len(panels) * (1 + PANEL_GAP) - PANEL_GAP)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)


def _draw_bar(ax: Axes, bar: Bar, *, left: float, middle: float, height: float, longest: float) -> None:
    width = BAR_ROOM * bar.length / longest if bar.length else 0.0
    ax.barh(middle, width, left=left, height=height, **bar.look.filled | {"linewidth": 0})
    ax.vlines(left, middle - height / 2, middle + height / 2, color="#9E9E9E", linewidth=0.8, clip_on=False)
    ax.text(left + width + WORDS_GAP, middle, bar.words, **SMALL_WORDS)
