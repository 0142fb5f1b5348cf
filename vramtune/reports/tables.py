"""Nouns as rows: what every table, text and later page is made from.

Each row is flat and tidy: one observation, units in the field names, unknown is None.
"""

from dataclasses import dataclass

from vramtune.schema import Activity, Comparison, Component, Plan, Profile, Role, Stage, StageEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentRow:
    """What one component costs in one call of the pipeline."""

    component: str
    class_name: str
    dtype: str
    weight_bytes: int
    used_bytes: int
    """Of `weight_bytes`, what this call uses."""
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
    """What is on the device in one stage of a planned call, and how long it takes."""

    stage: str
    num_iterations: int
    kept_bytes: int
    """Weights kept throughout, those of idle components included."""
    slot_bytes: int
    """The slots through which the other weights are streamed."""
    activation_bytes: int
    """The stage's highest activations, with what the pipeline itself holds."""
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
    copied_in_bytes: int
    copied_out_bytes: int


def component_rows(profile: Profile, *, permissions: tuple[str, ...] = ()) -> tuple[ComponentRow, ...]:
    """One row per component, in order of first use; calls are those made under the permissions."""
    stages = profile.stages_with(permissions)
    rate = profile.device.pinned_copy_bytes_per_second
    return tuple(_component_row(component, stages, rate) for component in components_in_call_order(profile))


def components_in_call_order(profile: Profile) -> tuple[Component, ...]:
    """The components by first use; those that are never called come last."""
    called = list(dict.fromkeys(name for stage in profile.stages for name in stage.components))
    last = len(called)
    return tuple(sorted(profile.components, key=lambda c: called.index(c.name) if c.name in called else last))


def _component_row(component: Component, stages: tuple[Stage, ...], bytes_per_second: float) -> ComponentRow:
    calls = _activities(component.name, stages)
    return ComponentRow(
        component=component.name,
        class_name=component.class_name,
        dtype=component.dtype,
        weight_bytes=component.weights.num_bytes,
        used_bytes=component.used_bytes,
        activation_bytes=max((activity.activation_bytes for _, activity in calls), default=None),
        num_calls=sum(repeats * activity.num_calls for repeats, activity in calls),
        compute_seconds=sum(repeats * activity.seconds for repeats, activity in calls),
        copy_seconds=component.used_bytes / bytes_per_second,
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
        _stage_row(plan, index, stage, estimate)
        for index, (stage, estimate) in enumerate(zip(stages, plan.estimate.stages, strict=True))
    )


def _stage_row(plan: Plan, index: int, stage: Stage, estimate: StageEstimate) -> StageRow:
    return StageRow(
        stage=stage.name,
        num_iterations=stage.num_iterations,
        kept_bytes=sum(placement.kept_bytes(index) for placement in plan.placements),
        slot_bytes=sum(placement.slot_bytes(index) for placement in plan.placements),
        activation_bytes=stage.activation_bytes + stage.glue_bytes,
        peak_bytes=estimate.peak_bytes,
        seconds=estimate.seconds,
        compute_seconds=estimate.compute_seconds,
        moved_bytes=estimate.moved_bytes,
    )


def mode_rows(comparison: Comparison, *, plan: Plan | None = None) -> tuple[ModeRow, ...]:
    """One row per mode, those that fit first, the fastest first among them."""
    rows = tuple(
        ModeRow(
            mode=mode.mode,
            fits=mode.fits,
            peak_bytes=mode.peak_bytes,
            seconds=mode.seconds,
            plan_ratio=mode.seconds / plan.estimate.seconds if plan else None,
            compute_seconds=mode.compute_seconds,
            copied_in_bytes=mode.copied_in_bytes,
            copied_out_bytes=mode.copied_out_bytes,
        )
        for mode in comparison.modes
    )
    return tuple(sorted(rows, key=lambda row: (not row.fits, row.seconds)))
