"""(Profile, Plan) to what the device would do: an `Estimate` in milliseconds, a `Timeline` for drawing."""

from vramtune.errors import UsageError
from vramtune.schema import Engine, Estimate, MemoryLevel, Plan, Profile, Span, Stage, StageEstimate, Timeline
from vramtune.tuner.linear_program import bound_seconds
from vramtune.tuner.local_search import State, residencies, stage_bytes
from vramtune.tuner.problem import Problem, planned_stages, pose
from vramtune.tuner.schedule import Visit, moved_bytes, stage_seconds, stage_visits


def simulate(profile: Profile, plan: Plan) -> Estimate:
    """What a plan costs on the profile's device; `UsageError` if it was made for other weights or stages."""
    problem, state = recall(profile, plan)
    return estimate(problem, state, plan.budget_bytes)


def estimate(problem: Problem, state: State, budget_bytes: int) -> Estimate:
    """The steady call, the first one and the bound.

    The first call also waits for the resident groups, which come from ordinary memory one after the other, as
    with `pipe.to("cuda")`.
    """
    stages = []
    for s, stage in enumerate(problem.stages):
        active = residencies(problem, state, s)
        stages.append(
            StageEstimate(
                name=stage.name,
                peak_bytes=stage_bytes(problem, state, s),
                seconds=stage_seconds(problem, stage, active),
                compute_seconds=stage.num_iterations * stage.compute_seconds,
                moved_bytes=moved_bytes(problem, stage, active),
            )
        )
    seconds = sum(stage.seconds for stage in stages)
    resident = sum(unit.prefix[k] for unit, k in zip(problem.units, state.resident, strict=True))
    resident += problem.unused_bytes
    return Estimate(
        peak_bytes=max(stage.peak_bytes for stage in stages),
        seconds=seconds,
        first_call_seconds=seconds + resident / problem.device.pageable_copy_bytes_per_second,
        bound_seconds=bound_seconds(problem, budget_bytes),
        moved_bytes=sum(stage.moved_bytes for stage in stages),
        stages=tuple(stages),
    )


def timeline(profile: Profile, plan: Plan) -> Timeline:
    """A steady call of the plan, visit by visit: both engines, and who holds the device's memory when."""
    problem, state = recall(profile, plan)
    spans: list[Span] = []
    memory: list[MemoryLevel] = []
    clock = 0.0
    for s, stage in enumerate(profile.stages_with(plan.permissions)):
        iterations = stage_visits(problem, problem.stages[s], residencies(problem, state, s))
        for visit in (visit for iteration in iterations for visit in iteration):
            spans += _spans(problem, visit, clock)
        end = clock + iterations[-1][-1].end + stage.glue_seconds
        memory += _memory(problem, state, stage, s, iterations[0], clock, end)
        clock = end
    return Timeline(spans=tuple(spans), memory=tuple(memory))


def recall(profile: Profile, plan: Plan) -> tuple[Problem, State]:
    """The problem and state that a plan stands for; `UsageError` if the profile does not allow it."""
    problem = pose(profile, plan.permissions)
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
    return problem, State(
        tuple(p.kept for p in plan.placements),
        tuple(p.num_resident for p in plan.placements),
        tuple(p.num_slots for p in plan.placements),
    )


def _spans(problem: Problem, visit: Visit, clock: float) -> list[Span]:
    unit = problem.units[visit.unit]
    engines: list[tuple[Engine, float, float]] = [("compute", visit.start, visit.end)]
    if visit.copy_start is not None:
        engines.append(("copy", visit.copy_start, visit.copy_end))
    return [
        Span(
            engine=engine,
            component=unit.component,
            group=unit.groups[visit.group].name,
            start_seconds=clock + start,
            end_seconds=clock + end,
        )
        for engine, start, end in engines
        if end > start
    ]


def _memory(
    problem: Problem, state: State, stage: Stage, s: int, first: list[Visit], start: float, end: float
) -> list[MemoryLevel]:
    """Levels of one stage: what is kept comes in during the first iteration; the rest is held throughout."""
    active = residencies(problem, state, s)
    kept = [row[s] for row in state.kept]
    weights = [
        unit.prefix[active[u].present if u in active else kept[u]] for u, unit in enumerate(problem.units)
    ]
    fixed = {
        "slots": sum(problem.units[u].ring_bytes(r.kept, r.num_slots) for u, r in active.items()),
        "activations": stage.activation_bytes,
        "pipeline": stage.glue_bytes,
        "workspaces": problem.device.workspace_bytes,
        "context": problem.device.context_bytes,
    }
    levels, since = [], start
    for visit in first:
        if visit.copy_start is None or visit.group >= kept[visit.unit]:
            continue
        moment = start + visit.copy_start
        levels.append((since, moment, _by_component(problem, weights)))
        weights[visit.unit] += problem.units[visit.unit].sizes[visit.group]
        since = moment
    levels.append((since, end, _by_component(problem, weights)))
    return [
        MemoryLevel(start_seconds=begin, end_seconds=until, stage=s, owners={**owned, **fixed})
        for begin, until, owned in levels
        if until > begin
    ]


def _by_component(problem: Problem, weights: list[int]) -> dict[str, int]:
    owned: dict[str, int] = {}
    for unit, num_bytes in zip(problem.units, weights, strict=True):
        owned[unit.component] = owned.get(unit.component, 0) + num_bytes
    for component, unused in problem.excluded.items():
        owned[component] = owned.get(component, 0) + unused
    return owned
