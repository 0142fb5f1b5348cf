"""Latency against VRAM: the plan, the bound and the stock modes."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from vramtune.reports.plots.style import (
    BOUND_LINE,
    SMALL,
    SMALL_WORDS,
    Properties,
    legend_below,
    plain_words,
    titled_axes,
)
from vramtune.reports.rows import StockRow, stock_row
from vramtune.schema import Frontier
from vramtune.units import GIB

MARKERS = ("s", "D", "^", "v", "P", "X", "*")
"""Markers of the stock modes, in their order; an eighth mode starts over."""
MARKER: Properties = {"color": "black", "markersize": 7}
MARKER_FILL = {True: "black", False: "white"}
"""Colour inside a marker, by whether the mode fits the card."""
MARKER_LABEL = {True: "stock mode", False: "stock mode that does not fit the card"}
LEADER: Properties = {"arrowstyle": "-", "color": "#AAAAAA", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
NAMES_BEGIN = 1.03
"""Left edge of the modes' names beside the axes, as a share of the axes' width."""
MARKER_WIDTH = 0.025
MARGIN = 1.12
"""Factor between the outermost values and the ends of an axis."""
LINE_SPACING = 1.4
"""Distance between the names beside the axes, in heights of a letter."""
FEWEST_TICKS = 3
CARD_GIB = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 80.0, 141.0, 192.0)
TICK_STEPS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0))
"""Ticks within a decade, the coarsest steps first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPlot:
    """What `draw_frontier` draws."""

    title: str
    budgets_gib: tuple[float, ...]
    """From the smallest that works to all that is usable on the card."""
    plan_seconds: tuple[float, ...]
    bound_seconds: tuple[float, ...]
    modes: tuple[StockRow, ...]
    """The stock modes at the peaks that they need."""
    usable_gib: float
    """Memory that is usable on the card."""


def latency_frontier(frontier: Frontier) -> FrontierPlot:
    """Seconds of the fastest plan and of the bound at each budget, and of the stock modes at their peaks.

    Past the last budget more memory buys nothing: the plan stays as fast, and the bound is compute alone.
    """
    usable_bytes = frontier.device.usable_bytes
    estimates = [point.estimate for point in frontier.points]
    compute_seconds = min(estimate.compute_seconds for estimate in estimates)
    return FrontierPlot(
        title=f"{frontier.pipeline_class} on {frontier.device.name}:\nseconds per call against GPU memory, predicted",
        budgets_gib=(*(point.budget_bytes / GIB for point in frontier.points), usable_bytes / GIB),
        plan_seconds=(*(estimate.seconds for estimate in estimates), estimates[-1].seconds),
        bound_seconds=(*(estimate.bound_seconds for estimate in estimates), compute_seconds),
        modes=tuple(stock_row(mode, frontier) for mode in frontier.stock),
        usable_gib=usable_bytes / GIB,
    )


@plain_words
def draw_frontier(plot: FrontierPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = titled_axes(plot.title, height_inches=5.0, ax=ax)
    _scale(plot, ax=ax)
    _draw_curves(plot, ax=ax)
    _draw_modes(plot, ax=ax)
    legend_below(ax, num_columns=2)
    return ax


def _scale(plot: FrontierPlot, *, ax: Axes) -> None:
    """Make both axes logarithmic, with ticks at round numbers and usual card sizes."""
    gib = [*plot.budgets_gib, *(mode.peak_bytes / GIB for mode in plot.modes)]
    seconds = [*plot.plan_seconds, *plot.bound_seconds, *(mode.seconds for mode in plot.modes)]
    ax.set(xscale="log", yscale="log", xlabel="GPU memory (GiB)", ylabel="seconds per call")
    ax.set_xlim(min(gib) / MARGIN, max(gib) * MARGIN)
    ax.set_ylim(min(seconds) / MARGIN, max(seconds) * MARGIN)
    for axis, ticks in ((ax.xaxis, gib_ticks(*ax.get_xlim())), (ax.yaxis, round_ticks(*ax.get_ylim()))):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_minor_locator(NullLocator())
    ax.spines[["top", "right"]].set_visible(False)


def gib_ticks(low: float, high: float) -> list[float]:
    """Memory sizes of cards, or round numbers where too few of those are in the range."""
    sizes = [gib for gib in CARD_GIB if low <= gib <= high]
    return sizes if len(sizes) >= FEWEST_TICKS else round_ticks(low, high)


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: the coarsest steps that give enough, evenly spaced on a short axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ladders = [[step * 10.0**decade for decade in decades for step in steps] for steps in TICK_STEPS]
    for ladder in (*ladders, MaxNLocator(nbins=5).tick_values(low, high)):
        ticks = [float(tick) for tick in ladder if low <= tick <= high]
        if len(ticks) >= FEWEST_TICKS:
            break
    return ticks


def _draw_curves(plot: FrontierPlot, *, ax: Axes) -> None:
    """Draw the plan and the bound as steps: a plan also works with more memory, a bound also holds with less."""
    ax.step(
        plot.budgets_gib,
        plot.plan_seconds,
        where="post",
        color="black",
        linewidth=2,
        marker="o",
        markersize=3.5,
        markevery=range(len(plot.budgets_gib) - 1),
        label="vramtune's plan",
    )
    ax.step(plot.budgets_gib, plot.bound_seconds, where="pre", label="bound: no plan is faster", **BOUND_LINE)
    ax.axvline(
        plot.usable_gib,
        color="#555555",
        linewidth=1,
        linestyle="-.",
        label=f"{plot.usable_gib:.2f} GiB usable on the card",
    )
    floor = ax.get_ylim()[0]
    ax.fill_between(plot.budgets_gib, floor, plot.bound_seconds, step="pre", facecolor="#EFEFEF", zorder=0)


def _draw_modes(plot: FrontierPlot, *, ax: Axes) -> None:
    """Draw a marker for each stock mode, joined to its name beside the axes; hollow where the card is too small."""
    low, high = map(math.log, ax.get_ylim())
    heights = [(math.log(mode.seconds) - low) / (high - low) for mode in plot.modes]
    letter = SMALL / 72 * ax.figure.dpi / ax.bbox.height
    beside = spread(heights, gap=LINE_SPACING * letter)
    for mode, height, marker in zip(plot.modes, beside, itertools.cycle(MARKERS), strict=False):
        look = MARKER | {"marker": marker, "markerfacecolor": MARKER_FILL[mode.fits]}
        point, beside_axes = (mode.peak_bytes / GIB, mode.seconds), (NAMES_BEGIN, height)
        ax.plot(*point, **look)
        ax.annotate("", point, beside_axes, textcoords=ax.transAxes, arrowprops=LEADER, zorder=1)
        ax.plot(*beside_axes, transform=ax.transAxes, clip_on=False, **look)
        ax.text(NAMES_BEGIN + MARKER_WIDTH, height, mode.mode, transform=ax.transAxes, **SMALL_WORDS)
    for fits in sorted({mode.fits for mode in plot.modes}, reverse=True):
        ax.plot([], [], "o", color="black", markerfacecolor=MARKER_FILL[fits], label=MARKER_LABEL[fits])


def spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Middles of labels, moved just enough to be `gap` apart, and to stay between 0 and 1 if all have room there."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    ceiling = 1 - gap / 2
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed
