"""(Profile, Plan) to what the device would do: an `Estimate` in milliseconds, a `Timeline` for drawing."""

from collections.abc import Iterator
from dataclasses import replace

from vramtune.caching_allocator import cached_within
from vramtune.errors import UsageError
from vramtune.schema import Engine, Estimate, Extreme, MemoryLevel, Plan, Profile, Span, Stage, StageEstimate, Timeline
from vramtune.tuner.bound import bound_seconds
from vramtune.tuner.budget import Budget
from vramtune.tuner.extremes import ENDS, problem_at
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.problem import planned_stages, pose
from vramtune.tuner.schedule import Visit, moved_bytes, stage_seconds, stage_visits

DRAWN = 200
"""Iterations of a stage that a timeline shows one by one: a million would fill the memory, and nobody looks at them."""


def estimate(candidate: Candidate, limit_bytes: int) -> Estimate:
    """The steady call, the first one, and the bound under a limit.

    The first call also waits for the resident groups, which come from ordinary memory one after the other, as
    with `pipe.to("cuda")`.
    """
    problem = candidate.problem
    stages = tuple(_stage_estimate(candidate, s, limit_bytes) for s in range(len(problem.stages)))
    seconds = sum(stage.seconds for stage in stages)
    resident = sum(unit.prefix[k] for unit, k in zip(problem.units, candidate.resident, strict=True))
    resident += problem.unused_bytes
    peak_bytes = max(stage.peak_bytes for stage in stages)
    ends = [replace(candidate, problem=problem_at(problem, end)) for end in ENDS]
    low, high = map(_extreme, ends)
    finest = problem.finer or problem
    return Estimate(
        peak_bytes=peak_bytes,
        seconds=seconds,
        first_call_seconds=seconds + resident / problem.device.pageable_copy_bytes_per_second,
        bound_seconds=bound_seconds(finest, limit_bytes),
        moved_bytes=sum(stage.moved_bytes for stage in stages),
        locked_bytes=candidate.locked_bytes,
        pageable_bytes=candidate.pageable_bytes,
        file_bytes=candidate.file_bytes,
        low=replace(low, peak_bytes=min(low.peak_bytes, peak_bytes)),
        high=replace(high, peak_bytes=max(high.peak_bytes, peak_bytes)),
        is_narrow=Candidate.least_of_any(ends[1].problem).peak_bytes > limit_bytes,
        stages=stages,
    )


def _extreme(candidate: Candidate) -> Extreme:
    problem = candidate.problem
    seconds = (stage_seconds(problem, stage, candidate.residencies(s)) for s, stage in enumerate(problem.stages))
    return Extreme(seconds=sum(seconds), peak_bytes=candidate.peak_bytes)


def _stage_estimate(candidate: Candidate, s: int, limit_bytes: int) -> StageEstimate:
    problem, stage, active = candidate.problem, candidate.problem.stages[s], candidate.residencies(s)
    shared_bytes = candidate.shared_bytes(s)
    room_bytes = limit_bytes - candidate.stage_bytes(s) + shared_bytes
    return StageEstimate(
        name=stage.name,
        num_iterations=stage.num_iterations,
        kept_bytes=candidate.weight_bytes(s) + problem.unused_bytes,
        slot_bytes=candidate.slot_bytes(s),
        activation_bytes=stage.activation_bytes,
        cached_bytes=cached_within(stage.cached_bytes, room_bytes),
        shared_bytes=shared_bytes,
        fixed_bytes=problem.fixed_bytes,
        seconds=stage_seconds(problem, stage, active),
        compute_seconds=stage.num_iterations * stage.compute_seconds,
        moved_bytes=moved_bytes(problem, stage, active),
    )


def timeline(profile: Profile, plan: Plan) -> Timeline:
    """A steady call of the plan, visit by visit: both engines, and who holds the device's memory when.

    Of a stage with more than `DRAWN` iterations, only so many are simulated; the others take as long as predicted.
    """
    candidate = recall(profile, plan)
    spans: list[Span] = []
    memory: list[MemoryLevel] = []
    clock = 0.0
    for s, stage in enumerate(profile.under(plan.permissions).stages):
        problem = candidate.problem
        posed, active = problem.stages[s], candidate.residencies(s)
        drawn = replace(posed, num_iterations=min(posed.num_iterations, DRAWN))
        iterations = stage_visits(problem, drawn, active)
        for number, visits in enumerate(iterations):
            spans += (span for visit in visits for span in _spans(candidate, s, number, visit, clock))
        end = clock + iterations[-1][-1].end + stage.pipeline_seconds
        if drawn != posed:
            end += stage_seconds(problem, posed, active) - stage_seconds(problem, drawn, active)
        memory += _levels(candidate, stage, s, plan.estimate.stages[s], iterations[0], clock, end)
        clock = end
    return Timeline(
        plan=plan,
        components=tuple(component.name for component in profile.components_in_call_order),
        spans=tuple(spans),
        memory=tuple(memory),
    )


