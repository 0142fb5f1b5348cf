"""What is on the GPU at each stage's peak."""

from dataclasses import dataclass

from matplotlib.axes import Axes

from vramtune.reports.plots import style
from vramtune.reports.plots.bars import bar_height, bar_middle, name_rows
from vramtune.reports.plots.owners import Holding, Owner, held_by_owner, holdings
from vramtune.reports.rows import stage_label
from vramtune.schema import Timeline
from vramtune.units import GIB

ROW_INCHES = 0.5
OTHER_INCHES = 2.0
NARROWEST_NUMBER = 0.07
"""Share of the axis that a bar must take for its GiB to be written into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeaksPlot:
    """What `draw_peaks` draws."""

    title: str
    stages: tuple[str, ...]
    """Names in call order, with the number of iterations."""
    owners: tuple[Holding, ...]
    """What everything holds at the peak of each stage, from left to right."""
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
    by_owner = {owner: [held[owner] for held in by_stage] for owner in by_stage[0]}
    return PeaksPlot(
        title=style.plan_title(plan, "what is on the GPU at the peak of each stage"),
        stages=tuple(stage_label(stage.name, stage.num_iterations) for stage in stages),
        owners=holdings({owner: held for owner, held in by_owner.items() if any(held)}),
        components=timeline.components,
        budget_gib=plan.budget_bytes / GIB,
    )


def _held_at_peak(timeline: Timeline, stage: int) -> dict[Owner, int]:
    """Bytes by owner at the highest level of a stage."""
    levels = (level for level in timeline.memory if level.stage == stage)
    return held_by_owner(max(levels, key=lambda level: level.held_bytes), timeline)


@style.plain_words
def draw_peaks(plot: PeaksPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = style.titled_axes(plot.title, height_inches=OTHER_INCHES + ROW_INCHES * len(plot.stages), ax=ax)
    totals = plot.totals_gib
    ax.set_xlim(0, 1.03 * style.highest_drawn(max(totals), plot.budget_gib))
    name_rows(ax, [f"{stage}: {gib:.2f} GiB" for stage, gib in zip(plot.stages, totals, strict=True)])
    _draw_owners(plot, ax=ax)
    style.draw_budget(plot.budget_gib, peak=max(totals), line=ax.axvline, ax=ax)
    ax.set_xlabel("GPU memory (GiB)")
    style.legend_below(ax, num_columns=4)
    return ax


def _draw_owners(plot: PeaksPlot, *, ax: Axes) -> None:
    """Stack the owners from left to right, each with its GiB where there is room for it."""
    looks = style.owner_looks(plot.components)
    left = [0.0] * len(plot.stages)
    rows = [bar_middle(row) for row in range(len(plot.stages))]
    for bars in plot.owners:
        place: style.Properties = {"left": left, "height": bar_height(), "label": bars.owner.name}
        drawn = ax.barh(rows, bars.gib, **place, **looks[bars.owner].filled)
        wide = NARROWEST_NUMBER * ax.get_xlim()[1]
        ax.bar_label(
            drawn,
            [f"{gib:.2f}" if gib >= wide else "" for gib in bars.gib],
            label_type="center",
            fontsize=style.SMALL - 1,
            bbox=style.WORDS_BOX,
        )
        left = [start + gib for start, gib in zip(left, bars.gib, strict=True)]
