"""Nouns as rows: what every table, data frame and JSON answer is made from.

Each row is flat and tidy: one observation, units in the field names, unknown is None.
"""

from dataclasses import dataclass, replace
from typing import Literal

from vramtune.schema import (
    Comparison,
    Component,
    Estimate,
    Frontier,
    FrontierPoint,
    MeasuredStage,
    Measurement,
    ModeEstimate,
    Plan,
    Profile,
    RankedGpu,
    Ranking,
    Role,
    Stage,
    StageEstimate,
)

Limit = Literal["compute", "loads", "copy rate"]
"""What sets a plan's pace. `compute`: copies are hidden, or there are none. Otherwise it is of the stage that waits longest.
`loads`: it waits for what it loads once; more room would carry it over. `copy rate`: it streams in each iteration."""
HIDDEN_FRACTION = 0.005
"""Share of a call's seconds: a plan that waits no longer for copies is limited by compute, as its reasons say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentRow:
    """What one component costs in one call of the pipeline."""

    component: str
    class_name: str
    dtype: str
    weight_bytes: int
    used_bytes: int
    """The part of `weight_bytes` that this call uses."""
    is_excluded: bool
    """Whether the pipeline excludes it from offload: then all of it is on the device throughout."""
    activation_bytes: int | None
    """Highest reserved bytes of any of its calls; None where it is never called."""
    num_calls: int
    """Calls of any of its methods."""
    compute_seconds: float
    """Seconds of all its calls."""
    copy_seconds: float
    """Seconds of one copy of `used_bytes` to the device from pinned memory, with the GPU otherwise idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRow:
    """Where the weights of one placement are during one stage."""

    placement: str
    component: str
    stage: str
    active: bool
    role: Role
    num_kept: int
    num_groups: int
    weight_bytes: int
    """All of its groups."""
    kept_bytes: int
    slot_bytes: int
    locked_bytes: int
    """Of its groups that move, in whatever stage: those in page-locked host memory."""
    staged_bytes: int
    """The others, in ordinary host memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeRow:
    """One way to run the pipeline, beside the plan."""

    mode: str
    fits: bool | None
    lacks_ram: bool
    """Whether the peak is within the budget, and what it takes of the host is not within that."""
    is_narrow: bool
    """Whether it fits, and would not if everything were as large as is likely."""
    peak_bytes: int
    low_peak_bytes: int
    high_peak_bytes: int
    """What the peak is likely to be at the most."""
    seconds: float
    low_seconds: float
    high_seconds: float
    plan_ratio: float | None
    """Ratio of its seconds to the plan's; None where there is no plan."""
    compute_seconds: float
    exposed_copy_seconds: float
    """Seconds in which the GPU waits for copies, in either direction."""
    moved_bytes: int
    """Host to device, per call."""
    moved_back_bytes: int
    """Device to host, per call."""
    host_bytes: int
    """What its weights take of the host's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRow:
    """The fastest plan at one budget, beside the fastest stock mode that fits it."""

    budget_bytes: int
    peak_bytes: int
    seconds: float
    bound_seconds: float
    gap_fraction: float
    """Distance above the bound: 0.02 is two percent."""
    limit: Limit
    permissions: str
    """Names of the permissions that the plan uses, separated by commas."""
    stock_mode: str | None
    """None where no stock mode fits."""
    stock_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StockRow:
    """A stock mode at the memory that it needs, beside the fastest plan in as much."""

    mode: str
    fits: bool
    """Whether the card can give as much."""
    peak_bytes: int
    """The smallest memory that it works in: stock modes know no budget."""
    seconds: float
    plan_seconds: float | None
    """Seconds of the fastest plan in that memory, or in all that the card gives; None where no plan fits it."""
    plan_ratio: float | None
    """Ratio of its seconds to the plan's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """One GPU for a call. Seconds and bytes are None where nothing fits, unless it says otherwise."""

    gpu: str
    memory_bytes: int
    """Its nominal memory."""
    budget_bytes: int
    """What is planned for."""
    fits: bool
    is_in_time: bool
    """Whether it fits, and a call takes no longer than it may."""
    is_narrow: bool
    """Whether it fits, and would not if everything were as large as is likely."""
    role: Role | None
    """What the plan does with weights at the most: keep all, load some for a stage, stream some."""
    peak_bytes: int | None
    seconds: float | None
    low_seconds: float | None
    high_seconds: float | None
    bound_seconds: float | None
    moved_bytes: int | None
    permissions: str
    """Those that the plan uses, separated by commas."""
    least_bytes: int
    """The smallest budget for which there is a plan, whether the GPU has it or not."""
    least_seconds: float | None
    """Of a call in that budget."""
    helpful_permission: str | None
    """One that would help where nothing fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideRow:
    """One stage as it was predicted and as it was measured."""

    stage: str
    predicted: StageEstimate | None
    """None for a stage that the plan does not know."""
    measured: MeasuredStage | None
    """None for a stage that did not run. The peak is with the CUDA context where that is known."""

    @property
    def label(self) -> str:
        """The stage and how often it repeats."""
        return stage_label(self.stage, self.predicted.num_iterations if self.predicted else 1)


def stage_label(name: str, num_iterations: int) -> str:
    """A stage and how often it repeats: `"unet x50"`."""
    return name if num_iterations == 1 else f"{name} x{num_iterations}"


def component_rows(profile: Profile, *, permissions: tuple[str, ...] = ()) -> tuple[ComponentRow, ...]:
    """One row per component, in order of first use; calls are those made under the permissions."""
    profile = profile.under(permissions)
    return tuple(_component_row(component, profile, profile.stages) for component in profile.components_in_call_order)


def _component_row(component: Component, profile: Profile, stages: tuple[Stage, ...]) -> ComponentRow:
    calls = [
        (stage, activity) for stage in stages for activity in stage.activities if activity.component == component.name
    ]
    return ComponentRow(
        component=component.name,
        class_name=component.class_name,
        dtype=component.dtype,
        weight_bytes=component.weights.num_bytes,
        used_bytes=component.used_bytes,
        is_excluded=component.name in profile.excluded,
        activation_bytes=max((stage.planned_bytes_of(activity) for stage, activity in calls), default=None),
        num_calls=sum(stage.num_iterations * activity.num_calls for stage, activity in calls),
        compute_seconds=sum(stage.num_iterations * activity.seconds for stage, activity in calls),
        copy_seconds=component.used_bytes / profile.device.pinned_copy_bytes_per_second,
    )


def placement_rows(plan: Plan) -> tuple[PlacementRow, ...]:
    """One row per placement and stage: the plan itself, spelled out."""
    return tuple(
        PlacementRow(
            placement=placement.name,
            component=placement.component,
            stage=stage.name,
            active=placement.active[index],
            role=placement.role(index),
            num_kept=placement.kept[index],
            num_groups=len(placement.groups),
            weight_bytes=sum(group.weight_bytes for group in placement.groups),
            kept_bytes=placement.kept_bytes(index),
            slot_bytes=placement.slot_bytes(index),
            locked_bytes=placement.locked_bytes,
            staged_bytes=placement.staged_bytes,
        )
        for placement in plan.placements
        for index, stage in enumerate(plan.stages)
    )


def mode_rows(comparison: Comparison) -> tuple[ModeRow, ...]:
    """One row per mode, those that fit first, the fastest first among them."""
    plan_seconds = comparison.plan.estimate.seconds if comparison.plan else None
    rows = tuple(
        ModeRow(
            mode=mode.mode,
            fits=mode.fits,
            lacks_ram=mode.fits is False and mode.peak_bytes <= comparison.budget_bytes,
            is_narrow=mode.is_narrow,
            peak_bytes=mode.peak_bytes,
            low_peak_bytes=mode.low.peak_bytes,
            high_peak_bytes=mode.high.peak_bytes,
            seconds=mode.seconds,
            low_seconds=mode.low.seconds,
            high_seconds=mode.high.seconds,
            compute_seconds=mode.compute_seconds,
            moved_bytes=mode.moved_bytes,
            moved_back_bytes=mode.moved_back_bytes,
            host_bytes=mode.host_bytes,
            plan_ratio=_ratio(mode.seconds, plan_seconds),
            exposed_copy_seconds=max(mode.seconds - mode.compute_seconds, 0.0),  # below 0 only by rounding
        )
        for mode in comparison.modes
    )
    return tuple(sorted(rows, key=lambda row: (not row.fits, row.seconds)))


def _ratio(seconds: float, plan_seconds: float | None) -> float | None:
    return seconds / plan_seconds if plan_seconds else None


def point_rows(frontier: Frontier) -> tuple[PointRow, ...]:
    """One row per budget, in rising order."""
    return tuple(_point_row(point, frontier) for point in frontier.points)


def permissions_of_all(frontier: Frontier) -> tuple[str, ...] | None:
    """Under which all of its stock modes are predicted; None where they differ."""
    found = {mode.permissions for mode in frontier.stock}
    return found.pop() if len(found) == 1 else None


def _name(mode: ModeEstimate, frontier: Frontier) -> str:
    return mode.title if permissions_of_all(frontier) is None else mode.mode


def _point_row(point: FrontierPoint, frontier: Frontier) -> PointRow:
    fitting = [mode for mode in frontier.stock if mode.peak_bytes <= point.budget_bytes]
    best = min(fitting, key=lambda mode: mode.seconds, default=None)
    return PointRow(
        budget_bytes=point.budget_bytes,
        peak_bytes=point.estimate.peak_bytes,
        seconds=point.seconds,
        bound_seconds=point.estimate.bound_seconds,
        gap_fraction=point.estimate.gap_fraction,
        limit=_limit(point.estimate),
        permissions=", ".join(point.permissions),
        stock_mode=_name(best, frontier) if best else None,
        stock_seconds=best.seconds if best else None,
    )


def _limit(estimate: Estimate) -> Limit:
    if estimate.seconds < estimate.compute_seconds + HIDDEN_FRACTION * estimate.seconds:
        return "compute"
    longest = max(estimate.stages, key=lambda stage: stage.exposed_copy_seconds)
    return "copy rate" if longest.slot_bytes and longest.num_iterations > 1 else "loads"


def gpu_rows(ranking: Ranking) -> tuple[GpuRow, ...]:
    """One row per GPU, in the ranking's order."""
    return tuple(_gpu_row(gpu, ranking) for gpu in ranking.gpus)


