"""A profile, or the problem that it poses, at one end of what is likely."""

from dataclasses import replace
from typing import Literal

from vramtune.schema import Activity, Device, Profile, Spread, Stage
from vramtune.tuner.problem import Problem, StageProblem

End = Literal["low", "high"]
"""Everything as fast and small as is likely, or as slow and large."""
ENDS: tuple[End, End] = ("low", "high")


def problem_at(problem: Problem, end: End) -> Problem:
    """The same units and stages; weights are known, so they stay."""
    device = device_at(problem.device, end)
    fixed_bytes = device.context_bytes - problem.device.context_bytes
    activations = _factor(problem.device.spreads.activations, end)

    def stage_at(stage: StageProblem) -> StageProblem:
        factor = _factor(stage.spread, end)
        activation_bytes = round(activations * stage.activation_bytes)
        return replace(
            stage,
            visits=tuple(
                visit._replace(gpu_seconds=factor * visit.gpu_seconds, host_seconds=factor * visit.host_seconds)
                for visit in stage.visits
            ),
            compute_seconds=factor * stage.compute_seconds,
            pipeline_seconds=factor * stage.pipeline_seconds,
            activation_bytes=activation_bytes,
            overhead_bytes=stage.overhead_bytes + activation_bytes - stage.activation_bytes + fixed_bytes,
        )

    finer = None if problem.finer is None else problem_at(problem.finer, end)
    return replace(problem, device=device, stages=tuple(map(stage_at, problem.stages)), finer=finer)


def profile_at(profile: Profile, end: End) -> Profile:
    """The same call."""
    activations = _factor(profile.device.spreads.activations, end)

    def activity_at(activity: Activity) -> Activity:
        factor = _factor(activity.spread, end)
        segments = tuple(
            replace(
                segment,
                layer_seconds=factor * segment.layer_seconds,
                layer_activation_bytes=round(activations * segment.layer_activation_bytes),
                after_seconds=factor * segment.after_seconds,
                after_activation_bytes=round(activations * segment.after_activation_bytes),
            )
            for segment in activity.segments
        )
        return replace(activity, segments=segments, activation_bytes=round(activations * activity.activation_bytes))

    def stage_at(stage: Stage) -> Stage:
        return replace(
            stage,
            activities=tuple(map(activity_at, stage.activities)),
            pipeline_bytes=round(activations * stage.pipeline_bytes),
            pipeline_seconds=_factor(stage.spread, end) * stage.pipeline_seconds,
        )

    return replace(profile, device=device_at(profile.device, end), stages=tuple(map(stage_at, profile.stages)))


def device_at(device: Device, end: End) -> Device:
    """Its context and its copies; what computes is in the profile."""
    pinned, pageable = _factor(device.spreads.copies, end), _factor(device.spreads.pageable_copies, end)
    return replace(
        device,
        context_bytes=round(_factor(device.spreads.context, end) * device.context_bytes),
        pinned_copy_bytes_per_second=device.pinned_copy_bytes_per_second / pinned,
        pageable_copy_bytes_per_second=device.pageable_copy_bytes_per_second / pageable,
        staging_bytes_per_second=device.staging_bytes_per_second / pageable,
        page_cache_bytes_per_second=device.page_cache_bytes_per_second
        and device.page_cache_bytes_per_second / pageable,
        storage_bytes_per_second=device.storage_bytes_per_second / pageable,
        readback_bytes_per_second=device.readback_bytes_per_second / pageable,
        operation_seconds=device.operation_seconds * _factor(device.spreads.host, end),
    )


def _factor(spread: Spread, end: End) -> float:
    return spread.low if end == "low" else spread.high
