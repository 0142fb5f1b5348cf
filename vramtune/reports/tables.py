"""Nouns as tables for people. One table each, which the terminal, notebooks and pages draw.

Where 80 columns of text have no room for a column, the column says so itself.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Protocol

from vramtune.reports.columns import (
    UNKNOWN,
    Cell,
    Column,
    Field,
    Medium,
    Quantity,
    Table,
    cells,
    figure,
    gib,
    quantities,
    table_of,
    time,
    times,
    words,
)
from vramtune.reports.rows import (
    BesideRow,
    ComponentRow,
    GpuRow,
    ModeRow,
    PlacementRow,
    PointRow,
    beside_rows,
    component_rows,
    gpu_rows,
    mode_rows,
    permissions_of_all,
    placement_rows,
    point_rows,
    stage_label,
    stock_rows,
)
from vramtune.schema import (
    PLAN_MODE,
    Comparison,
    Device,
    Frontier,
    MeasuredStage,
    Measurement,
    Plan,
    Profile,
    Ranking,
    StageEstimate,
    Timeline,
)
from vramtune.units import GIB


def component_table(profile: Profile, plan: Plan | None = None) -> Table:
    """What each component costs in one call, and where its weights are while it runs if there is a plan."""
    rows = component_rows(profile, permissions=plan.permissions if plan else ())
    placed = (_placed(placement_rows(plan)),) if plan else ()
    return table_of(
        "Components, over one call",
        "predicted",
        rows,
        words("component", lambda row: row.component),
        words("class", lambda row: row.class_name, only="page"),
        words("dtype", lambda row: row.dtype, only="page"),
        gib("weights", lambda row: row.weight_bytes, bars=True),
        gib("used", lambda row: row.used_bytes),
        gib("activations", lambda row: row.activation_bytes, short="activ."),
        figure("calls", lambda row: str(row.num_calls)),
        time("compute", lambda row: row.compute_seconds if row.num_calls else None, bars=True),
        time("copy once", lambda row: row.copy_seconds if row.used_bytes else None),
        *placed,
        note="streamed: weight groups kept / all" if plan else "",
    )


def _placed(placements: tuple[PlacementRow, ...]) -> Field[ComponentRow]:
    def placement(row: ComponentRow) -> str:
        if row.is_excluded:
            return "resident"
        if not row.used_bytes:
            return "unused"
        return placement_label(placed for placed in placements if placed.component == row.component)

    return words("placement", placement)


def placement_label(rows: Iterable[PlacementRow]) -> str:
    """The roles in the stages where the component runs: `"streamed 22/40"` keeps 22 of its 40 groups."""
    return ", ".join(dict.fromkeys(_role(row) for row in rows if row.active)) or UNKNOWN


def _role(row: PlacementRow) -> str:
    is_whole = row.role in ("resident", "offloaded")
    return row.role if is_whole else f"{row.role} {row.num_kept}/{row.num_groups}"


def placement_table(plan: Plan) -> Table:
    """The plan itself: how many weight groups of each component are on the GPU, on a page in each stage."""
    placements = [tuple(rows) for _, rows in groupby(placement_rows(plan), key=lambda row: row.placement)]
    labels = [stage_label(stage.name, stage.num_iterations) for stage in plan.stages]
    return table_of(
        "Where the weights are",
        "predicted",
        placements,
        words("component", lambda rows: rows[0].placement),
        gib("weights", lambda rows: rows[0].weight_bytes),
        figure("groups", lambda rows: str(rows[0].num_groups), only="text"),
        gib("page-locked", lambda rows: rows[0].locked_bytes),
        gib("staged", lambda rows: rows[0].staged_bytes),
        words("while it runs", placement_label, only="text"),
        *(_kept_in(index, label) for index, label in enumerate(labels)),
        note="weight groups on the GPU / all; what moves is page-locked on the host or staged",
    )


def _kept_in(stage: int, label: str) -> Field[tuple[PlacementRow, ...]]:
    def cell(rows: tuple[PlacementRow, ...]) -> Cell:
        row = rows[stage]
        share = row.kept_bytes / row.weight_bytes if row.weight_bytes else 0.0
        return Cell(text=_role(row), share=share, tone=None if row.active else "faint")

    return cells(Column(heading=label, alignment="left", only="page"), cell)


def stage_table(plan: Plan) -> Table:
    """What is on the GPU in each stage, how long the stage takes, and what is moved for it."""
    any_cached = any(stage.cached_bytes for stage in plan.estimate.stages)
    cached: Field[StageEstimate] = gib("cached", lambda stage: stage.cached_bytes)
    return table_of(
        "Stages of the call",
        "predicted",
        plan.estimate.stages,
        words("stage", lambda stage: stage_label(stage.name, stage.num_iterations)),
        gib("kept", lambda stage: stage.kept_bytes),
        gib("slots", lambda stage: stage.slot_bytes),
        gib("activations", lambda stage: stage.activation_bytes, short="activ."),
        *([cached] if any_cached else []),
        gib("fixed", lambda stage: stage.fixed_bytes),
        gib("peak", lambda stage: stage.peak_bytes, bars=True),
        time("time", lambda stage: stage.seconds, bars=True),
        time("compute", lambda stage: stage.compute_seconds),
        time("exposed copy", lambda stage: stage.exposed_copy_seconds, only="page"),
        gib("moved", lambda stage: stage.moved_bytes),
        note="fixed: CUDA context and workspaces" + ("; cached: by PyTorch, beyond the need" if any_cached else ""),
    )


def mode_table(comparison: Comparison) -> Table:
    """The ways to run the pipeline, side by side."""
    rows = mode_rows(comparison)

    def fits(row: ModeRow) -> Cell:
        if row.fits is None:
            return Cell(text=UNKNOWN)
        if row.is_narrow:
            return Cell(text="narrowly", tone="attention")
        if row.lacks_ram:
            return Cell(text="no: RAM", tone="bad")
        return Cell(text="yes", tone="good") if row.fits else Cell(text="no", tone="bad")

    notes = [
        "needs: without what PyTorch only caches",
        "moved: to the GPU and back, per call",
        *_with(comparison.permissions),
        *(["no: RAM: the host has too little memory"] if any(row.lacks_ram for row in rows) else []),
    ]
    return table_of(
        "Ways to run it",
        "predicted",
        rows,
        words("mode", lambda row: row.mode),
        cells(Column(heading="fits", alignment="left"), fits),
        gib("needs", lambda row: row.peak_bytes, bars=True),
        gib("peak at the most", lambda row: row.high_peak_bytes, only="page"),
        time("time", lambda row: row.seconds, bars=True),
        time("at the least", lambda row: row.low_seconds, only="page"),
        time("at the most", lambda row: row.high_seconds, only="page"),
        figure("/ plan", lambda row: times(row.plan_ratio)),
        time("exposed copy", lambda row: row.exposed_copy_seconds, only="page"),
        gib("moved", lambda row: row.moved_bytes),
        gib("moved back", lambda row: row.moved_back_bytes, short="back"),
        gib("host memory", lambda row: row.host_bytes, only="page"),
        marked=next((index for index, row in enumerate(rows) if row.mode == PLAN_MODE), None),
        note="; ".join(notes),
    )


def _with(permissions: tuple[str, ...]) -> list[str]:
    return [f"all with {', '.join(permissions)}"] if permissions else []


def point_table(frontier: Frontier) -> Table:
    """The fastest plan at each budget, and the fastest stock mode that fits it."""
    rows = point_rows(frontier)
    used: Field[PointRow] = words("permissions", lambda row: row.permissions)
    return table_of(
        "The fastest plan at each budget",
        "predicted",
        rows,
        gib("budget", lambda row: row.budget_bytes),
        gib("peak", lambda row: row.peak_bytes),
        time("time", lambda row: row.seconds),
        time("bound", lambda row: row.bound_seconds, only="page"),
        quantities(Column(heading="above bound"), lambda row: row.gap_fraction, "{:z.1%}".format, bars=True),
        words("limited by", lambda row: row.limit),
        *([used] if any(row.permissions for row in rows) else []),
        words("fastest stock mode", lambda row: row.stock_mode or "none fits"),
        time("its time", lambda row: row.stock_seconds),
    )


def stock_table(frontier: Frontier) -> Table:
    """The stock modes at the memory that they need, beside the plan in as much."""
    return table_of(
        "The stock diffusers modes at the memory they need",
        "predicted",
        stock_rows(frontier),
        words("mode", lambda row: row.mode),
        words("fits", lambda row: "yes" if row.fits else "no"),
        gib("needs", lambda row: row.peak_bytes),
        time("time", lambda row: row.seconds),
        time("the plan's", lambda row: row.plan_seconds),
        figure("/ plan", lambda row: times(row.plan_ratio)),
        note="; ".join(["the plan's time: in the same memory", *_with(permissions_of_all(frontier) or ())]),
    )


def ranking_table(ranking: Ranking) -> Table:
    """The GPUs, in order, with what the call takes on each."""

    def fits(row: GpuRow) -> Cell:
        if not row.fits:
            return Cell(text="no", tone="bad")
        if not row.is_in_time:
            return Cell(text="too slow", tone="attention")
        return Cell(text="narrowly", tone="attention") if row.is_narrow else Cell(text="yes", tone="good")

    rows = gpu_rows(ranking)
    where: Medium | None = None if any(row.permissions for row in rows) else "page"
    return table_of(
        "GPUs",
        "predicted",
        rows,
        words("GPU", lambda row: row.gpu),
        gib("peak", lambda row: row.peak_bytes),
        cells(Column(heading="fits", alignment="left"), fits),
        words("weights", lambda row: row.role or UNKNOWN),
        time("time", lambda row: row.seconds, bars=True),
        time("at the least", lambda row: row.low_seconds, only="page"),
        time("at the most", lambda row: row.high_seconds, short="high"),
        time("bound", lambda row: row.bound_seconds, only="page"),
        gib("least memory", lambda row: row.least_bytes, short="least"),
        time("time in that", lambda row: row.least_seconds, only="page"),
        words("permissions", lambda row: row.permissions or row.helpful_permission or "", only=where),
        note="high: what the time is likely to be at the most; least: the smallest budget that works",
    )


def measured_table(measurement: Measurement) -> Table:
    """What each stage of a measured call took."""
    return table_of(
        "Stages of the last call",
        "measured",
        measurement.stages,
        words("stage", lambda stage: stage.name),
        gib("PyTorch's peak", lambda stage: stage.peak_bytes, bars=True),
        time("time", lambda stage: stage.seconds, bars=True),
        time("exposed copy", lambda stage: stage.exposed_copy_seconds),
        gib("moved", lambda stage: stage.moved_bytes),
    )


def _predicted(quantity: Callable[[StageEstimate], Quantity]) -> Callable[[BesideRow], Quantity | None]:
    return lambda row: quantity(row.predicted) if row.predicted else None


def _measured(quantity: Callable[[MeasuredStage], Quantity]) -> Callable[[BesideRow], Quantity | None]:
    return lambda row: quantity(row.measured) if row.measured else None


def beside_table(plan: Plan, measurement: Measurement) -> Table:
    """Each stage as it was predicted and as it was measured."""
    return table_of(
        "Stages of the call, predicted beside measured",
        None,
        beside_rows(plan, measurement),
        words("stage", lambda row: row.label),
        gib("peak, predicted", _predicted(lambda stage: stage.peak_bytes), short="pred. peak"),
        gib("peak, measured", _measured(lambda stage: stage.peak_bytes), short="meas. peak"),
        time("time, predicted", _predicted(lambda stage: stage.seconds), short="pred. time"),
        time("time, measured", _measured(lambda stage: stage.seconds), short="meas. time"),
        time("exposed copy, predicted", _predicted(lambda stage: stage.exposed_copy_seconds), only="page"),
        time("exposed copy, measured", _measured(lambda stage: stage.exposed_copy_seconds), short="meas. exposed copy"),
        gib("moved, predicted", _predicted(lambda stage: stage.moved_bytes), short="pred. moved"),
        gib("moved, measured", _measured(lambda stage: stage.moved_bytes), short="meas. moved"),
        note="" if measurement.context_bytes is not None else "measured peaks lack the CUDA context",
    )


def owner_table(timeline: Timeline) -> Table:
    """Who holds how much of the GPU at the call's worst moment, the largest first."""
    level = max(timeline.memory, key=lambda level: level.held_bytes)
    held = (
        *level.component_bytes.items(),
        ("slots", level.slot_bytes),
        ("activations", level.activation_bytes),
        ("cached by PyTorch", level.cached_bytes),
        ("pipeline tensors", level.pipeline_bytes),
        ("workspaces", level.workspace_bytes),
        ("CUDA context", level.context_bytes),
    )
    owners = sorted((owner for owner in held if owner[1]), key=lambda owner: -owner[1])
    return table_of(
        "Who holds the memory at the peak",
        "predicted",
        owners,
        words("owner", lambda owner: owner[0]),
        gib("held", lambda owner: owner[1], bars=True),
    )


