"""What is on the GPU at each stage's peak."""

from dataclasses import dataclass

from matplotlib.axes import Axes

from vramtune.reports.plots.bars import EDGE, bar_height, bar_middle, name_rows
from vramtune.reports.plots.owners import Owner, held_by_owner
from vramtune.reports.plots.style import (
    SMALL,
    WORDS_BOX,
    draw_budget,
    highest_drawn,
    legend_below,
    own_axes,
    owner_looks,
    plan_title,
    write_title,
)
from vramtune.reports.rows import stage_label
from vramtune.schema import Timeline
from vramtune.units import GIB

ROW_INCHES = 0.5
OTHER_INCHES = 2.0
NARROWEST_NUMBER = 0.07
"""Share of the axis that a bar must take for its GiB to be written into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerBars:
    """What one owner holds, in GiB, at the peak of each stage."""

    owner: Owner
    gib: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeaksPlot:
    """What `draw_peaks` draws."""

    title: str
    stages: tuple[str, ...]
    """Names in call order, with the number of iterations."""
    owners: tuple[OwnerBars, ...]
    """Everything that holds memory at any of the peaks, from left to right."""
    components: tuple[str, ...]
    """The pipeline's components in order of first use, which gives each its colour."""
    budget_gib: float

    @property
    def totals_gib(self) -> tuple[float, ...]:
        """Sum over the owners, by stage."""
        return tuple(sum(held) for held in zip(*(bars.gib for bars in self.owners), strict=True))


def stage_peaks(timeline: Timeline) -> PeaksPlot:
    """What every owner holds at the highest moment of each stage of one steady call."""
    plan, stages = timeline.plan, timeline.plan.estimate.stages
    by_stage = [_held_at_peak(timeline, index) for index in range(len(stages))]
    return PeaksPlot(
        title=plan_title(plan, "what is on the GPU at the peak of each stage"),
        stages=tuple(stage_label(stage.name, stage.num_iterations) for stage in stages),
        owners=tuple(
            OwnerBars(owner=owner, gib=tuple(held[owner] / GIB for held in by_stage))
            for owner in by_stage[0]
            if any(held[owner] for held in by_stage)
        ),
        components=timeline.components,
        budget_gib=plan.budget_bytes / GIB,
    )


def _held_at_peak(timeline: Timeline, stage: int) -> dict[Owner, int]:
    """Bytes by owner at the highest level of a stage."""
    levels = (level for level in timeline.memory if level.stage == stage)
    return held_by_owner(max(levels, key=lambda level: level.held_bytes), timeline)


def draw_peaks(plot: PeaksPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = ax or own_axes(OTHER_INCHES + ROW_INCHES * len(plot.stages))
    totals = plot.totals_gib
    ax.set_xlim(0, 1.03 * highest_drawn(max(totals), plot.budget_gib))
    name_rows(ax, [f"{stage}: {gib:.2f} GiB" for stage, gib in zip(plot.stages, totals, strict=True)])
    _draw_owners(plot, ax=ax)
    draw_budget(plot.budget_gib, peak=max(totals), line=ax.axvline, ax=ax)
    ax.set_xlabel("GPU memory (GiB)")
    write_title(ax, plot.title)
    legend_below(ax, num_columns=4)
    return ax


def _draw_owners(plot: PeaksPlot, *, ax: Axes) -> None:
    """Stack the owners from left to right, each with its GiB where there is room for it."""
    looks = owner_looks(plot.components)
    left = [0.0] * len(plot.stages)
    rows = [bar_middle(row) for row in range(len(plot.stages))]
    for bars in plot.owners:
        look = looks[bars.owner]
        drawn = ax.barh(
            rows,
            bars.gib,
            left=left,
            height=bar_height(),
            label=bars.owner.name,
            facecolor=look.color,
            hatch=look.hatch,
            **EDGE,
        )
        wide = NARROWEST_NUMBER * ax.get_xlim()[1]
        ax.bar_label(
            drawn,
            [f"{gib:.2f}" if gib >= wide else "" for gib in bars.gib],
            label_type="center",
            fontsize=SMALL - 1,
            bbox=WORDS_BOX,
        )
        left = [start + gib for start, gib in zip(left, bars.gib, strict=True)]
