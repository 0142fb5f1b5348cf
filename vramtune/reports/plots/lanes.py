"""One step of the longest stage: what computes, and what is copied meanwhile."""

import itertools
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb

from vramtune.reports.plots import style
from vramtune.reports.plots.bars import bar_height, bar_middle, name_rows
from vramtune.schema import Engine, Span, Timeline
from vramtune.units import format_seconds

LANES: dict[Engine, str] = {"compute": "compute", "copy": "copy to the GPU"}
"""Names of the lanes, from the top down."""
ROWS = {engine: bar_middle(row) for row, engine in enumerate(LANES)}
STREAMED_TINT = 0.5
"""How far the colour of streamed groups is from their component's colour to white (0-1)."""
IDLE: style.Properties = {"facecolor": "#EFEFEF", "edgecolor": "#9E9E9E", "linewidth": 0.6}
EDGE: style.Properties = {"edgecolor": "white", "linewidth": 0.1}
"""Thin, because hundreds of spans share a lane."""
HEIGHT_INCHES = 3.6


@dataclass(frozen=True, slots=True, kw_only=True)
class LanesPlot:
    """What `draw_lanes` draws."""

    title: str
    seconds: float
    """Length of the step, from the end of the step before."""
    spans: tuple[Span, ...]
    """What each engine does in the step, in seconds from its start, cut off at its ends."""
    components: tuple[str, ...]
    """The pipeline's components in order of first use, which gives each its colour."""

    def busy_fraction(self, engine: Engine) -> float:
        """Share of the step for which an engine works."""
        spans = (span for span in self.spans if span.engine == engine)
        return sum(span.end_seconds - span.start_seconds for span in spans) / self.seconds


def step_lanes(timeline: Timeline) -> LanesPlot:
    """Both engines over the middle step of the stage that takes longest."""
    plan, stages = timeline.plan, timeline.plan.estimate.stages
    index = max(range(len(stages)), key=lambda stage: stages[stage].seconds)
    name, num_steps = stages[index].name, stages[index].num_iterations
    step = num_steps // 2
    begin, end = _end_of(step - 1, timeline, stage=index), _end_of(step, timeline, stage=index)
    which = name if num_steps == 1 else f"step {step + 1} of {num_steps} of {name}"
    return LanesPlot(
        title=style.plan_title(plan, f"compute and copies in {which}"),
        seconds=end - begin,
        spans=tuple(
            replace(
                span,
                start_seconds=max(span.start_seconds, begin) - begin,
                end_seconds=min(span.end_seconds, end) - begin,
            )
            for span in timeline.spans
            if span.end_seconds > begin and span.start_seconds < end
        ),
        components=timeline.components,
    )


def _end_of(step: int, timeline: Timeline, *, stage: int) -> float:
    """When the last group of a step has computed; the end of step -1 is the start of the stage."""
    if step < 0:
        return min(level.start_seconds for level in timeline.memory if level.stage == stage)
    return max(
        span.end_seconds
        for span in timeline.spans
        if (span.engine, span.stage, span.iteration) == ("compute", stage, step)
    )


@style.plain_words
def draw_lanes(plot: LanesPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = style.titled_axes(plot.title, height_inches=HEIGHT_INCHES, ax=ax)
    name_rows(ax, [f"{name}: busy {plot.busy_fraction(engine):.0%} of the step" for engine, name in LANES.items()])
    ax.barh(list(ROWS.values()), plot.seconds, height=bar_height(), label="idle", **IDLE)
    looks = style.component_looks(plot.components)
    for component, is_kept in itertools.product(plot.components, (True, False)):
        spans = [span for span in plot.spans if (span.component, span.is_kept) == (component, is_kept)]
        if spans:
            color = looks[component].color
            label = f"{component}, {'kept' if is_kept else 'streamed'}"
            _draw_spans(spans, ax=ax, color=to_rgb(color) if is_kept else _tinted(color), label=label)
    ax.set_xlim(0, plot.seconds)
    ax.set_xlabel(f"seconds (the step takes {format_seconds(plot.seconds)})")
    style.legend_below(ax, num_columns=3)
    return ax


def _draw_spans(spans: list[Span], *, ax: Axes, color: tuple[float, ...], label: str) -> None:
    corners = [_corners(span) for span in spans]
    ax.add_collection(PolyCollection(corners, facecolor=color, label=label, **EDGE), autolim=False)


def _corners(span: Span) -> list[tuple[float, float]]:
    low, high = ROWS[span.engine] - bar_height() / 2, ROWS[span.engine] + bar_height() / 2
    start, end = span.start_seconds, span.end_seconds
    return [(start, low), (end, low), (end, high), (start, high)]


def _tinted(color: str) -> tuple[float, ...]:
    return tuple(channel + STREAMED_TINT * (1 - channel) for channel in to_rgb(color))
