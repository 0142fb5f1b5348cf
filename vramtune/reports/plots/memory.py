"""Memory over one call: who holds how much of the GPU from moment to moment."""

import itertools
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from vramtune.reports.plots.style import (
    BUDGET_LINE,
    LEGEND_BESIDE,
    NO_BREAK,
    OTHER,
    SMALL,
    component_names,
    highest_drawn,
    own_axes,
    owner_looks,
    owners_in_order,
    plan_title,
    save,
    write_title,
)
from vramtune.reports.rows import stage_label
from vramtune.schema import MemoryLevel, Plan, Profile, Timeline
from vramtune.units import GIB, format_seconds

LEVELS_PER_STAGE = 300
"""More than that cannot be told apart on paper; a bin shows its highest moment, so no peak is lost."""
SMALL_FRACTION = 0.01
"""Owners that never hold more than this share of the peak are drawn together."""
NARROWEST_STAGE = 0.15
"""Share of the call's seconds that a stage's width stands for at least, or it could not be seen."""

CHARACTER = 0.0145
"""Width of one under the axis, as a share of the axis."""
HEAD_ROOM = 1.25
NAMED_PEAK_OWNERS = 3
PEAK_CHARACTERS = 66
"""That many fit on a line over the axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBand:
    """A stretch of the time axis that one stage takes."""

    label: str
    start_seconds: float
    end_seconds: float
    left: float
    """Where it is drawn, 0 to 1: time is to scale within a stage, and short stages are drawn wider."""
    right: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerLayer:
    """What one owner holds, in GiB, in each of the drawn levels."""

    owner: str
    gib: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlot:
    """What `draw_memory` draws."""

    title: str
    bands: tuple[StageBand, ...]
    edges: tuple[float, ...]
    """Borders of the levels along the axis, 0 to 1: one more than there are levels."""
    layers: tuple[OwnerLayer, ...]
    """From the bottom up."""
    components: tuple[str, ...]
    """All of the profile, by first use, which gives each its colour."""
    budget_gib: float
    peak_position: float
    peak_gib: float
    peak_stage: str
    peak_owners: tuple[tuple[str, float], ...]
    """In GiB, the largest first."""


def memory_over_call(timeline: Timeline, *, profile: Profile, plan: Plan) -> MemoryPlot:
    """Who holds how much of the GPU's memory from moment to moment of one steady call."""
    runs = [list(run) for _, run in itertools.groupby(timeline.memory, key=lambda level: level.stage)]
    bands = _bands(runs, profile=profile, plan=plan)
    moments = [
        moment
        for run, band in zip(runs, bands, strict=True)
        for moment in _highest_moments(run, band=band, num_bins=LEVELS_PER_STAGE)
    ]
    components = component_names(profile)
    peak = _peak(timeline)
    return MemoryPlot(
        title=plan_title(plan, "GPU memory over one call"),
        bands=bands,
        edges=(*(left for left, _ in moments), 1.0),
        layers=_layers([level for _, level in moments], components=components),
        components=components,
        budget_gib=plan.budget_bytes / GIB,
        peak_position=_position(peak.start_seconds, peak.end_seconds, bands),
        peak_gib=_held_bytes(peak) / GIB,
        peak_stage=plan.stages[peak.stage].name,
        peak_owners=_largest_owners(peak),
    )


