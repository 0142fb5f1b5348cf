"""Nouns as tables for people: text in cells, with what it is worth at a glance. Pages and notebooks draw them.

Bytes stand in GiB under a heading that says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vramtune.reports.tables import ComponentRow, ModeRow, component_rows, mode_rows
from vramtune.schema import (
    Comparison,
    Frontier,
    FrontierPoint,
    MeasuredStage,
    Measurement,
    Placement,
    Plan,
    Profile,
    Source,
    StageEstimate,
)
from vramtune.units import GIB, format_seconds

UNKNOWN = "-"
PLAN_MODE = "vramtune"

Tone = Literal["good", "bad", "faint"]


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
    most_bytes = max(row.weight_bytes for row in rows)
    longest = max(row.compute_seconds for row in rows)
    return Grid(
        title="Components, over one call",
        source=profile.source,
        columns=(
            Column(heading="component", alignment="left"),
            Column(heading="class", alignment="left"),
            Column(heading="dtype", alignment="left"),
            Column(heading="weights", unit="GiB"),
            Column(heading="used", unit="GiB"),
            Column(heading="activations", unit="GiB"),
            Column(heading="calls"),
            Column(heading="compute"),
            Column(heading="one copy"),
        ),
        rows=tuple(_component_row(row, most_bytes=most_bytes, longest=longest) for row in rows),
    )


def _component_row(row: ComponentRow, *, most_bytes: int, longest: float) -> Row:
    return (
        Cell(text=row.component),
        Cell(text=row.class_name),
        Cell(text=row.dtype),
        _gib(row.weight_bytes, of=most_bytes),
        _gib(row.used_bytes),
        _gib(row.activation_bytes),
        Cell(text=str(row.num_calls)),
        _time(row.compute_seconds if row.num_calls else None, of=longest),
        _time(row.copy_seconds if row.used_bytes else None),
    )


def placement_grid(plan: Plan) -> Grid:
    """The plan itself: how many weight groups of each component are on the GPU in each stage."""
    return Grid(
        title="Where the weights are: groups on the GPU, by stage",
        source="predicted",
        columns=(
            Column(heading="component", alignment="left"),
            Column(heading="weights", unit="GiB"),
            *(
                Column(heading=stage_label(stage.name, stage.num_iterations), alignment="left")
                for stage in plan.stages
            ),
        ),
        rows=tuple(_placement_row(placement, plan) for placement in plan.placements),
    )


def _placement_row(placement: Placement, plan: Plan) -> Row:
    used_bytes = sum(group.weight_bytes for group in placement.groups)
    return (
        Cell(text=placement.name),
        _gib(used_bytes),
        *(_kept(placement, stage, used_bytes=used_bytes) for stage in range(len(plan.stages))),
    )


def _kept(placement: Placement, stage: int, *, used_bytes: int) -> Cell:
    role, num_groups = placement.role(stage), len(placement.groups)
    share = placement.kept_bytes(stage) / used_bytes if used_bytes else 0.0
    count = "" if role in ("resident", "offloaded") else f" {placement.kept[stage]}/{num_groups}"
    return Cell(text=role + count, share=share, tone=None if placement.active[stage] else "faint")


def stage_grid(plan: Plan) -> Grid:
    """What is on the GPU in each stage, how long the stage takes, and what is copied in for it."""
    estimates = plan.estimate.stages
    most_bytes = max(stage.peak_bytes for stage in estimates)
    longest = max(stage.seconds for stage in estimates)
    return Grid(
        title="Stages of the call",
        source="predicted",
        columns=(
            Column(heading="stage", alignment="left"),
            Column(heading="weights kept", unit="GiB"),
            Column(heading="slots", unit="GiB"),
            Column(heading="activations, context", unit="GiB"),
            Column(heading="peak", unit="GiB"),
            Column(heading="time"),
            Column(heading="compute"),
            Column(heading="copied in", unit="GiB"),
        ),
        rows=tuple(
            _stage_row(plan, index, most_bytes=most_bytes, longest=longest) for index in range(len(estimates))
        ),
    )


def _stage_row(plan: Plan, index: int, *, most_bytes: int, longest: float) -> Row:
    estimate = plan.estimate.stages[index]
    kept_bytes = sum(placement.kept_bytes(index) for placement in plan.placements)
    slot_bytes = sum(placement.slot_bytes(index) for placement in plan.placements)
    return (
        Cell(text=stage_label(estimate.name, plan.stages[index].num_iterations)),
        _gib(kept_bytes),
        _gib(slot_bytes),
        _gib(estimate.peak_bytes - kept_bytes - slot_bytes),
        _gib(estimate.peak_bytes, of=most_bytes),
        _time(estimate.seconds, of=longest),
        _time(estimate.compute_seconds),
        _gib(estimate.moved_bytes),
    )


def mode_grid(comparison: Comparison) -> Grid:
    """The ways to run the pipeline, side by side."""
    rows = mode_rows(comparison)
    names = [row.mode for row in rows]
    return Grid(
        title="Ways to run it, by seconds per call",
        source="predicted",
        columns=(
            Column(heading="mode", alignment="left"),
            Column(heading="fits", alignment="left"),
            Column(heading="peak", unit="GiB"),
            Column(heading="time"),
            Column(heading="times as long"),
            Column(heading="waiting for copies"),
            Column(heading="copied in", unit="GiB"),
            Column(heading="copied out", unit="GiB"),
        ),
        rows=tuple(_mode_row(row, rows) for row in rows),
        marked=names.index(PLAN_MODE) if PLAN_MODE in names else None,
    )


def _mode_row(row: ModeRow, rows: tuple[ModeRow, ...]) -> Row:
    ours = next((other.seconds for other in rows if other.mode == PLAN_MODE), None)
    return (
        Cell(text=row.mode),
        _fits(row.fits),
        _gib(row.peak_bytes, of=max(other.peak_bytes for other in rows)),
        _time(row.seconds, of=max(other.seconds for other in rows)),
        Cell(text=UNKNOWN if ours is None else f"{row.seconds / ours:.2f}x"),
        _time(row.seconds - row.compute_seconds),
        _gib(row.copied_in_bytes),
        _gib(row.copied_out_bytes),
    )


def point_grid(frontier: Frontier) -> Grid:
    """The fastest plan at each budget."""
    widest = max(point.seconds / point.bound_seconds - 1 for point in frontier.points)
    return Grid(
        title="The fastest plan at each budget",
        source="predicted",
        columns=(
            Column(heading="budget", unit="GiB"),
            Column(heading="peak", unit="GiB"),
            Column(heading="time"),
            Column(heading="bound"),
            Column(heading="above it"),
        ),
        rows=tuple(_point_row(point, widest=widest) for point in frontier.points),
    )


def _point_row(point: FrontierPoint, *, widest: float) -> Row:
    gap = point.seconds / point.bound_seconds - 1
    return (
        _gib(point.budget_bytes),
        _gib(point.peak_bytes),
        _time(point.seconds),
        _time(point.bound_seconds),
        Cell(text=f"{gap:.1%}", share=gap / widest if widest else None),
    )


def measured_grid(measurement: Measurement) -> Grid:
    """What each stage of a measured call took."""
    most_bytes = max((stage.peak_bytes for stage in measurement.stages), default=0)
    longest = max((stage.seconds for stage in measurement.stages), default=0.0)
    return Grid(
        title="Stages of the last call",
        source="measured",
        columns=(
            Column(heading="stage", alignment="left"),
            Column(heading="PyTorch's peak", unit="GiB"),
            Column(heading="time"),
            Column(heading="waiting for copies"),
            Column(heading="copied in", unit="GiB"),
        ),
        rows=tuple(
            (
                Cell(text=stage.name),
                _gib(stage.peak_bytes, of=most_bytes),
                _time(stage.seconds, of=longest),
                _time(stage.exposed_copy_seconds),
                _gib(stage.moved_bytes),
            )
            for stage in measurement.stages
        ),
    )


def beside_grid(measurement: Measurement, *, plan: Plan) -> Grid:
    """Each stage as it was predicted and as it was measured."""
    context_bytes = measurement.context_bytes or 0
    omitted = "" if measurement.context_bytes is not None else "; measured peaks are without the CUDA context"
    pairs = _paired(plan.estimate.stages, measurement.stages)
    return Grid(
        title=f"Stages of the call, predicted beside measured{omitted}",
        source=None,
        columns=(
            Column(heading="stage", alignment="left"),
            Column(heading="peak predicted", unit="GiB"),
            Column(heading="peak measured", unit="GiB"),
            Column(heading="time predicted"),
            Column(heading="time measured"),
            Column(heading="waiting for copies, measured"),
            Column(heading="copied in, predicted", unit="GiB"),
            Column(heading="copied in, measured", unit="GiB"),
        ),
        rows=tuple(_beside_row(guess, seen, context_bytes=context_bytes) for guess, seen in pairs),
    )


def _beside_row(guess: StageEstimate | None, seen: MeasuredStage | None, *, context_bytes: int) -> Row:
    named = guess or seen
    assert named is not None
    return (
        Cell(text=named.name),
        _gib(guess.peak_bytes if guess else None),
        _gib(seen.peak_bytes + context_bytes if seen else None),
        _time(guess.seconds if guess else None),
        _time(seen.seconds if seen else None),
        _time(seen.exposed_copy_seconds if seen else None),
        _gib(guess.moved_bytes if guess else None),
        _gib(seen.moved_bytes if seen else None),
    )


def _paired(
    guessed: Iterable[StageEstimate], seen: Iterable[MeasuredStage]
) -> list[tuple[StageEstimate | None, MeasuredStage | None]]:
    """Stages of the same name, in the order measured; what has no counterpart stands alone."""
    left = list(guessed)
    pairs: list[tuple[StageEstimate | None, MeasuredStage | None]] = []
    for stage in seen:
        guess = next((other for other in left if other.name == stage.name), None)
        if guess:
            left.remove(guess)
        pairs.append((guess, stage))
    return [*pairs, *((guess, None) for guess in left)]


def stage_label(name: str, num_iterations: int) -> str:
    """`"unet x50"`."""
    return name if num_iterations == 1 else f"{name} x{num_iterations}"


def _gib(num_bytes: int | None, *, of: int = 0) -> Cell:
    text = UNKNOWN if num_bytes is None else f"{num_bytes / GIB:.2f}"
    return Cell(text=text, share=num_bytes / of if of and num_bytes is not None else None)


def _time(seconds: float | None, *, of: float = 0.0) -> Cell:
    text = UNKNOWN if seconds is None else format_seconds(seconds)
    return Cell(text=text, share=seconds / of if of and seconds is not None else None)


def _fits(fits: bool | None) -> Cell:
    return {
        True: Cell(text="yes", tone="good"),
        False: Cell(text="no", tone="bad"),
        None: Cell(text=UNKNOWN),
    }[fits]
