"""Memory over one call: who holds how much of the GPU from moment to moment."""

import itertools
import math
import textwrap
from dataclasses import dataclass

from matplotlib.axes import Axes

from vramtune.reports.plots import style
from vramtune.reports.plots.owners import OTHER, Holding, Owner, held_by_owner, holdings
from vramtune.reports.rows import stage_label
from vramtune.schema import MemoryLevel, Timeline
from vramtune.units import GIB, format_seconds

LEVELS_PER_STAGE = 300
"""Levels of a stage that can be told apart; more are binned, and a bin shows its highest level, so no peak is lost."""
SMALL_FRACTION = 0.01
"""Share of the peak that an owner must reach once to be drawn by itself."""
NARROWEST_STAGE = 0.15
"""Least width of a stage, as a share of the call's seconds."""

CHARACTER = 0.0145
"""Width of a character under the axis, as a share of the axis."""
HEAD_ROOM = 1.3
"""Height of the axes, as a multiple of the highest value drawn."""
NAMED_PEAK_OWNERS = 3
PEAK_CHARACTERS = 66
"""Characters that fit on a line inside the axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBand:
    """A stretch of the time axis that one stage takes."""

    label: str
    start_seconds: float
    end_seconds: float
    left: float
    """Left edge on the axis (0-1). Time is to scale within a stage; short stages are drawn wider."""
    right: float

    @property
    def seconds(self) -> float:
        """How long the stage takes."""
        return self.end_seconds - self.start_seconds

    @property
    def middle(self) -> float:
        """Where its words stand on the axis (0-1)."""
        return (self.left + self.right) / 2

    def position(self, seconds: float) -> float:
        """Where a moment of the stage is on the axis (0-1)."""
        fraction = (seconds - self.start_seconds) / self.seconds if self.seconds > 0 else 0.0
        return self.left + fraction * (self.right - self.left)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlot:
    """What `draw_memory` draws."""

    title: str
    bands: tuple[StageBand, ...]
    edges: tuple[float, ...]
    """Borders of the levels on the axis (0-1): one more than there are levels."""
    layers: tuple[Holding, ...]
    """What each owner holds in the drawn levels, from the bottom up."""
    components: tuple[str, ...]
    """The pipeline's components in order of first use, which gives each its colour."""
    budget_gib: float
    peak_position: float
    peak_gib: float
    peak_stage: str
    peak_owners: tuple[tuple[Owner, float], ...]
    """Owners at the peak and their GiB, the largest first."""


def memory_over_call(timeline: Timeline) -> MemoryPlot:
    """Who holds how much of the GPU's memory from moment to moment of one steady call."""
    plan = timeline.plan
    runs = [list(run) for _, run in itertools.groupby(timeline.memory, key=lambda level: level.stage)]
    bands = _bands(runs, timeline)
    moments = [
        drawn
        for run, band in zip(runs, bands, strict=True)
        for drawn in _highest_moments(run, band=band, num_bins=LEVELS_PER_STAGE)
    ]
    peak = _peak(timeline)
    moment = (peak.start_seconds + peak.end_seconds) / 2
    held = sorted(held_by_owner(peak, timeline).items(), key=lambda item: -item[1])
    return MemoryPlot(
        title=style.plan_title(plan, "GPU memory over one call"),
        bands=bands,
        edges=(*(left for left, _ in moments), 1.0),
        layers=_layers([held_by_owner(level, timeline) for _, level in moments]),
        components=timeline.components,
        budget_gib=plan.budget_bytes / GIB,
        peak_position=next(band.position(moment) for band in bands if moment <= band.end_seconds),
        peak_gib=peak.held_bytes / GIB,
        peak_stage=plan.stages[peak.stage].name,
        peak_owners=tuple((owner, num_bytes / GIB) for owner, num_bytes in held if num_bytes),
    )


