"""The ways to run a pipeline under one budget: the plan, the stock modes, the bound."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from vramtune.reports.plots.bars import bar_height, bar_middle, name_rows
from vramtune.reports.plots.style import BOUND_LINE, WORDS_BOX, Look, legend_below, plain_words, titled_axes
from vramtune.reports.rows import ModeRow, mode_rows
from vramtune.schema import PLAN_MODE, Comparison
from vramtune.units import format_bytes, format_seconds

COMPUTE, WAITING, UNFIT = "compute", "waiting for copies", " (does not fit)"
LOOKS = {
    COMPUTE: Look(color="#332288"),
    WAITING: Look(color="#56B4E9", hatch="////"),
    f"{COMPUTE}{UNFIT}": Look(color="#9A9A9A", hatch="xx"),
    f"{WAITING}{UNFIT}": Look(color="#C9C9C9", hatch="xx"),
}
CUT = "\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"
LONGEST_BAR = 6.0
"""Multiple of the fastest mode's seconds at which longer bars are cut off."""
ROW_INCHES = 0.45
OTHER_INCHES = 1.7


@dataclass(frozen=True, slots=True, kw_only=True)
class ModesPlot:
    """What `draw_modes` draws."""

    title: str
    rows: tuple[ModeRow, ...]
    """The modes that fit, then the others, the fastest first among each."""
    bound_seconds: float | None
    longest_seconds: float
    """Right end of the axis, and of the bars that are cut off."""


def mode_seconds(comparison: Comparison) -> ModesPlot:
    """Each mode's seconds, split into compute and waiting for copies."""
    rows = mode_rows(comparison)
    seconds = [row.seconds for row in rows]
    budget = format_bytes(comparison.budget_bytes)
    return ModesPlot(
        title=f"{comparison.pipeline_class} in {budget} of {comparison.device.name}:\n"
        "seconds per call in each mode, predicted",
        rows=rows,
        bound_seconds=comparison.bound_seconds,
        longest_seconds=min(max(seconds), LONGEST_BAR * min(seconds)),
    )


@plain_words
def draw_modes(plot: ModesPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = titled_axes(plot.title, height_inches=OTHER_INCHES + ROW_INCHES * len(plot.rows), ax=ax)
    name_rows(ax, [_name(row) for row in plot.rows])
    _draw_bars(plot, ax=ax)
    _draw_bound(plot, ax=ax)
    _draw_cuts(plot, ax=ax)
    ax.set_xlim(0, 1.03 * plot.longest_seconds)
    legend_below(ax, num_columns=3)
    return ax


def _name(row: ModeRow) -> str:
    ratio = "" if row.plan_ratio is None or row.mode == PLAN_MODE else f", {row.plan_ratio:.2f}x the plan's"
    unfit = "" if row.fits else f"; does not fit, needs {format_bytes(row.peak_bytes)}"
    return f"{row.mode}: {format_seconds(row.seconds)}{ratio}{unfit}"


def _draw_bars(plot: ModesPlot, *, ax: Axes) -> None:
    """Draw every mode's bar, up to the end of the axis."""
    bars = [_parts(row, plot.longest_seconds) for row in plot.rows]
    for label, look in LOOKS.items():
        limits = {index: parts[label] for index, parts in enumerate(bars) if label in parts}
        ax.barh(
            [bar_middle(index) for index in limits],
            [end - start for start, end in limits.values()],
            left=[start for start, _ in limits.values()],
            height=bar_height(),
            label=label if limits else None,
            **look.filled,
        )


def _parts(row: ModeRow, longest_seconds: float) -> dict[str, tuple[float, float]]:
    """Start and end of the parts of a bar, by label, without empty parts."""
    end = min(row.seconds, longest_seconds)
    compute = min(row.compute_seconds, end)
    unfit = "" if row.fits else UNFIT
    parts = {f"{COMPUTE}{unfit}": (0.0, compute), f"{WAITING}{unfit}": (compute, end)}
    return {label: (start, end) for label, (start, end) in parts.items() if end > start}


def _draw_bound(plot: ModesPlot, *, ax: Axes) -> None:
    if plot.bound_seconds is not None:
        ax.axvline(
            plot.bound_seconds,
            label=f"bound {format_seconds(plot.bound_seconds)}: no plan is faster",
            path_effects=[withStroke(linewidth=3.5, foreground="white")],
            **BOUND_LINE,
        )


def _draw_cuts(plot: ModesPlot, *, ax: Axes) -> None:
    """Mark the bars that are cut off, and explain the mark under the axis."""
    cut = [index for index, row in enumerate(plot.rows) if row.seconds > plot.longest_seconds]
    for index in cut:
        ax.annotate(
            CUT,
            xy=(plot.longest_seconds, bar_middle(index)),
            horizontalalignment="right",
            verticalalignment="center",
            fontweight="bold",
            bbox=WORDS_BOX,
        )
    ax.set_xlabel("seconds per call" + (f" ({CUT}: longer than the axis)" if cut else ""))