def _gpu_row(gpu: RankedGpu, ranking: Ranking) -> GpuRow:
    estimate = gpu.best.estimate if gpu.best is not None else None
    return GpuRow(
        gpu=gpu.device.name,
        memory_bytes=gpu.device.total_bytes,
        budget_bytes=gpu.budget_bytes,
        fits=gpu.fits,
        is_in_time=ranking.is_in_time(gpu),
        is_narrow=estimate is not None and estimate.is_narrow,
        role=plan_role(estimate) if estimate is not None else None,
        peak_bytes=estimate.peak_bytes if estimate is not None else None,
        seconds=estimate.seconds if estimate is not None else None,
        low_seconds=estimate.low.seconds if estimate is not None else None,
        high_seconds=estimate.high.seconds if estimate is not None else None,
        bound_seconds=estimate.bound_seconds if estimate is not None else None,
        moved_bytes=estimate.moved_bytes if estimate is not None else None,
        permissions=", ".join(gpu.best.permissions) if gpu.best is not None else "",
        least_bytes=gpu.least_bytes,
        least_seconds=gpu.least.seconds if gpu.least is not None else None,
        helpful_permission=gpu.permission,
    )


def plan_role(estimate: Estimate) -> Role:
    """What a plan does with weights, at the most: stream some, load some for a stage, or keep all of them."""
    if any(stage.slot_bytes for stage in estimate.stages):
        return "streamed"
    return "offloaded" if estimate.moved_bytes else "resident"