def activity_table(profile: Profile) -> Table:
    """What each stage computes, and what it needs besides weights."""
    return table_of(
        "Stages of the call",
        "predicted",
        profile.stages,
        words("stage", lambda stage: stage_label(stage.name, stage.num_iterations)),
        gib("activations", lambda stage: stage.planned_activation_bytes + stage.pipeline_bytes),
        time("one iteration", lambda stage: stage.seconds),
        time("compute", lambda stage: stage.num_iterations * stage.seconds),
    )


class Model(Protocol):
    """A pipeline that is known by name."""

    @property
    def name(self) -> str:
        """What the command line takes."""

    @property
    def title(self) -> str:
        """What its makers call it."""

    @property
    def num_parameters(self) -> int:
        """Numbers in all of its weights."""

    @property
    def dtype(self) -> str:
        """The type of its weights."""


def model_table(models: Sequence[Model]) -> Table:
    """The pipelines that are known by name."""
    return table_of(
        "Pipelines known by name",
        None,
        models,
        words("model", lambda model: model.name),
        words("title", lambda model: model.title),
        figure("params", lambda model: f"{model.num_parameters / 1e9:.2f} B"),
        words("dtype", lambda model: model.dtype),
    )


def gpu_table(devices: Sequence[Device]) -> Table:
    """The GPUs that are known by name, with the rates that predictions rest on."""

    def arithmetic(device: Device) -> str:
        rate = device.flops_per_second.get("float16")
        return UNKNOWN if rate is None else f"{rate / 1e12:.0f}"

    return table_of(
        "GPUs known by name",
        None,
        devices,
        words("GPU", lambda device: device.name),
        figure("memory", lambda device: f"{device.total_bytes / GIB:.0f}", unit="GiB"),
        figure("usable", lambda device: f"{device.usable_bytes / GIB:.1f}", unit="GiB"),
        figure("float16", arithmetic, unit="TFLOP/s"),
        figure("bandwidth", lambda device: f"{device.memory_bytes_per_second / 1e9:.0f}", unit="GB/s"),
        figure("copies", lambda device: f"{device.pinned_copy_bytes_per_second / 1e9:.0f}", unit="GB/s"),
    )
