"""One step of the longest stage: what computes, and what is copied meanwhile."""

import itertools
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb

from vramtune.reports.plots.bars import bar_height, bar_middle, name_rows
from vramtune.reports.plots.style import (
    Properties,
    component_looks,
    component_names,
    legend_below,
    own_axes,
    plan_title,
    write_title,
)
from vramtune.schema import Engine, Plan, Profile, Timeline
from vramtune.units import format_seconds

LANES: dict[Engine, str] = {"compute": "compute", "copy": "copy to the GPU"}
"""From the top down."""
ROWS = {engine: bar_middle(row) for row, engine in enumerate(LANES)}
STREAMED_TINT = 0.5
"""Streamed groups are that much of the way from their component's colour to white."""
IDLE: Properties = {"facecolor": "#EFEFEF", "edgecolor": "#9E9E9E", "linewidth": 0.6}
EDGE: Properties = {"edgecolor": "white", "linewidth": 0.1}
"""Hundreds of spans share a lane."""
HEIGHT_INCHES = 3.6


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSpan:
    """One engine busy with one weight group, in seconds from the start of the step."""

    engine: Engine
    component: str
    is_kept: bool
    """On the GPU throughout the stage; the others are streamed, copied at every visit."""
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LanesPlot:
    """What `draw_lanes` draws."""

    title: str
    seconds: float
    """Of the step, from the end of the one before it."""
    spans: tuple[LaneSpan, ...]
    components: tuple[str, ...]
    """All of the profile, by first use."""

    def busy_fraction(self, engine: Engine) -> float:
        """Share of the step for which an engine works."""
        spans = (span for span in self.spans if span.engine == engine)
        return sum(span.end_seconds - span.start_seconds for span in spans) / self.seconds


def step_lanes(timeline: Timeline, *, profile: Profile, plan: Plan) -> LanesPlot:
    """Both engines over the middle step of the stage that takes longest."""
    seconds = [stage.seconds for stage in plan.estimate.stages]
    index = seconds.index(max(seconds))
    stage, step = plan.stages[index], plan.stages[index].num_iterations // 2
    begin, end = _step_limits(timeline, index, num_iterations=stage.num_iterations, step=step)
    kept = _kept_groups(plan, index)
    which = (
        stage.name
        if stage.num_iterations == 1
        else f"step {step + 1} of {stage.num_iterations} of {stage.name}"
    )
    return LanesPlot(
        title=plan_title(plan, f"compute and copies in {which}"),
        seconds=end - begin,
        spans=tuple(
            LaneSpan(
                engine=span.engine,
                component=span.component,
                is_kept=(span.component, span.group) in kept,
                start_seconds=max(span.start_seconds, begin) - begin,
                end_seconds=min(span.end_seconds, end) - begin,
            )
            for span in timeline.spans
            if span.end_seconds > begin and span.start_seconds < end
        ),
        components=component_names(profile),
    )


def _step_limits(timeline: Timeline, stage: int, *, num_iterations: int, step: int) -> tuple[float, float]:
    """When a step begins and ends: its share of the stage's computing spans, from the end of the one before."""
    levels = [level for level in timeline.memory if level.stage == stage]
    start, end = levels[0].start_seconds, levels[-1].end_seconds
    computed = [
        span.end_seconds
        for span in timeline.spans
        if span.engine == "compute" and start <= span.start_seconds < end
    ]
    num_spans = len(computed) // num_iterations
    return (computed[step * num_spans - 1] if step else start), computed[(step + 1) * num_spans - 1]


def _kept_groups(plan: Plan, stage: int) -> set[tuple[str, str]]:
    return {
        (placement.component, group.name)
        for placement in plan.placements
        for group in placement.groups[: placement.kept[stage]]
    }


def draw_lanes(plot: LanesPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = ax or own_axes(HEIGHT_INCHES)
    name_rows(
        ax, [f"{name}: busy {plot.busy_fraction(engine):.0%} of the step" for engine, name in LANES.items()]
    )
    ax.barh(list(ROWS.values()), plot.seconds, height=bar_height(), label="idle", **IDLE)
    looks = component_looks(plot.components)
    for component, is_kept in itertools.product(plot.components, (True, False)):
        spans = [span for span in plot.spans if (span.component, span.is_kept) == (component, is_kept)]
        if spans:
            color = looks[component].color
            label = f"{component}, {'kept' if is_kept else 'streamed'}"
            _draw_spans(spans, ax=ax, color=to_rgb(color) if is_kept else _tinted(color), label=label)
    ax.set_xlim(0, plot.seconds)
    ax.set_xlabel(f"seconds (the step takes {format_seconds(plot.seconds)})")
    write_title(ax, plot.title)
    legend_below(ax, num_columns=3)
    return ax


def _draw_spans(spans: list[LaneSpan], *, ax: Axes, color: tuple[float, ...], label: str) -> None:
    corners = [_corners(span) for span in spans]
    ax.add_collection(PolyCollection(corners, facecolor=color, label=label, **EDGE), autolim=False)


def _corners(span: LaneSpan) -> list[tuple[float, float]]:
    low, high = ROWS[span.engine] - bar_height() / 2, ROWS[span.engine] + bar_height() / 2
    start, end = span.start_seconds, span.end_seconds
    return [(start, low), (end, low), (end, high), (start, high)]


def _tinted(color: str) -> tuple[float, ...]:
    return tuple(channel + STREAMED_TINT * (1 - channel) for channel in to_rgb(color))
