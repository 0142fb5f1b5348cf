"""Nouns as rows: what every table, text and later page is made from.

Each row is flat and tidy: one observation, units in the field names, unknown is None.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vramtune.schema import (
    Activity,
    Comparison,
    Component,
    Frontier,
    FrontierPoint,
    MeasuredStage,
    Measurement,
    ModeEstimate,
    Plan,
    Profile,
    Role,
    Stage,
    StageEstimate,
)


@runtime_checkable
class Tuned(Protocol):
    """A tuned pipeline, as far as it can be shown."""

    @property
    def profile(self) -> Profile: ...  # noqa: D102
    @property
    def plan(self) -> Plan: ...  # noqa: D102
    @property
    def measured(self) -> Measurement | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentRow:
    """What one component costs in one call of the pipeline."""

    component: str
    class_name: str
    dtype: str
    weight_bytes: int
    used_bytes: int
    """Of `weight_bytes`, what this call uses."""
    is_excluded: bool
    """Whether the pipeline excludes it from offload: then all of it is on the device throughout."""
    activation_bytes: int | None
    """Highest reserved bytes of any of its calls; None where it is never called."""
    num_calls: int
    """Of all its methods."""
    compute_seconds: float
    """Of all its calls."""
    copy_seconds: float
    """To copy `used_bytes` to the device once from pinned memory, with the GPU otherwise idle."""


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
    kept_bytes: int
    slot_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """What is on the device in one stage of a planned call, and how long it takes.

    Weights, slots, activations, context and workspaces add up to the peak.
    """

    stage: str
    num_iterations: int
    kept_bytes: int
    """Weights there throughout: those kept, also of idle components, and all of what is excluded from offload."""
    slot_bytes: int
    """The slots through which the other weights are streamed."""
    activation_bytes: int
    """The stage's highest activations, with what the pipeline itself holds."""
    fixed_bytes: int
    """The CUDA context and the libraries' workspaces."""
    peak_bytes: int
    seconds: float
    """Of all iterations."""
    compute_seconds: float
    moved_bytes: int
    """Host to device, in a call that follows another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeRow:
    """One way to run the pipeline, beside the plan."""

    mode: str
    fits: bool | None
    peak_bytes: int
    seconds: float
    plan_ratio: float | None
    """Its seconds over the plan's; None where there is no plan."""
    compute_seconds: float
    exposed_copy_seconds: float
    """The rest of its seconds: the GPU's arithmetic waits for copies, in or out."""
    moved_bytes: int
    moved_back_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRow:
    """The fastest plan at one budget, beside the fastest stock mode that fits it."""

    budget_bytes: int
    peak_bytes: int
    seconds: float
    bound_seconds: float
    stock_mode: str | None
    """None where no stock mode fits."""
    stock_seconds: float | None

    @property
    def gap_fraction(self) -> float:
        """How far above the bound."""
        return self.seconds / self.bound_seconds - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideRow:
    """One stage as it was predicted and as it was measured.

    What was predicted is None for a stage that the plan does not know, what was measured for one that did not run.
    """

    stage: str
    num_iterations: int | None
    predicted_peak_bytes: int | None
    measured_peak_bytes: int | None
    """With the CUDA context where that is known; it is always in the predicted one."""
    predicted_seconds: float | None
    measured_seconds: float | None
    measured_exposed_copy_seconds: float | None
    predicted_moved_bytes: int | None
    measured_moved_bytes: int | None


def stage_label(name: str, num_iterations: int | None) -> str:
    """A stage and how often it repeats: `"unet x50"`."""
    return name if num_iterations in (1, None) else f"{name} x{num_iterations}"


def component_rows(profile: Profile, *, permissions: tuple[str, ...] = ()) -> tuple[ComponentRow, ...]:
    """One row per component, in order of first use; calls are those made under the permissions."""
    stages = profile.stages_with(permissions)
    return tuple(
        _component_row(component, profile, stages) for component in components_in_call_order(profile)
    )


def components_in_call_order(profile: Profile) -> tuple[Component, ...]:
    """The components by first use; those that are never called come last."""
    called = list(dict.fromkeys(name for stage in profile.stages for name in stage.components))
    last = len(called)
    return tuple(sorted(profile.components, key=lambda c: called.index(c.name) if c.name in called else last))


def _component_row(component: Component, profile: Profile, stages: tuple[Stage, ...]) -> ComponentRow:
    calls = _activities(component.name, stages)
    return ComponentRow(
        component=component.name,
        class_name=component.class_name,
        dtype=component.dtype,
        weight_bytes=component.weights.num_bytes,
        used_bytes=component.used_bytes,
        is_excluded=component.name in profile.excluded,
        activation_bytes=max((activity.activation_bytes for _, activity in calls), default=None),
        num_calls=sum(repeats * activity.num_calls for repeats, activity in calls),
        compute_seconds=sum(repeats * activity.seconds for repeats, activity in calls),
        copy_seconds=component.used_bytes / profile.device.pinned_copy_bytes_per_second,
    )


def _activities(component: str, stages: tuple[Stage, ...]) -> tuple[tuple[int, Activity], ...]:
    """What the component does, each with how often its stage repeats."""
    return tuple(
        (stage.num_iterations, activity)
        for stage in stages
        for activity in stage.activities
        if activity.component == component
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
            kept_bytes=placement.kept_bytes(index),
            slot_bytes=placement.slot_bytes(index),
        )
        for placement in plan.placements
        for index, stage in enumerate(plan.stages)
    )