def recall(profile: Profile, plan: Plan) -> Candidate:
    """The candidate that a plan stands for; `UsageError` if the profile does not allow it."""
    problem = pose((profile.finer or profile) if plan.is_finer else profile, plan.permissions)
    problem = Budget.of(plan).applied_to(problem)
    ours = [(unit.component, unit.methods, unit.groups) for unit in problem.units]
    theirs = [(p.component, p.methods, p.groups) for p in plan.placements]
    if ours != theirs or planned_stages(problem) != plan.stages:
        raise UsageError(
            f"This plan was made for a {plan.pipeline_class} with other weights or stages than this profile of a "
            f"{profile.pipeline_class}. Plan again with this profile."
        )
    for placement, unit in zip(plan.placements, problem.units, strict=True):
        if placement.num_resident < unit.least_idle:
            raise UsageError(
                f"This plan moves {unit.component}, which this profile's pipeline excludes from offload "
                "(`_exclude_from_cpu_offload`). Plan again with this profile."
            )
    locked = tuple(p.locked for p in plan.placements if p.locked is not None)
    return Candidate(
        problem,
        kept=tuple(p.kept for p in plan.placements),
        resident=tuple(p.num_resident for p in plan.placements),
        num_slots=tuple(p.num_slots for p in plan.placements),
        locked=locked or None,
    )


def _spans(candidate: Candidate, s: int, iteration: int, visit: Visit, clock: float) -> Iterator[Span]:
    unit = candidate.problem.units[visit.unit]
    engines: list[tuple[Engine, float, float]] = [("compute", visit.start, visit.end)]
    if visit.copy_start is not None:
        engines.append(("copy", visit.copy_start, visit.copy_end))
    for engine, start, end in engines:
        if end > start:
            yield Span(
                engine=engine,
                component=unit.component,
                group=unit.groups[visit.group].name,
                stage=s,
                iteration=iteration,
                is_kept=visit.group < candidate.kept[visit.unit][s],
                start_seconds=clock + start,
                end_seconds=clock + end,
            )


def _levels(
    candidate: Candidate, stage: Stage, s: int, found: StageEstimate, first: list[Visit], start: float, end: float
) -> Iterator[MemoryLevel]:
    """Levels of one stage: what is kept comes in during the first iteration; the rest is held throughout."""
    problem, active = candidate.problem, candidate.residencies(s)
    activation_bytes = found.activation_bytes - found.shared_bytes
    pipeline_bytes = min(problem.stages[s].activation_bytes - stage.planned_activation_bytes, activation_bytes)
    kept = [row[s] for row in candidate.kept]
    weights = [unit.kept_bytes(row)[s] for unit, row in zip(problem.units, candidate.kept, strict=True)]
    for u, residency in active.items():  # what is still to come
        prefix = problem.units[u].prefix
        weights[u] -= prefix[residency.kept] - prefix[residency.present]

    def level(since: float, until: float) -> MemoryLevel:
        return MemoryLevel(
            start_seconds=since,
            end_seconds=until,
            stage=s,
            component_bytes=_by_component(candidate, weights),
            slot_bytes=candidate.slot_bytes(s),
            activation_bytes=activation_bytes - pipeline_bytes,
            cached_bytes=found.cached_bytes,
            pipeline_bytes=pipeline_bytes,
            workspace_bytes=problem.device.workspace_bytes,
            context_bytes=problem.device.context_bytes,
        )

    since = start
    for visit in first:
        if visit.copy_start is None or visit.group >= kept[visit.unit]:
            continue
        moment = start + visit.copy_start
        if moment > since:
            yield level(since, moment)
        weights[visit.unit] += problem.units[visit.unit].sizes[visit.group]
        since = moment
    if end > since:
        yield level(since, end)


def _by_component(candidate: Candidate, weights: list[int]) -> dict[str, int]:
    held: dict[str, int] = {}
    for unit, num_bytes in zip(candidate.problem.units, weights, strict=True):
        held[unit.component] = held.get(unit.component, 0) + num_bytes
    for component, unused in candidate.problem.excluded.items():
        held[component] = held.get(component, 0) + unused
    return held
