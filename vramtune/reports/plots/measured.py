"""What was predicted beside what was measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from vramtune.reports.plots.bars import EDGE, Bar, Panel, draw_panels
from vramtune.reports.plots.style import Look, legend_below, own_axes, write_title
from vramtune.reports.rows import BesideRow, beside_rows, stage_label
from vramtune.schema import Measurement, Plan
from vramtune.units import format_bytes, format_seconds

PREDICTED = Look(color="#B8B8B8", hatch="////")
MEASURED = Look(color="#000000")
Amount = TypeVar("Amount", int, float)

WHOLE_CALL = "whole call"
ROW_INCHES = 0.62
OTHER_INCHES = 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a stage or of the whole call, predicted or measured."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """A stage or the whole call."""

    name: str
    predicted: Cost | None
    """None for a stage that the plan does not know."""
    measured: Cost | None
    """None for a stage that did not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPlot:
    """What `draw_measured` draws."""

    title: str
    rows: tuple[CostRow, ...]
    """The plan's stages, those that it does not know, the whole call."""
    is_context_measured: bool
    """Whether the CUDA context is in the measured peaks; it is in the predicted ones."""


def predicted_and_measured(measurement: Measurement, *, plan: Plan) -> MeasuredPlot:
    """The plan's estimate of a steady call beside a measured call."""
    estimate = plan.estimate
    whole = CostRow(
        name=f"{WHOLE_CALL} (bound {format_seconds(estimate.bound_seconds)}: no plan is faster)",
        predicted=Cost(seconds=estimate.seconds, peak_bytes=estimate.peak_bytes),
        measured=Cost(seconds=measurement.seconds, peak_bytes=measurement.peak_bytes),
    )
    return MeasuredPlot(
        title=_title(measurement, plan),
        rows=(*map(_stage_row, beside_rows(plan, measurement)), whole),
        is_context_measured=measurement.context_bytes is not None,
    )


def _stage_row(row: BesideRow) -> CostRow:
    return CostRow(
        name=stage_label(row.stage, row.num_iterations),
        predicted=_cost(row.predicted_seconds, row.predicted_peak_bytes),
        measured=_cost(row.measured_seconds, row.measured_peak_bytes),
    )


def _cost(seconds: float | None, peak_bytes: int | None) -> Cost | None:
    if seconds is None or peak_bytes is None:
        return None
    return Cost(seconds=seconds, peak_bytes=peak_bytes)


def _title(measurement: Measurement, plan: Plan) -> str:
    where = (
        f"predicted and measured on {measurement.device_name}"
        if measurement.device_name == plan.device_name
        else f"predicted for {plan.device_name}, measured on {measurement.device_name}"
    )
    again = measurement.num_out_of_memory
    failures = f"; out of memory {again} time{'s' if again > 1 else ''}" if again else ""
    return f"{plan.pipeline_class} in {format_bytes(plan.budget_bytes)}:\n{where}{failures}"


def draw_measured(plot: MeasuredPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = ax or own_axes(OTHER_INCHES + ROW_INCHES * len(plot.rows))
    panels = (
        Panel(heading="seconds", rows=tuple(_seconds_bars(row) for row in plot.rows)),
        Panel(heading="peak GPU memory", rows=tuple(_peak_bars(row) for row in plot.rows)),
    )
    draw_panels(ax, panels, names=[row.name for row in plot.rows])
    context = "" if plot.is_context_measured else " (peaks without the CUDA context)"
    looks = {"predicted": PREDICTED, f"measured{context}": MEASURED}
    legend_below(
        ax,
        num_columns=2,
        below_inches=0.05,
        handles=[
            Patch(label=label, facecolor=look.color, hatch=look.hatch, **EDGE)
            for label, look in looks.items()
        ],
    )
    write_title(ax, plot.title)
    return ax


def _seconds_bars(row: CostRow) -> tuple[Bar, Bar]:
    return _bars(
        row.predicted.seconds if row.predicted else None,
        row.measured.seconds if row.measured else None,
        format_seconds,
    )


def _peak_bars(row: CostRow) -> tuple[Bar, Bar]:
    return _bars(
        row.predicted.peak_bytes if row.predicted else None,
        row.measured.peak_bytes if row.measured else None,
        format_bytes,
    )


def _off(fraction: float) -> str:
    percent = round(100 * fraction)
    return f" ({percent:+d}%)" if percent else " (as predicted)"


def _bars(
    predicted: Amount | None, measured: Amount | None, in_words: Callable[[Amount], str]
) -> tuple[Bar, Bar]:
    """Both bars of a row, the measured one with how far off the prediction was."""
    off = _off(measured / predicted - 1) if predicted and measured is not None else ""
    return (
        Bar(
            length=predicted,
            words="not in the plan" if predicted is None else in_words(predicted),
            look=PREDICTED,
        ),
        Bar(
            length=measured,
            words="did not run" if measured is None else in_words(measured) + off,
            look=MEASURED,
        ),
    )
