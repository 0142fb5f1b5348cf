"""What was predicted beside what was measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from vramtune.reports.plots.bars import Bar, Panel, draw_panels
from vramtune.reports.plots.style import Look, legend_below, plain_words, titled_axes
from vramtune.reports.rows import beside_rows
from vramtune.schema import Estimate, MeasuredStage, Measurement, Plan, StageEstimate
from vramtune.units import format_bytes, format_seconds

PREDICTED = Look(color="#B8B8B8", hatch="////")
MEASURED = Look(color="#000000")
Amount = TypeVar("Amount", int, float)
Cost = StageEstimate | Estimate | MeasuredStage | Measurement
"""What a stage or a call takes."""

ROW_INCHES = 0.62
OTHER_INCHES = 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRow:
    """A stage or the whole call: the plan's estimate beside the measurement."""

    name: str
    predicted: StageEstimate | Estimate | None
    """None for a stage that the plan does not know."""
    measured: MeasuredStage | Measurement | None
    """None for a stage that did not run."""


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
    bound = format_seconds(plan.estimate.bound_seconds)
    whole_call = MeasuredRow(
        name=f"whole call (bound {bound}: no plan is faster)", predicted=plan.estimate, measured=measurement
    )
    stages = (
        MeasuredRow(name=row.label, predicted=row.predicted, measured=row.measured)
        for row in beside_rows(plan, measurement)
    )
    return MeasuredPlot(
        title=_title(measurement, plan),
        rows=(*stages, whole_call),
        is_context_measured=measurement.context_bytes is not None,
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


@plain_words
def draw_measured(plot: MeasuredPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = titled_axes(plot.title, height_inches=OTHER_INCHES + ROW_INCHES * len(plot.rows), ax=ax)
    panels = (
        Panel(
            heading="seconds", rows=tuple(_bars(row, lambda cost: cost.seconds, format_seconds) for row in plot.rows)
        ),
        Panel(
            heading="peak GPU memory",
            rows=tuple(_bars(row, lambda cost: cost.peak_bytes, format_bytes) for row in plot.rows),
        ),
    )
    draw_panels(ax, panels, names=[row.name for row in plot.rows])
    context = "" if plot.is_context_measured else " (peaks without the CUDA context)"
    looks = {"predicted": PREDICTED, f"measured{context}": MEASURED}
    legend_below(
        ax,
        num_columns=2,
        below_inches=0.05,
        handles=[Patch(label=label, **look.filled) for label, look in looks.items()],
    )
    return ax


def _bars(row: MeasuredRow, amount: Callable[[Cost], Amount], in_words: Callable[[Amount], str]) -> tuple[Bar, Bar]:
    """The two bars of a row; the measured one says how far it is from the predicted one."""
    predicted, measured = (amount(cost) if cost else None for cost in (row.predicted, row.measured))
    difference = _difference(measured / predicted - 1) if predicted and measured is not None else ""
    guess = "not in the plan" if predicted is None else in_words(predicted)
    truth = "did not run" if measured is None else in_words(measured) + difference
    return (Bar(length=predicted, words=guess, look=PREDICTED), Bar(length=measured, words=truth, look=MEASURED))


def _difference(fraction: float) -> str:
    percent = round(100 * fraction)
    return f" ({percent:+d}%)" if percent else " (as predicted)"
