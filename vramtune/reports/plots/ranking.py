"""One call on many GPUs: its seconds on each, and between what they are likely to be."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from vramtune.reports.plots.frontier import round_ticks
from vramtune.reports.plots.style import (
    BOUND_LINE,
    SMALL,
    SMALL_WORDS,
    WORDS_BOX,
    Look,
    Properties,
    legend_below,
    plain_words,
    titled_axes,
)
from vramtune.reports.rows import GpuRow, gpu_rows
from vramtune.schema import Ranking, Role
from vramtune.units import GIB, format_bytes, format_seconds

LOOKS: dict[Role, tuple[str, Look]] = {
    "resident": ("all weights stay on the GPU", Look(color="#009E73")),
    "offloaded": ("weights are loaded when a stage needs them", Look(color="#56B4E9", hatch="////")),
    "streamed": ("weights are streamed while others compute", Look(color="#E69F00", hatch="....")),
}
ROW_INCHES, OTHER_INCHES = 0.24, 1.9
BAR_HEIGHT = 0.7
BOUND_MARK: Properties = {
    "color": "black",
    "marker": "|",
    "markersize": 9,
    "linestyle": "",
    "label": "bound: no plan is faster",
}
MARGIN = 1.15
"""Factor between the outermost seconds and the ends of the axis."""
WORDS_ROOM = 1.6
"""Factor by which the axis is longer than its longest bar, for the seconds behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingPlot:
    """What `draw_ranking` draws."""

    title: str
    rows: tuple[GpuRow, ...]
    """From the top down."""
    most_seconds: float | None


def gpu_seconds(ranking: Ranking) -> RankingPlot:
    """Each GPU's seconds, in the ranking's order."""
    budget = f" in {format_bytes(ranking.asked_bytes)}" if ranking.asked_bytes is not None else ""
    return RankingPlot(
        title=f"{ranking.pipeline_class}{budget}:\nseconds per call on each GPU, predicted",
        rows=gpu_rows(ranking),
        most_seconds=ranking.most_seconds,
    )


@plain_words
def draw_ranking(plot: RankingPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = titled_axes(plot.title, height_inches=OTHER_INCHES + ROW_INCHES * len(plot.rows), ax=ax)
    _scale(plot, ax=ax)
    _draw_bars(plot, ax=ax)
    if plot.most_seconds is not None:
        ax.axvline(plot.most_seconds, label=f"{format_seconds(plot.most_seconds)} per call asked", **BOUND_LINE)
    legend_below(ax, num_columns=1)
    return ax


def _scale(plot: RankingPlot, *, ax: Axes) -> None:
    """A logarithmic axis of seconds, the GPUs from the top down."""
    ends = [end for row in plot.rows if row.fits for end in (row.low_seconds, row.seconds, row.high_seconds) if end]
    ends += [plot.most_seconds] if plot.most_seconds is not None else []
    low, high = min(ends, default=1.0) / MARGIN, max(ends, default=10.0) * WORDS_ROOM
    ax.set(xscale="log", xlabel="seconds per call (thin line: likely range; log scale)", xlim=(low, high))
    ticks = round_ticks(low, high)
    ax.xaxis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    names = [f"{row.gpu}, {row.memory_bytes / GIB:.0f} GiB" for row in plot.rows]
    ax.yaxis.set_ticks(range(len(names)), names, fontsize=SMALL, parse_math=False)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_bars(plot: RankingPlot, *, ax: Axes) -> None:
    left = ax.get_xlim()[0]
    for role, (label, look) in LOOKS.items():
        rows = [(number, row) for number, row in enumerate(plot.rows) if row.role == role]
        seconds = [row.seconds or left for _, row in rows]
        places = [number for number, _ in rows]
        bars = dict(height=BAR_HEIGHT, left=left, label=label if rows else None, **look.filled)
        ax.barh(places, [each - left for each in seconds], **bars)
        spans = [(row.low_seconds or left, row.high_seconds or left) for _, row in rows]
        ax.hlines(places, [low for low, _ in spans], [high for _, high in spans], color="black", linewidth=0.9)
    bounds = [(row.bound_seconds, number) for number, row in enumerate(plot.rows) if row.bound_seconds is not None]
    ax.plot(*zip(*bounds, strict=True) if bounds else ((), ()), **BOUND_MARK)
    for number, row in enumerate(plot.rows):
        if row.seconds is None:
            place, words = left, f"  does not fit: needs {format_bytes(row.least_bytes)}"
        else:
            place, words = row.high_seconds or row.seconds, f"  {format_seconds(row.seconds)}"
        ax.text(place, number, words, bbox=WORDS_BOX, **SMALL_WORDS)