def _peak(timeline: Timeline) -> MemoryLevel:
    """The highest level; of equals, such as the steps of a loop, the middle one."""
    highest = max(map(_held_bytes, timeline.memory))
    peaks = [level for level in timeline.memory if _held_bytes(level) == highest]
    return peaks[len(peaks) // 2]


def _held_bytes(level: MemoryLevel) -> int:
    return sum(level.owners.values())


def _largest_owners(level: MemoryLevel) -> tuple[tuple[str, float], ...]:
    held = sorted(level.owners.items(), key=lambda owner: -owner[1])
    return tuple((owner, num_bytes / GIB) for owner, num_bytes in held if num_bytes)


def _bands(runs: list[list[MemoryLevel]], *, profile: Profile, plan: Plan) -> tuple[StageBand, ...]:
    """The stages along the axis: as wide as they are long, but never too narrow to see."""
    repeats = [stage.num_iterations for stage in profile.stages_with(plan.permissions)]
    seconds = [run[-1].end_seconds - run[0].start_seconds for run in runs]
    widths = [max(s, NARROWEST_STAGE * sum(seconds)) for s in seconds]
    borders = [0.0, *itertools.accumulate(width / sum(widths) for width in widths)]
    return tuple(
        StageBand(
            label=stage_label(plan.stages[run[0].stage].name, repeats[run[0].stage]),
            start_seconds=run[0].start_seconds,
            end_seconds=run[-1].end_seconds,
            left=left,
            right=right,
        )
        for run, (left, right) in zip(runs, itertools.pairwise(borders), strict=True)
    )


def _highest_moments(
    run: list[MemoryLevel], *, band: StageBand, num_bins: int
) -> list[tuple[float, MemoryLevel]]:
    """A stage's levels and where each begins; many of them become bins that show their highest moment."""
    span = band.end_seconds - band.start_seconds
    if len(run) <= num_bins or span <= 0:
        return [(_within(level.start_seconds, band), level) for level in run]
    highest: dict[int, MemoryLevel] = {}
    for level in run:
        first = min(int((level.start_seconds - band.start_seconds) / span * num_bins), num_bins - 1)
        last = math.ceil((level.end_seconds - band.start_seconds) / span * num_bins)
        for index in range(first, min(max(last, first + 1), num_bins)):
            highest[index] = max(highest.get(index, level), level, key=_held_bytes)
    width = (band.right - band.left) / num_bins
    return [(band.left + index * width, level) for index, level in sorted(highest.items())]


def _within(seconds: float, band: StageBand) -> float:
    span = band.end_seconds - band.start_seconds
    fraction = (seconds - band.start_seconds) / span if span > 0 else 0.0
    return band.left + fraction * (band.right - band.left)


def _position(start_seconds: float, end_seconds: float, bands: tuple[StageBand, ...]) -> float:
    """Where the middle of a moment is drawn."""
    middle = (start_seconds + end_seconds) / 2
    band = next(band for band in bands if middle <= band.end_seconds)
    return _within(middle, band)


def _layers(levels: list[MemoryLevel], *, components: tuple[str, ...]) -> tuple[OwnerLayer, ...]:
    """One layer per owner, from the bottom up: what never changes, weights, what comes and goes."""
    threshold = SMALL_FRACTION * max(map(_held_bytes, levels))
    owners = [
        owner
        for owner in owners_in_order(components)
        if max(level.owners.get(owner, 0) for level in levels) >= threshold
    ]
    held = {owner: [level.owners.get(owner, 0) for level in levels] for owner in owners}
    shown = [sum(counts) for counts in zip(*held.values(), strict=True)]
    rest = [_held_bytes(level) - num_bytes for level, num_bytes in zip(levels, shown, strict=True)]
    layers = {OTHER: rest, **held} if any(rest) else held
    return tuple(
        OwnerLayer(owner=owner, gib=tuple(count / GIB for count in counts))
        for owner, counts in layers.items()
    )


def draw_memory(plot: MemoryPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = ax or own_axes()
    _draw_bands(plot.bands, ax=ax)
    _draw_layers(plot, ax=ax)
    _draw_budget(plot, ax=ax)
    _draw_peak(plot, ax=ax)
    write_title(ax, plot.title)
    ax.set_ylabel("GPU memory (GiB)")
    ax.set_xlim(0, 1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(reverse=True, **LEGEND_BESIDE)
    return ax


def _draw_bands(bands: tuple[StageBand, ...], *, ax: Axes) -> None:
    """Shade every other stage, name them above, and say below how long they take."""
    for band in bands[::2]:
        ax.axvspan(band.left, band.right, color="#EFEFEF", zorder=0)
    names = ax.secondary_xaxis("top")
    names.set_xticks([(band.left + band.right) / 2 for band in bands], [band.label for band in bands])
    names.tick_params(length=0, labelrotation=30, labelsize=SMALL)
    for label in names.get_xticklabels():
        label.set(horizontalalignment="left", rotation_mode="anchor")
    names.spines["top"].set_visible(False)
    ax.set_xticks([band.left for band in bands], minor=True)
    ax.set_xticks([(band.left + band.right) / 2 for band in bands], _durations(bands))
    ax.tick_params(axis="x", labelsize=SMALL, length=0)
    ax.set_xlabel("duration of each stage (to scale within it; short stages are drawn wider)")


def _durations(bands: tuple[StageBand, ...]) -> list[str]:
    """How long each stage takes, the longest first for as long as there is room under the axis."""
    labels = [""] * len(bands)
    taken: list[tuple[float, float]] = []
    for index in sorted(range(len(bands)), key=lambda i: bands[i].start_seconds - bands[i].end_seconds):
        band = bands[index]
        label = format_seconds(band.end_seconds - band.start_seconds)
        middle, half = (band.left + band.right) / 2, CHARACTER * (len(label) + 1) / 2
        if all(middle + half <= left or middle - half >= right for left, right in taken):
            labels[index] = label
            taken.append((middle - half, middle + half))
    return labels


def _draw_layers(plot: MemoryPlot, *, ax: Axes) -> None:
    """Stack the owners."""
    lower = [0.0] * len(plot.edges)
    looks = owner_looks(plot.components)
    for layer in plot.layers:
        upper = [low + gib for low, gib in zip(lower, (*layer.gib, layer.gib[-1]), strict=True)]
        ax.fill_between(
            plot.edges,
            lower,
            upper,
            step="post",
            label=layer.owner,
            facecolor=looks[layer.owner].color,
            hatch=looks[layer.owner].hatch,
            edgecolor="white",
            linewidth=0.4,
        )
        lower = upper


def _draw_budget(plot: MemoryPlot, *, ax: Axes) -> None:
    """The line that must not be crossed, and head room above it for words."""
    highest = highest_drawn(plot.peak_gib, plot.budget_gib)
    ax.set_ylim(0, HEAD_ROOM * highest)
    label = f"budget {plot.budget_gib:.2f} GiB"
    if plot.budget_gib <= highest:
        ax.axhline(plot.budget_gib, **BUDGET_LINE, label=label)
    else:
        ax.plot([], [], **BUDGET_LINE, label=f"{label} (above)")


def _draw_peak(plot: MemoryPlot, *, ax: Axes) -> None:
    """Mark the worst moment and say who holds the memory then."""
    named, others = plot.peak_owners[:NAMED_PEAK_OWNERS], plot.peak_owners[NAMED_PEAK_OWNERS:]
    owners = [*named, ("rest", sum(gib for _, gib in others))] if others else named
    lines = textwrap.fill(" + ".join(f"{owner}{NO_BREAK}{gib:.2f}" for owner, gib in owners), PEAK_CHARACTERS)
    x, alignment = (0.01, "left") if plot.peak_position < 0.5 else (0.99, "right")
    ax.annotate(
        f"peak {plot.peak_gib:.2f} GiB in {plot.peak_stage}\n{lines}",
        xy=(plot.peak_position, plot.peak_gib),
        xytext=(x, 0.985),
        textcoords=ax.transAxes,
        horizontalalignment=alignment,
        verticalalignment="top",
        fontsize=SMALL,
        arrowprops={"arrowstyle": "-|>", "color": "black", "shrinkB": 2},
    )


def save_memory(plot: MemoryPlot, path: str | Path) -> None:
    """Draw it into a file; its suffix, one of `FORMATS`, says how."""
    save(draw_memory(plot), path)
