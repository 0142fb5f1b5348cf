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

ROW_INCHES = 0.62
OTHER_INCHES = 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRow:
    """A stage or the whole call: the plan's estimate beside the measurement.

    Estimates are None for a stage that the plan does not know, measurements for a stage that did not run.
    """

    name: str
    predicted_seconds: float | None
    measured_seconds: float | None
    predicted_peak_bytes: int | None
    measured_peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPlot:
    """What `draw_measured` draws."""

    title: str
    rows: tuple[MeasuredRow, ...]
    """The plan's stages, then stages that it does not know, then the whole call."""
    is_context_measured: bool
    """Whether the measured peaks include the CUDA context, as the predicted ones do."""


def predicted_and_measured(measurement: Measurement, *, plan: Plan) -> MeasuredPlot:
    """The plan's estimate of a steady call beside a measured call."""
    estimate = plan.estimate
    whole_call = MeasuredRow(
        name=f"whole call (bound {format_seconds(estimate.bound_seconds)}: no plan is faster)",
        predicted_seconds=estimate.seconds,
        measured_seconds=measurement.seconds,
        predicted_peak_bytes=estimate.peak_bytes,
        measured_peak_bytes=measurement.peak_bytes,
    )
    return MeasuredPlot(
        title=_title(measurement, plan),
        rows=(*map(_stage_row, beside_rows(plan, measurement)), whole_call),
        is_context_measured=measurement.context_bytes is not None,
    )


def _stage_row(row: BesideRow) -> MeasuredRow:
    return MeasuredRow(
        name=stage_label(row.stage, row.num_iterations),
        predicted_seconds=row.predicted_seconds,
        measured_seconds=row.measured_seconds,
        predicted_peak_bytes=row.predicted_peak_bytes,
        measured_peak_bytes=row.measured_peak_bytes,
    )


def _title(measurement: Measurement, plan: Plan) -> str:
    where = (
        f"predicted and measured on {measurement.device_name}"
        if measurement.device_name == plan.device_name
        else f"predicted for {plan.device_name}, measured on {measurement.device_name}"
    )
    times = measurement.num_out_of_memory
    failures = f"; ran out of memory {'once' if times == 1 else f'{times} times'}" if times else ""
    return f"{plan.pipeline_class} in {format_bytes(plan.budget_bytes)}:\n{where}{failures}"


def draw_measured(plot: MeasuredPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = ax or own_axes(OTHER_INCHES + ROW_INCHES * len(plot.rows))
    seconds = [_bars(row.predicted_seconds, row.measured_seconds, format_seconds) for row in plot.rows]
    peaks = [_bars(row.predicted_peak_bytes, row.measured_peak_bytes, format_bytes) for row in plot.rows]
    panels = (
        Panel(heading="seconds", rows=tuple(seconds)),
        Panel(heading="peak GPU memory", rows=tuple(peaks)),
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


def _bars(
    predicted: Amount | None, measured: Amount | None, in_words: Callable[[Amount], str]
) -> tuple[Bar, Bar]:
    """The two bars of a row; the measured one says how far it is from the predicted one."""
    difference = _difference(measured / predicted - 1) if predicted and measured is not None else ""
    return (
        Bar(
            length=predicted,
            words="not in the plan" if predicted is None else in_words(predicted),
            look=PREDICTED,
        ),
        Bar(
            length=measured,
            words="did not run" if measured is None else in_words(measured) + difference,
            look=MEASURED,
        ),
    )


def _difference(fraction: float) -> str:
    percent = round(100 * fraction)
    return f" ({percent:+d}%)" if percent else " (as predicted)"
