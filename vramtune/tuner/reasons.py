"""Why a plan is as it is, in sentences made from the problem's own numbers."""

from vramtune.schema import Estimate, placement_name
from vramtune.tuner.linear_program import bound_seconds
from vramtune.tuner.local_search import State, residencies, stage_bytes
from vramtune.tuner.problem import Problem
from vramtune.units import GIB, format_bytes, format_seconds


def explain(
    problem: Problem, state: State, found: Estimate, budget_bytes: int, permissions: tuple[str, ...]
) -> tuple[str, ...]:
    """Permissions used, what sets the pace, what sets the peak, why components are resident or not."""
    return (
        *(f"Uses {name!r}, which you allowed: the output changes slightly." for name in permissions),
        _pace(problem, state, found),
        _peak(problem, state, budget_bytes),
        *_excluded(problem),
        *_not_resident(problem, state, found, budget_bytes),
        *_more(problem, found, budget_bytes),
    )


def _pace(problem: Problem, state: State, found: Estimate) -> str:
    """The stage with the most seconds beyond its compute, or that there is none."""
    exposed = [stage.seconds - stage.compute_seconds for stage in found.stages]
    s = max(range(len(exposed)), key=exposed.__getitem__)
    if sum(exposed) < 0.005 * found.seconds:
        return "Compute sets the pace: copies are hidden behind it, or there are none."
    stage, estimate = problem.stages[s], found.stages[s]
    copies = estimate.moved_bytes / problem.copy_bytes_per_second
    streams = any(r.kept < len(problem.units[u].groups) for u, r in residencies(problem, state, s).items())
    verb = "streams" if streams else "loads"
    return (
        f"Stage {stage.name!r} waits longest for copies: it {verb} {format_bytes(estimate.moved_bytes)} "
        f"({format_seconds(copies)} of copying beside {format_seconds(estimate.compute_seconds)} of compute) "
        f"and loses {format_seconds(exposed[s])}."
    )


def _peak(problem: Problem, state: State, budget_bytes: int) -> str:
    """The stage with the highest peak, and what it is made of."""
    held = [stage_bytes(problem, state, s) for s in range(len(problem.stages))]
    s = max(range(len(held)), key=held.__getitem__)
    stage = problem.stages[s]
    besides = stage.overhead_bytes - problem.unused_bytes
    weights = format_bytes(held[s] - besides)
    return (
        f"The peak is in stage {stage.name!r}: {weights} of weights and slots, {format_bytes(besides)} of activations, "
        f"pipeline tensors, workspaces and context; {format_bytes(budget_bytes - held[s])} stay free."
    )


def _excluded(problem: Problem) -> list[str]:
    """For each component that is resident because it is excluded from offload: what it holds."""
    held = problem.excluded.copy()
    for unit in problem.units:
        if unit.is_excluded:
            held[unit.component] += unit.total_bytes
    return [
        f"{component} is resident because the pipeline excludes it from offload: {format_bytes(num_bytes)} in every "
        "stage."
        for component, num_bytes in held.items()
    ]


def _not_resident(problem: Problem, state: State, found: Estimate, budget_bytes: int) -> list[str]:
    """For each unit that is not resident: the stage that has no room for it, and what that costs."""
    sentences = []
    for u, unit in enumerate(problem.units):
        missing = unit.total_bytes - unit.prefix[state.resident[u]]
        if not missing:
            continue
        over = [_if_resident(problem, state, u, s) - budget_bytes for s in range(len(problem.stages))]
        s = max(range(len(over)), key=over.__getitem__)
        waiting = sum(
            found.stages[s].seconds - found.stages[s].compute_seconds
            for s, stage in enumerate(problem.stages)
            if u in stage.active
        )
        why = (
            f"would put stage {problem.stages[s].name!r} {format_bytes(over[s])} over the budget"
            if over[s] > 0
            else "would fit, and save next to nothing"
        )
        sentences.append(
            f"{placement_name(unit.component, unit.methods)} is not resident: to keep the other {format_bytes(missing)} of it {why}; "
            f"its stages wait {format_seconds(max(waiting, 0.0))} for copies."
        )
    return sentences


def _if_resident(problem: Problem, state: State, u: int, s: int) -> int:
    """Bytes on the device in a stage if a unit were resident and all else stayed as it is."""
    unit, kept = problem.units[u], state.kept[u][s]
    slots = unit.ring_bytes(kept, state.num_slots[u]) if u in problem.stages[s].active else 0
    return stage_bytes(problem, state, s) - slots + unit.total_bytes - unit.prefix[kept]


def _more(problem: Problem, found: Estimate, budget_bytes: int) -> list[str]:
    """What one GiB more could save at the most, from the bounds; nothing if there is nothing to save."""
    if found.gap_fraction < 1e-3 and found.moved_bytes == 0:
        return ["Everything the call uses stays on the GPU: more memory would save nothing."]
    saved = found.seconds - bound_seconds(problem, budget_bytes + GIB)
    least = sum(stage.num_iterations * stage.compute_seconds for stage in problem.stages)
    return [
        f"One GiB more could save {format_seconds(max(saved, 0.0))} at the most, all the memory in the world "
        f"{format_seconds(found.seconds - least)}."
    ]
