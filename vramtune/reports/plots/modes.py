"""The ways to run a pipeline under one budget: the plan, the stock modes, the bound."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from vramtune.reports.plots.bars import EDGE, bar_height, bar_middle, name_rows
from vramtune.reports.plots.style import BOUND_LINE, WORDS_BOX, Look, legend_below, own_axes, write_title
from vramtune.reports.rows import ModeRow, mode_rows
from vramtune.schema import PLAN_MODE, Comparison, Profile
from vramtune.units import format_bytes, format_seconds

COMPUTE, EXPOSED_COPY, UNFIT = "compute", "exposed copy", " (does not fit)"
LOOKS = {
    COMPUTE: Look(color="#332288"),
    EXPOSED_COPY: Look(color="#56B4E9", hatch="////"),
    f"{COMPUTE}{UNFIT}": Look(color="#9A9A9A", hatch="xx"),
    f"{EXPOSED_COPY}{UNFIT}": Look(color="#C9C9C9", hatch="xx"),
}
CUT = "\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"
LONGEST_BAR = 6.0
"""Bars end at this many times the fastest mode's seconds; longer ones are cut off there."""
ROW_INCHES = 0.45
OTHER_INCHES = 1.7


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeBar:
    """One way to run the pipeline."""

    mode: str
    fits: bool
    compute_seconds: float
    exposed_copy_seconds: float
    """For which the GPU's arithmetic waits for copies, in or out."""
    peak_bytes: int
    plan_ratio: float | None
    """Its seconds over the plan's; None where there is no plan."""

    @property
    def seconds(self) -> float:
        """Of the whole call."""
        return self.compute_seconds + self.exposed_copy_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ModesPlot:
    """What `draw_modes` draws."""

    title: str
    bars: tuple[ModeBar, ...]
    """Those that fit first, the fastest first among them."""
    bound_seconds: float | None
    longest_seconds: float
    """Where the axis, and with it the longest bars, ends."""


def mode_seconds(comparison: Comparison, *, profile: Profile) -> ModesPlot:
    """Each mode's seconds, split into compute and the copies that nothing hides."""
    rows = mode_rows(comparison)
    seconds = [row.seconds for row in rows]
    return ModesPlot(
        title=f"{profile.pipeline_class} in {format_bytes(comparison.budget_bytes)} of {profile.device.name}:\n"
        "seconds of one call in each mode, predicted",
        bars=tuple(map(_bar, rows)),
        bound_seconds=comparison.bound_seconds,
        longest_seconds=min(max(seconds), LONGEST_BAR * min(seconds)),
    )


def _bar(row: ModeRow) -> ModeBar:
    return ModeBar(
        mode=row.mode,
        fits=bool(row.fits),
        compute_seconds=min(row.compute_seconds, row.seconds),
        exposed_copy_seconds=row.exposed_copy_seconds,
        peak_bytes=row.peak_bytes,
        plan_ratio=row.plan_ratio,
    )


def draw_modes(plot: ModesPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = ax or own_axes(OTHER_INCHES + ROW_INCHES * len(plot.bars))
    name_rows(ax, [_name(bar) for bar in plot.bars])
    _draw_bars(plot, ax=ax)
    _draw_bound(plot, ax=ax)
    _draw_cuts(plot, ax=ax)
    ax.set_xlim(0, 1.03 * plot.longest_seconds)
    write_title(ax, plot.title)
    legend_below(ax, num_columns=3)
    return ax


def _name(bar: ModeBar) -> str:
    ratio = "" if bar.plan_ratio is None or bar.mode == PLAN_MODE else f", {bar.plan_ratio:.2f}x as long"
    unfit = "" if bar.fits else f"; does not fit, needs {format_bytes(bar.peak_bytes)}"
    return f"{bar.mode}: {format_seconds(bar.seconds)}{ratio}{unfit}"


def _draw_bars(plot: ModesPlot, *, ax: Axes) -> None:
    """Every mode's bar, up to where the axis ends."""
    parts = [_parts(bar, plot.longest_seconds) for bar in plot.bars]
    for label, look in LOOKS.items():
        shown = {row: found[label] for row, found in enumerate(parts) if label in found}
        ax.barh(
            [bar_middle(row) for row in shown],
            [end - start for start, end in shown.values()],
            left=[start for start, _ in shown.values()],
            height=bar_height(),
            label=label if shown else None,
            facecolor=look.color,
            hatch=look.hatch,
            **EDGE,
        )


def _parts(bar: ModeBar, longest_seconds: float) -> dict[str, tuple[float, float]]:
    """Where the parts of a bar begin and end, without empty ones."""
    compute, end = min(bar.compute_seconds, longest_seconds), min(bar.seconds, longest_seconds)
    unfit = "" if bar.fits else UNFIT
    parts = {f"{COMPUTE}{unfit}": (0.0, compute), f"{EXPOSED_COPY}{unfit}": (compute, end)}
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
    """Show which bars go on, and say so under the axis."""
    cut = [row for row, bar in enumerate(plot.bars) if bar.seconds > plot.longest_seconds]
    for row in cut:
        ax.annotate(
            CUT,
            xy=(plot.longest_seconds, bar_middle(row)),
            horizontalalignment="right",
            verticalalignment="center",
            fontweight="bold",
            bbox=WORDS_BOX,
        )
    ax.set_xlabel("seconds of one call" + (f" ({CUT}: the bar goes on)" if cut else ""))
