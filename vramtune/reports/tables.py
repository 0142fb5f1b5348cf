"""Nouns as tables for people: text in cells, with what it is worth at a glance. Pages and notebooks draw them.

Bytes stand in GiB under a heading that says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from vramtune.reports.rows import (
    beside_rows,
    component_rows,
    mode_rows,
    point_rows,
    stage_label,
)
from vramtune.schema import (
    PLAN_MODE,
    Comparison,
    Frontier,
    Measurement,
    MemoryLevel,
    Placement,
    Plan,
    Profile,
    Source,
)
from vramtune.units import GIB, format_seconds

UNKNOWN = "-"

Tone = Literal["good", "bad", "faint"]
Observation = TypeVar("Observation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A heading, its unit, and on which side its cells stand."""

    heading: str
    unit: str = ""
    alignment: Literal["left", "right"] = "right"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What stands in a table."""

    text: str
    share: float | None = None
    """Length of the bar behind it, 0 to 1."""
    tone: Tone | None = None


Row = tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table; its first column names the rows."""

    title: str
    source: Source | None
    """None where columns of both kinds stand side by side: then their headings say it."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    marked: int | None = None
    """Index of the row that the table is about."""


def component_grid(profile: Profile, *, permissions: tuple[str, ...] = ()) -> Grid:
    """What each component costs in one call."""
    rows = component_rows(profile, permissions=permissions)
    most_bytes = max((row.weight_bytes for row in rows), default=0)
    longest = max((row.compute_seconds for row in rows), default=0.0)
    return _grid(
        "Components, over one call",
        profile.source,
        rows,
        (_words("component"), lambda row: Cell(text=row.component)),
        (_words("class"), lambda row: Cell(text=row.class_name)),
        (_words("dtype"), lambda row: Cell(text=row.dtype)),
        (_in_gib("weights"), lambda row: _gib(row.weight_bytes, of=most_bytes)),
        (_in_gib("used"), lambda row: _gib(row.used_bytes)),
        (_in_gib("activations"), lambda row: _gib(row.activation_bytes)),
        (Column(heading="calls"), lambda row: Cell(text=str(row.num_calls))),
        (
            Column(heading="compute"),
            lambda row: _time(row.compute_seconds if row.num_calls else None, of=longest),
        ),
        (Column(heading="one copy"), lambda row: _time(row.copy_seconds if row.used_bytes else None)),
    )


def placement_grid(plan: Plan) -> Grid:
    """The plan itself: how many weight groups of each component are on the GPU in each stage."""
    stages = [
        (_words(stage_label(stage.name, stage.num_iterations)), _kept_in(index))
        for index, stage in enumerate(plan.stages)
    ]
    return _grid(
        "Where the weights are: groups on the GPU, by stage",
        "predicted",
        plan.placements,
        (_words("component"), lambda placement: Cell(text=placement.name)),
        (_in_gib("weights"), lambda placement: _gib(_group_bytes(placement))),
        *stages,
    )


def _group_bytes(placement: Placement) -> int:
    return sum(group.weight_bytes for group in placement.groups)


def _kept_in(stage: int) -> Callable[[Placement], Cell]:
    def kept(placement: Placement) -> Cell:
        role, whole = placement.role(stage), _group_bytes(placement)
        count = (
            "" if role in ("resident", "offloaded") else f" {placement.kept[stage]}/{len(placement.groups)}"
        )
        return Cell(
            text=role + count,
            share=placement.kept_bytes(stage) / whole if whole else 0.0,
            tone=None if placement.active[stage] else "faint",
        )

    return kept


def stage_grid(plan: Plan) -> Grid:
    """What is on the GPU in each stage, how long the stage takes, and what is copied in for it."""
    estimates = plan.estimate.stages
    most_bytes = max(stage.peak_bytes for stage in estimates)
    longest = max(stage.seconds for stage in estimates)
    kept = [sum(p.kept_bytes(index) for p in plan.placements) for index in range(len(estimates))]
    slots = [sum(p.slot_bytes(index) for p in plan.placements) for index in range(len(estimates))]
    labels = [stage_label(stage.name, stage.num_iterations) for stage in plan.stages]
    return _grid(
        "Stages of the call",
        "predicted",
        tuple(zip(labels, estimates, kept, slots, strict=True)),
        (_words("stage"), lambda row: Cell(text=row[0])),
        (_in_gib("weights kept"), lambda row: _gib(row[2])),
        (_in_gib("slots"), lambda row: _gib(row[3])),
        (_in_gib("activations, all else"), lambda row: _gib(row[1].peak_bytes - row[2] - row[3])),
        (_in_gib("peak"), lambda row: _gib(row[1].peak_bytes, of=most_bytes)),
        (Column(heading="time"), lambda row: _time(row[1].seconds, of=longest)),
        (Column(heading="compute"), lambda row: _time(row[1].compute_seconds)),
        (_in_gib("copied in"), lambda row: _gib(row[1].moved_bytes)),
    )


def mode_grid(comparison: Comparison) -> Grid:
    """The ways to run the pipeline, side by side."""
    rows = mode_rows(comparison)
    most_bytes = max(row.peak_bytes for row in rows)
    longest = max(row.seconds for row in rows)
    return _grid(
        "Ways to run it, by seconds per call",
        "predicted",
        rows,
        (_words("mode"), lambda row: Cell(text=row.mode)),
        (_words("fits"), lambda row: _fits(row.fits)),
        (_in_gib("peak"), lambda row: _gib(row.peak_bytes, of=most_bytes)),
        (Column(heading="time"), lambda row: _time(row.seconds, of=longest)),
        (Column(heading="times as long"), lambda row: _ratio(row.plan_ratio)),
        (Column(heading="waiting for copies"), lambda row: _time(row.exposed_copy_seconds)),
        (_in_gib("copied in"), lambda row: _gib(row.moved_bytes)),
        (_in_gib("copied out"), lambda row: _gib(row.moved_back_bytes)),
        marked=next((index for index, row in enumerate(rows) if row.mode == PLAN_MODE), None),
    )


def point_grid(frontier: Frontier) -> Grid:
    """The fastest plan at each budget, and the fastest stock mode that fits it."""
    rows = point_rows(frontier)
    widest = max(row.gap_fraction for row in rows)
    return _grid(
        "The fastest plan at each budget",
        "predicted",
        rows,
        (_in_gib("budget"), lambda row: _gib(row.budget_bytes)),
        (_in_gib("peak"), lambda row: _gib(row.peak_bytes)),
        (Column(heading="time"), lambda row: _time(row.seconds)),
        (Column(heading="bound"), lambda row: _time(row.bound_seconds)),
        (Column(heading="above it"), lambda row: _percent(row.gap_fraction, of=widest)),
        (_words("fastest stock mode that fits"), lambda row: Cell(text=row.stock_mode or UNKNOWN)),
        (Column(heading="its time"), lambda row: _time(row.stock_seconds)),
    )


def measured_grid(measurement: Measurement) -> Grid:
    """What each stage of a measured call took."""
    most_bytes = max((stage.peak_bytes for stage in measurement.stages), default=0)
    longest = max((stage.seconds for stage in measurement.stages), default=0.0)
    return _grid(
        "Stages of the last call",
        "measured",
        measurement.stages,
        (_words("stage"), lambda stage: Cell(text=stage.name)),
        (_in_gib("PyTorch's peak"), lambda stage: _gib(stage.peak_bytes, of=most_bytes)),
        (Column(heading="time"), lambda stage: _time(stage.seconds, of=longest)),
        (Column(heading="waiting for copies"), lambda stage: _time(stage.exposed_copy_seconds)),
        (_in_gib("copied in"), lambda stage: _gib(stage.moved_bytes)),
    )


def beside_grid(measurement: Measurement, *, plan: Plan) -> Grid:
    """Each stage as it was predicted and as it was measured."""
    omitted = "" if measurement.context_bytes is not None else "; measured peaks are without the CUDA context"
    return _grid(
        f"Stages of the call, predicted beside measured{omitted}",
        None,
        beside_rows(plan, measurement),
        (_words("stage"), lambda row: Cell(text=stage_label(row.stage, row.num_iterations))),
        (_in_gib("peak predicted"), lambda row: _gib(row.predicted_peak_bytes)),
        (_in_gib("peak measured"), lambda row: _gib(row.measured_peak_bytes)),
        (Column(heading="time predicted"), lambda row: _time(row.predicted_seconds)),
        (Column(heading="time measured"), lambda row: _time(row.measured_seconds)),
        (
            Column(heading="waiting for copies, measured"),
            lambda row: _time(row.measured_exposed_copy_seconds),
        ),
        (_in_gib("copied in, predicted"), lambda row: _gib(row.predicted_moved_bytes)),
        (_in_gib("copied in, measured"), lambda row: _gib(row.measured_moved_bytes)),
    )


def owner_grid(level: MemoryLevel) -> Grid:
    """Who holds how much of the GPU at one moment, the largest first."""
    held = sorted(level.owners.items(), key=lambda owner: -owner[1])
    return _grid(
        "Who holds the memory at its highest",
        "predicted",
        [owner for owner in held if owner[1]],
        (_words("owner"), lambda owner: Cell(text=owner[0])),
        (_in_gib("held"), lambda owner: _gib(owner[1], of=held[0][1])),
    )


def _grid(
    title: str,
    source: Source | None,
    observations: Sequence[Observation],
    *columns: tuple[Column, Callable[[Observation], Cell]],
    marked: int | None = None,
) -> Grid:
    """A row per observation; each column comes with what fills its cells."""
    return Grid(
        title=title,
        source=source,
        columns=tuple(column for column, _ in columns),
        rows=tuple(tuple(cell(observation) for _, cell in columns) for observation in observations),
        marked=marked,
    )


def _words(heading: str) -> Column:
    return Column(heading=heading, alignment="left")


def _in_gib(heading: str) -> Column:
    return Column(heading=heading, unit="GiB")


def _gib(num_bytes: int | None, *, of: int = 0) -> Cell:
    text = UNKNOWN if num_bytes is None else f"{num_bytes / GIB:.2f}"
    return Cell(text=text, share=num_bytes / of if of and num_bytes is not None else None)


def _time(seconds: float | None, *, of: float = 0.0) -> Cell:
    text = UNKNOWN if seconds is None else format_seconds(seconds)
    return Cell(text=text, share=seconds / of if of and seconds is not None else None)


def _ratio(ratio: float | None) -> Cell:
    return Cell(text=UNKNOWN if ratio is None else f"{ratio:.2f}x")


def _percent(fraction: float, *, of: float) -> Cell:
    return Cell(text=f"{fraction:z.1%}", share=fraction / of if of else None)


def _fits(fits: bool | None) -> Cell:
    return {
        True: Cell(text="yes", tone="good"),
        False: Cell(text="no", tone="bad"),
        None: Cell(text=UNKNOWN),
    }[fits]