def _peak(timeline: Timeline) -> MemoryLevel:
    """The highest level; of equally high ones, such as the steps of a loop, the middle one."""
    highest = max(level.held_bytes for level in timeline.memory)
    peaks = [level for level in timeline.memory if level.held_bytes == highest]
    return peaks[len(peaks) // 2]


def _bands(runs: list[list[MemoryLevel]], timeline: Timeline) -> tuple[StageBand, ...]:
    """The stages along the axis: as wide as they are long, but never too narrow to see."""
    stages = [timeline.plan.stages[run[0].stage] for run in runs]
    seconds = [run[-1].end_seconds - run[0].start_seconds for run in runs]
    widths = [max(s, NARROWEST_STAGE * sum(seconds)) for s in seconds]
    borders = [0.0, *itertools.accumulate(width / sum(widths) for width in widths)]
    return tuple(
        StageBand(
            label=stage_label(stage.name, stage.num_iterations),
            start_seconds=run[0].start_seconds,
            end_seconds=run[-1].end_seconds,
            left=left,
            right=right,
        )
        for stage, run, (left, right) in zip(stages, runs, itertools.pairwise(borders), strict=True)
    )


def _highest_moments(run: list[MemoryLevel], *, band: StageBand, num_bins: int) -> list[tuple[float, MemoryLevel]]:
    """A stage's levels and where each begins; where there are too many, bins that show their highest level."""
    if len(run) <= num_bins or band.seconds <= 0:
        return [(band.position(level.start_seconds), level) for level in run]
    highest: dict[int, MemoryLevel] = {}
    for level in run:
        first = min(int((level.start_seconds - band.start_seconds) / band.seconds * num_bins), num_bins - 1)
        last = math.ceil((level.end_seconds - band.start_seconds) / band.seconds * num_bins)
        for index in range(first, min(max(last, first + 1), num_bins)):
            highest[index] = max(highest.get(index, level), level, key=lambda level: level.held_bytes)
    width = (band.right - band.left) / num_bins
    return [(band.left + index * width, level) for index, level in sorted(highest.items())]


def _layers(levels: list[dict[Owner, int]]) -> tuple[Holding, ...]:
    """One layer per owner from the bottom up; those that never hold much are one layer, the lowest."""
    threshold = SMALL_FRACTION * max(sum(held.values()) for held in levels)
    small = [owner for owner in levels[0] if max(held[owner] for held in levels) < threshold]
    layers = {owner: [held[owner] for held in levels] for owner in levels[0] if owner not in small}
    other = [sum(held[owner] for owner in small) for held in levels]
    return holdings({OTHER: other, **layers} if any(other) else layers)


@style.plain_words
def draw_memory(plot: MemoryPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = style.titled_axes(plot.title, height_inches=4.8, ax=ax)
    _draw_bands(plot.bands, ax=ax)
    _draw_layers(plot, ax=ax)
    ax.set_ylim(0, HEAD_ROOM * style.highest_drawn(plot.peak_gib, plot.budget_gib))
    style.draw_budget(plot.budget_gib, peak=plot.peak_gib, line=ax.axhline, ax=ax)
    _draw_peak(plot, ax=ax)
    ax.set_ylabel("GPU memory (GiB)")
    ax.set_xlim(0, 1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(reverse=True, **style.LEGEND_BESIDE)
    return ax


def _draw_bands(bands: tuple[StageBand, ...], *, ax: Axes) -> None:
    """Shade every other stage; write the names above and the durations below."""
    for band in bands[::2]:
        ax.axvspan(band.left, band.right, color="#EFEFEF", zorder=0)
    names = ax.secondary_xaxis("top")
    names.set_xticks([band.middle for band in bands], [band.label for band in bands])
    names.tick_params(length=0, labelrotation=30, labelsize=style.SMALL)
    for label in names.get_xticklabels():
        label.set(horizontalalignment="left", rotation_mode="anchor")
    names.spines["top"].set_visible(False)
    ax.set_xticks([band.left for band in bands], minor=True)
    ax.set_xticks([band.middle for band in bands], _durations(bands))
    ax.tick_params(axis="x", labelsize=style.SMALL, length=0)
    ax.set_xlabel("duration of each stage (to scale within a stage; short ones drawn wider)")


def _durations(bands: tuple[StageBand, ...]) -> list[str]:
    """Each stage's duration in words; where the axis has no room for all, only those of the longest stages."""
    labels = [""] * len(bands)
    taken: list[tuple[float, float]] = []
    for index, band in sorted(enumerate(bands), key=lambda numbered: -numbered[1].seconds):
        label = format_seconds(band.seconds)
        half = CHARACTER * (len(label) + 1) / 2
        start, end = band.middle - half, band.middle + half
        if all(end <= left or start >= right for left, right in taken):
            labels[index] = label
            taken.append((start, end))
    return labels


def _draw_layers(plot: MemoryPlot, *, ax: Axes) -> None:
    """Stack the owners from the bottom up."""
    lower = [0.0] * len(plot.edges)
    looks = style.owner_looks(plot.components)
    for layer in plot.layers:
        upper = [low + gib for low, gib in zip(lower, (*layer.gib, layer.gib[-1]), strict=True)]
        look = looks[layer.owner].filled
        ax.fill_between(plot.edges, lower, upper, step="post", label=layer.owner.name, **look)
        lower = upper


def _draw_peak(plot: MemoryPlot, *, ax: Axes) -> None:
    """Mark the peak and say who holds the memory then."""
    owners, others = list(plot.peak_owners[:NAMED_PEAK_OWNERS]), plot.peak_owners[NAMED_PEAK_OWNERS:]
    if others:
        owners.append((OTHER, sum(gib for _, gib in others)))
    parts = [f"{owner.name} {gib:.2f}".replace(" ", style.NO_BREAK) for owner, gib in owners]
    lines = textwrap.fill(", ".join(parts), PEAK_CHARACTERS)
    x, alignment = (0.01, "left") if plot.peak_position < 0.5 else (0.99, "right")
    ax.annotate(
        f"peak {plot.peak_gib:.2f} GiB in {plot.peak_stage}:\n{lines}",
        xy=(plot.peak_position, plot.peak_gib),
        xytext=(x, 0.985),
        textcoords=ax.transAxes,
        horizontalalignment=alignment,
        verticalalignment="top",
        fontsize=style.SMALL,
        arrowprops={"arrowstyle": "-|>", "color": "black", "shrinkB": 2},
    )
