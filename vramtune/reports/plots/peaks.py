"""What is on the GPU at each stage's peak."""

from dataclasses import dataclass

from matplotlib.axes import Axes

from vramtune.reports.plots.bars import EDGE, bar_height, bar_middle, name_rows
from vramtune.reports.plots.style import (
    BUDGET_LINE,
    SMALL,
    WORDS_BOX,
    component_names,
    highest_drawn,
    legend_below,
    own_axes,
    owner_looks,
    owners_in_order,
    plan_title,
    write_title,
)
from vramtune.reports.rows import stage_label
from vramtune.schema import Plan, Profile, Timeline
from vramtune.units import GIB

ROW_INCHES = 0.5
OTHER_INCHES = 2.0
NARROWEST_NUMBER = 0.07
"""Parts of at least this share of the axis have their GiB written into them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerBars:
    """What one owner holds, in GiB, at the peak of each stage."""

    owner: str
    gib: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeaksPlot:
    """What `draw_peaks` draws."""

    title: str
    stages: tuple[str, ...]
    """In call order, with how often they repeat."""
    owners: tuple[OwnerBars, ...]
    """From left to right, without those that never hold anything."""
    components: tuple[str, ...]
    """All of the profile, by first use, which gives each its look."""
    budget_gib: float

    @property
    def totals_gib(self) -> tuple[float, ...]:
        """By stage, of all owners."""
        return tuple(sum(held) for held in zip(*(bars.gib for bars in self.owners), strict=True))


def stage_peaks(timeline: Timeline, *, profile: Profile, plan: Plan) -> PeaksPlot:
    """Who holds how much at the highest moment of each stage of one steady call."""
    stages = profile.stages_with(plan.permissions)
    components = component_names(profile)
    by_stage = [_highest(timeline, index) for index in range(len(stages))]
    return PeaksPlot(
        title=plan_title(plan, "what is on the GPU at the peak of each stage"),
        stages=tuple(stage_label(stage.name, stage.num_iterations) for stage in stages),
        owners=tuple(
            OwnerBars(owner=owner, gib=tuple(held.get(owner, 0) / GIB for held in by_stage))
            for owner in owners_in_order(components)
            if any(held.get(owner) for held in by_stage)
        ),
        components=components,
        budget_gib=plan.budget_bytes / GIB,
    )


def _highest(timeline: Timeline, stage: int) -> dict[str, int]:
    """Bytes by owner at a stage's highest level."""
    levels = (level.owners for level in timeline.memory if level.stage == stage)
    return max(levels, key=lambda owners: sum(owners.values()))


def draw_peaks(plot: PeaksPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = ax or own_axes(OTHER_INCHES + ROW_INCHES * len(plot.stages))
    totals = plot.totals_gib
    ax.set_xlim(0, 1.03 * highest_drawn(max(totals), plot.budget_gib))
    name_rows(ax, [f"{stage}: {gib:.2f} GiB" for stage, gib in zip(plot.stages, totals, strict=True)])
    _draw_owners(plot, ax=ax)
    _draw_budget(plot.budget_gib, ax=ax)
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
            label=bars.owner,
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


def _draw_budget(budget_gib: float, *, ax: Axes) -> None:
    label = f"budget {budget_gib:.2f} GiB"
    if budget_gib <= ax.get_xlim()[1]:
        ax.axvline(budget_gib, label=label, **BUDGET_LINE)
    else:
        ax.plot([], [], label=f"{label} (beyond)", **BUDGET_LINE)