def stock_rows(frontier: Frontier) -> tuple[StockRow, ...]:
    """One row per stock mode, the one that needs least memory first."""
    rows = (stock_row(mode, frontier) for mode in frontier.stock)
    return tuple(sorted(rows, key=lambda row: (row.peak_bytes, row.seconds)))


def stock_row(mode: ModeEstimate, frontier: Frontier) -> StockRow:
    """One stock mode beside the points of a frontier."""
    fitting = [point.seconds for point in frontier.points if point.budget_bytes <= mode.peak_bytes]
    plan_seconds = fitting[-1] if fitting else None  # points are faster the more memory they have
    return StockRow(
        mode=_name(mode, frontier),
        fits=mode.peak_bytes <= frontier.device.usable_bytes,
        peak_bytes=mode.peak_bytes,
        seconds=mode.seconds,
        plan_seconds=plan_seconds,
        plan_ratio=_ratio(mode.seconds, plan_seconds),
    )


def beside_rows(plan: Plan, measurement: Measurement | None) -> tuple[BesideRow, ...]:
    """One row per stage of the plan, then those that it does not know.

    Stages are matched by name, which is unique in a plan; a call that came back to one counts together.
    """
    predicted = {stage.name: stage for stage in plan.estimate.stages}
    measured = _by_name(measurement) if measurement else {}
    return tuple(
        BesideRow(stage=name, predicted=predicted.get(name), measured=measured.get(name))
        for name in dict.fromkeys((*predicted, *measured))
    )


def _by_name(measurement: Measurement) -> dict[str, MeasuredStage]:
    """The stages that ran under one name, together, their peaks with the context."""
    together: dict[str, MeasuredStage] = {}
    for stage in measurement.stages:
        whole = replace(stage, peak_bytes=stage.peak_bytes + (measurement.context_bytes or 0))
        before = together.get(stage.name)
        together[stage.name] = _sum(before, whole) if before else whole
    return together


def _sum(one: MeasuredStage, other: MeasuredStage) -> MeasuredStage:
    return MeasuredStage(
        name=one.name,
        seconds=one.seconds + other.seconds,
        exposed_copy_seconds=one.exposed_copy_seconds + other.exposed_copy_seconds,
        moved_bytes=one.moved_bytes + other.moved_bytes,
        peak_bytes=max(one.peak_bytes, other.peak_bytes),
    )