def stage_rows(profile: Profile, plan: Plan) -> tuple[StageRow, ...]:
    """One row per stage of the plan, in call order."""
    stages = profile.stages_with(plan.permissions)
    return tuple(
        _stage_row(profile, plan, index, stage, estimate)
        for index, (stage, estimate) in enumerate(zip(stages, plan.estimate.stages, strict=True))
    )


def _stage_row(profile: Profile, plan: Plan, index: int, stage: Stage, estimate: StageEstimate) -> StageRow:
    kept_bytes = sum(placement.kept_bytes(index) for placement in plan.placements)
    return StageRow(
        stage=stage.name,
        num_iterations=stage.num_iterations,
        kept_bytes=kept_bytes + _unplanned_bytes(profile, plan),
        slot_bytes=sum(placement.slot_bytes(index) for placement in plan.placements),
        activation_bytes=stage.activation_bytes + stage.pipeline_bytes,
        fixed_bytes=profile.device.context_bytes + profile.device.workspace_bytes,
        peak_bytes=estimate.peak_bytes,
        seconds=estimate.seconds,
        compute_seconds=estimate.compute_seconds,
        moved_bytes=estimate.moved_bytes,
    )


def _unplanned_bytes(profile: Profile, plan: Plan) -> int:
    """What components excluded from offload own beyond what the plan places; a root that placements share counts once."""
    excluded = [component for component in profile.components if component.name in profile.excluded]
    placed = {(p.component, group) for p in plan.placements for group in p.groups}
    names = {component.name for component in excluded}
    return sum(component.weights.allocated_bytes for component in excluded) - sum(
        group.weight_bytes for component, group in placed if component in names
    )


def mode_rows(comparison: Comparison) -> tuple[ModeRow, ...]:
    """One row per mode, those that fit first, the fastest first among them."""
    plan = comparison.plan
    rows = tuple(
        ModeRow(
            mode=mode.mode,
            fits=mode.fits,
            peak_bytes=mode.peak_bytes,
            seconds=mode.seconds,
            plan_ratio=mode.seconds / plan.seconds if plan else None,
            compute_seconds=mode.compute_seconds,
            exposed_copy_seconds=max(mode.seconds - mode.compute_seconds, 0.0),  # no less, but for rounding
            moved_bytes=mode.moved_bytes,
            moved_back_bytes=mode.moved_back_bytes,
        )
        for mode in comparison.modes
    )
    return tuple(sorted(rows, key=lambda row: (not row.fits, row.seconds)))


def point_rows(frontier: Frontier) -> tuple[PointRow, ...]:
    """One row per budget, in rising order."""
    return tuple(_point_row(point, frontier.modes) for point in frontier.points)


def _point_row(point: FrontierPoint, modes: tuple[ModeEstimate, ...]) -> PointRow:
    fitting = [mode for mode in modes if mode.peak_bytes <= point.budget_bytes]
    best = min(fitting, key=lambda mode: mode.seconds, default=None)
    return PointRow(
        budget_bytes=point.budget_bytes,
        peak_bytes=point.peak_bytes,
        seconds=point.seconds,
        bound_seconds=point.bound_seconds,
        stock_mode=best.mode if best else None,
        stock_seconds=best.seconds if best else None,
    )


def beside_rows(plan: Plan, measurement: Measurement | None) -> tuple[BesideRow, ...]:
    """One row per stage of the plan, then those that it does not know.

    Stages are matched by name, which is unique in a plan; a call that came back to one counts together.
    """
    predicted = {stage.name: stage for stage in plan.estimate.stages}
    num_iterations = {stage.name: stage.num_iterations for stage in plan.stages}
    measured = _by_name(measurement.stages if measurement else ())
    context_bytes = (measurement.context_bytes or 0) if measurement else 0
    return tuple(
        _beside_row(name, num_iterations.get(name), predicted.get(name), measured.get(name), context_bytes)
        for name in dict.fromkeys((*predicted, *measured))
    )


def _by_name(stages: tuple[MeasuredStage, ...]) -> dict[str, MeasuredStage]:
    """What ran under one name, together."""
    found: dict[str, MeasuredStage] = {}
    for stage in stages:
        before = found.get(stage.name)
        found[stage.name] = _together(before, stage) if before else stage
    return found


def _together(one: MeasuredStage, other: MeasuredStage) -> MeasuredStage:
    return MeasuredStage(
        name=one.name,
        seconds=one.seconds + other.seconds,
        exposed_copy_seconds=one.exposed_copy_seconds + other.exposed_copy_seconds,
        moved_bytes=one.moved_bytes + other.moved_bytes,
        peak_bytes=max(one.peak_bytes, other.peak_bytes),
    )


def _beside_row(
    name: str,
    num_iterations: int | None,
    guess: StageEstimate | None,
    seen: MeasuredStage | None,
    context_bytes: int,
) -> BesideRow:
    return BesideRow(
        stage=name,
        num_iterations=num_iterations,
        predicted_peak_bytes=guess.peak_bytes if guess else None,
        measured_peak_bytes=seen.peak_bytes + context_bytes if seen else None,
        predicted_seconds=guess.seconds if guess else None,
        measured_seconds=seen.seconds if seen else None,
        measured_exposed_copy_seconds=seen.exposed_copy_seconds if seen else None,
        predicted_moved_bytes=guess.moved_bytes if guess else None,
        measured_moved_bytes=seen.moved_bytes if seen else None,
    )
