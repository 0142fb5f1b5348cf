"""The two drawings of `idea.md`: a plan as a table, and weight groups on their way through the slots."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from vramtune.reports.plots.owners import ACTIVATIONS, CONTEXT, SLOTS
from vramtune.reports.plots.peaks import PeaksPlot, stage_peaks
from vramtune.reports.plots.style import (
    OWNER_LOOKS,
    SMALL,
    Look,
    Properties,
    component_looks,
    legend_below,
    own_axes,
    owner_looks,
    write_title,
)
from vramtune.schema import Placement, Plan, Span, Timeline
from vramtune.units import format_bytes, format_seconds

NAME_TOP, BAR_TOP, BAR_HEIGHT, WORDS_TOP = 0.15, 0.3, 0.32, 0.78
"""Heights in a row of the table, from its upper edge: middle of the name, the bars, middle of the words under them."""
BAR_WIDTH = 0.9
"""Share of a column that its bars take."""
LEGEND_LOOK = Look(color="#707070")
"""The look in the legend that stands for the components' own colours."""
WAIT = Look(color="#9E9E9E")
MILLISECONDS = 1e3
OUTLINE: Properties = {"fill": False, "edgecolor": "#9E9E9E", "linewidth": 0.7}
ACTIVE_OUTLINE: Properties = {"fill": False, "edgecolor": "black", "linewidth": 1.8}
EDGE: Properties = {"edgecolor": "white", "linewidth": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One component in one stage."""

    is_active: bool
    kept_fraction: float
    """Share of the component's bytes that is kept; while it runs, the rest is streamed."""
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlot:
    """What `draw_table` draws."""

    title: str
    stages: tuple[str, ...]
    """Names of the stages, with their seconds."""
    components: tuple[str, ...]
    """Names of the components that the plan places."""
    headings: tuple[str, ...]
    """For each of them, its name and how much weight it has in how many groups."""
    cells: tuple[tuple[Cell, ...], ...]
    """Cells by component and stage."""
    peaks: PeaksPlot


def plan_table(timeline: Timeline) -> TablePlot:
    """How much of each component (one placement each) is kept or streamed in each stage."""
    plan, peaks = timeline.plan, stage_peaks(timeline)
    by_name = {placement.component: placement for placement in plan.placements}
    components = tuple(name for name in timeline.components if name in by_name)
    return TablePlot(
        title=_title(plan, "the plan, weight groups by component and stage"),
        stages=tuple(
            f"{label}\n{format_seconds(stage.seconds)}"
            for label, stage in zip(peaks.stages, plan.estimate.stages, strict=True)
        ),
        components=components,
        headings=tuple(
            f"{name}: {format_bytes(_total_bytes(by_name[name]))} of weights in {len(by_name[name].groups)} groups"
            for name in components
        ),
        cells=tuple(tuple(_cell(by_name[name], stage) for stage in range(len(plan.stages))) for name in components),
        peaks=peaks,
    )


def _title(plan: Plan, what: str) -> str:
    """A title without the seconds: the drawing has them itself."""
    return f"{plan.pipeline_class} in {format_bytes(plan.budget_bytes)} of {plan.device_name}:\n{what}, predicted"


def _total_bytes(placement: Placement) -> int:
    return sum(group.weight_bytes for group in placement.groups)


def _cell(placement: Placement, stage: int) -> Cell:
    kept, total = placement.kept[stage], len(placement.groups)
    streamed = f", {total - kept} streamed" if placement.role(stage) == "streamed" else ""
    return Cell(
        is_active=placement.active[stage],
        kept_fraction=placement.kept_bytes(stage) / _total_bytes(placement),
        words=f"{kept} kept{streamed}",
    )


def draw_table(plot: TablePlot) -> Axes:
    """Draw it on a figure of its own."""
    num_rows = len(plot.components) + 1
    ax = own_axes(1.7 + 0.8 * num_rows)
    for row, (heading, cells) in enumerate(zip(plot.headings, plot.cells, strict=True)):
        _draw_heading(heading, row=row, ax=ax)
        look = component_looks(plot.peaks.components)[plot.components[row]]
        for column, cell in enumerate(cells):
            _draw_cell(cell, row=row, column=column, look=look, ax=ax)
    _draw_peaks(plot.peaks, row=num_rows - 1, ax=ax)
    ax.set_xlim(0, len(plot.stages) - 1 + BAR_WIDTH)
    ax.set_ylim(num_rows, 0)
    ax.spines[:].set_visible(False)
    ax.set_yticks([])
    ax.xaxis.tick_top()
    ax.set_xticks([column + BAR_WIDTH / 2 for column in range(len(plot.stages))], plot.stages)
    ax.tick_params(length=0, labelsize=SMALL)
    write_title(ax, plot.title)
    handles = [
        Patch(label="kept on the GPU", facecolor=LEGEND_LOOK.color),
        _patch("streamed through slots", OWNER_LOOKS[SLOTS]),
        Patch(label="absent (on the host only)", **OUTLINE),
        Patch(label="runs in this stage", **ACTIVE_OUTLINE),
        *(_patch(owner.name, OWNER_LOOKS[owner]) for owner in (ACTIVATIONS, CONTEXT)),
    ]
    legend_below(ax, num_columns=3, below_inches=0.1, handles=handles)
    return ax


def _patch(label: str, look: Look) -> Patch:
    return Patch(label=label, facecolor=look.color, hatch=look.hatch, **EDGE)


def _draw_heading(words: str, *, row: int, ax: Axes) -> None:
    ax.text(0, row + NAME_TOP, words, fontsize=SMALL, fontweight="bold", verticalalignment="center")


def _draw_cell(cell: Cell, *, row: int, column: int, look: Look, ax: Axes) -> None:
    kept = BAR_WIDTH * cell.kept_fraction
    _draw_part(column, kept, row=row, look=look, ax=ax)
    if cell.is_active:
        _draw_part(column + kept, BAR_WIDTH - kept, row=row, look=OWNER_LOOKS[SLOTS], ax=ax)
    outline = ACTIVE_OUTLINE if cell.is_active else OUTLINE
    ax.add_patch(Rectangle((column, row + BAR_TOP), BAR_WIDTH, BAR_HEIGHT, clip_on=False, **outline))
    _draw_words(cell.words, row=row, column=column, ax=ax)


def _draw_part(left: float, width: float, *, row: int, look: Look, ax: Axes) -> None:
    place: Properties = {"left": left, "height": BAR_HEIGHT, "align": "edge"}
    ax.barh(row + BAR_TOP, width, facecolor=look.color, hatch=look.hatch, **place, **EDGE)


def _draw_words(words: str, *, row: int, column: int, ax: Axes) -> None:
    ax.text(column, row + WORDS_TOP, words, fontsize=SMALL, verticalalignment="center")


def _draw_peaks(peaks: PeaksPlot, *, row: int, ax: Axes) -> None:
    """Draw what all of it takes together; the full width of a bar is the budget."""
    _draw_heading(f"GPU memory at each stage's peak, of a budget of {peaks.budget_gib:.2f} GiB", row=row, ax=ax)
    looks = owner_looks(peaks.components)
    for column, total_gib in enumerate(peaks.totals_gib):
        left = float(column)
        for bars in peaks.owners:
            width = BAR_WIDTH * bars.gib[column] / peaks.budget_gib
            _draw_part(left, width, row=row, look=looks[bars.owner], ax=ax)
            left += width
        ax.add_patch(Rectangle((column, row + BAR_TOP), BAR_WIDTH, BAR_HEIGHT, clip_on=False, **OUTLINE))
        _draw_words(f"{total_gib:.2f} GiB", row=row, column=column, ax=ax)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One visit of a weight group, in seconds from the start of the drawing."""

    name: str
    copy_seconds: tuple[float, float] | None
    """Start and end of its copy; None for a group that is kept."""
    compute_seconds: tuple[float, float]
    """Start and end of its computation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlot:
    """What `draw_stream` draws."""

    title: str
    component: str
    components: tuple[str, ...]
    passages: tuple[Passage, ...]


def stream_passages(timeline: Timeline, *, first: int, num_groups: int) -> StreamPlot:
    """Successive visits in the middle step of the longest stage, which has one active component."""
    plan, stages = timeline.plan, timeline.plan.estimate.stages
    index = max(range(len(stages)), key=lambda stage: stages[stage].seconds)
    placement = next(p for p in plan.placements if p.active[index])
    step = (index, stages[index].num_iterations // 2)
    spans = [span for span in timeline.spans if (span.stage, span.iteration) == step]
    computes = [span for span in spans if span.engine == "compute"][first : first + num_groups]
    copies = [None if span.is_kept else _copy_of(span, spans) for span in computes]
    begin = min(span.start_seconds for span in (*computes, *copies) if span is not None)
    sizes = {group.name: group.weight_bytes for group in placement.groups}
    return StreamPlot(
        title=_title(plan, f"{num_groups} weight groups of {placement.component}, one after the other"),
        component=placement.component,
        components=timeline.components,
        passages=tuple(
            Passage(
                name=f"{format_bytes(sizes[span.group])}, {'streamed' if copy else 'kept'}",
                copy_seconds=(copy.start_seconds - begin, copy.end_seconds - begin) if copy else None,
                compute_seconds=(span.start_seconds - begin, span.end_seconds - begin),
            )
            for span, copy in zip(computes, copies, strict=True)
        ),
    )


def _copy_of(compute: Span, spans: list[Span]) -> Span:
    """The last copy of the group before this computation."""
    copies = [s for s in spans if s.engine == "copy" and s.group == compute.group]
    return max((s for s in copies if s.end_seconds <= compute.start_seconds), key=lambda span: span.end_seconds)


def draw_stream(plot: StreamPlot) -> Axes:
    """Draw it on a figure of its own."""
    ax = own_axes(1.5 + 0.3 * len(plot.passages))
    look, slots = component_looks(plot.components)[plot.component], OWNER_LOOKS[SLOTS]
    for row, passage in enumerate(plot.passages):
        start, end = passage.compute_seconds
        if passage.copy_seconds is not None:
            copied, ready = passage.copy_seconds
            _draw_stretch(copied, ready, row=row, look=slots, ax=ax)
            _draw_stretch(ready, start, row=row, look=WAIT, height=0.12, ax=ax)
        _draw_stretch(start, end, row=row, look=look, ax=ax)
    ax.set_yticks(range(len(plot.passages)), [passage.name for passage in plot.passages])
    ax.tick_params(axis="y", length=0)
    ax.tick_params(labelsize=SMALL)
    ax.set_ylim(len(plot.passages) - 0.4, -0.6)
    ax.set_xlim(0, MILLISECONDS * plot.passages[-1].compute_seconds[1])
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel("milliseconds")
    write_title(ax, plot.title)
    handles = [
        _patch("copied into a slot", slots),
        _patch("waits in its slot", WAIT),
        _patch("computes, then leaves its slot", look),
    ]
    legend_below(ax, num_columns=3, handles=handles)
    return ax


def _draw_stretch(
    start_seconds: float, end_seconds: float, *, row: int, look: Look, ax: Axes, height: float = 0.7
) -> None:
    width, left = MILLISECONDS * (end_seconds - start_seconds), MILLISECONDS * start_seconds
    ax.barh(row, width, left=left, height=height, facecolor=look.color, hatch=look.hatch, **EDGE)
