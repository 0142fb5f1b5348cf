"""Why a plan is as it is: findings from the problem's own numbers."""

from vramtune.schema import Estimate, Reason, placement_name
from vramtune.tuner.bound import bound_seconds
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.problem import Problem
from vramtune.tuner.schedule import host_seconds, read_bytes, reading_seconds, staged_bytes, staging_seconds
from vramtune.units import GIB

HIDDEN_FRACTION = 0.005
"""Share of a call's seconds: a plan that waits for copies for less is limited by compute."""
SATURATED_GAP = 1e-3
"""A plan that moves nothing and is no further above its bound gains nothing from more memory."""


def explain(candidate: Candidate, estimate: Estimate, budget_bytes: int) -> tuple[Reason, ...]:
    """What sets the pace, what sets the peak, why components are resident or not."""
    return (
        _pace(candidate, estimate),
        _peak(candidate, budget_bytes),
        *_excluded(candidate.problem),
        *_not_resident(candidate, estimate, budget_bytes),
        _more(candidate.problem, estimate, budget_bytes),
    )


def _pace(candidate: Candidate, estimate: Estimate) -> Reason:
    """The stage with the most seconds beyond its compute, or that there is none."""
    exposed = [stage.seconds - stage.compute_seconds for stage in estimate.stages]
    s = max(range(len(exposed)), key=exposed.__getitem__)
    if sum(exposed) < HIDDEN_FRACTION * estimate.seconds:
        return Reason(kind="compute_bound")
    problem, stage = candidate.problem, estimate.stages[s]
    residencies = candidate.residencies(s)
    by_host = host_seconds(problem, problem.stages[s], residencies)
    if by_host >= (1 - HIDDEN_FRACTION) * stage.seconds:
        seconds = {"host": by_host, "compute": stage.compute_seconds, "exposed": exposed[s]}
        return Reason(kind="host_bound", stage=stage.name, seconds=seconds)
    copy_seconds = stage.moved_bytes / problem.copy_bytes_per_second
    staged = staged_bytes(problem, problem.stages[s], residencies)
    by_staging = staging_seconds(problem, problem.stages[s], residencies)
    by_reading = reading_seconds(problem, problem.stages[s], residencies)
    read = read_bytes(problem, problem.stages[s], residencies)
    if read and by_reading > max(by_staging, copy_seconds):
        seconds = {"reading": by_reading, "compute": stage.compute_seconds, "exposed": exposed[s]}
        return Reason(kind="disk_bound", stage=stage.name, num_bytes={"read": read}, seconds=seconds)
    if by_staging > copy_seconds:
        seconds = {"staging": by_staging, "compute": stage.compute_seconds, "exposed": exposed[s]}
        return Reason(kind="staging_bound", stage=stage.name, num_bytes={"staged": staged}, seconds=seconds)
    streams = any(residency.kept < len(problem.units[u].groups) for u, residency in residencies.items())
    return Reason(
        kind="copy_bound",
        stage=stage.name,
        num_bytes={"streamed" if streams else "loaded": stage.moved_bytes},
        seconds={"copies": copy_seconds, "compute": stage.compute_seconds, "exposed": exposed[s]},
    )


def _peak(candidate: Candidate, budget_bytes: int) -> Reason:
    """The stage that needs most, and what that is made of; in another PyTorch may cache more of what is left."""
    problem = candidate.problem
    s = max(range(len(problem.stages)), key=candidate.stage_bytes)
    stage, held = problem.stages[s], candidate.stage_bytes(s)
    others = stage.overhead_bytes - problem.unused_bytes
    return Reason(
        kind="peak",
        stage=stage.name,
        num_bytes={"weights": held - others, "others": others, "free": budget_bytes - held},
    )


def _excluded(problem: Problem) -> list[Reason]:
    """For each component that is resident because it is excluded from offload: what it holds."""
    held = problem.excluded.copy()
    for unit in problem.units:
        if unit.is_excluded:
            held[unit.component] += unit.total_bytes
    return [
        Reason(kind="excluded", component=component, num_bytes={"weights": num_bytes})
        for component, num_bytes in held.items()
    ]


def _not_resident(candidate: Candidate, estimate: Estimate, budget_bytes: int) -> list[Reason]:
    """For each unit that is not resident: the stage that has no room for it, and what that costs."""
    problem, reasons = candidate.problem, []
    for u, unit in enumerate(problem.units):
        missing = unit.total_bytes - unit.prefix[candidate.resident[u]]
        if not missing:
            continue
        over = [_bytes_if_resident(candidate, u, s) - budget_bytes for s in range(len(problem.stages))]
        s = max(range(len(over)), key=over.__getitem__)
        exposed = sum(
            stage.seconds - stage.compute_seconds
            for active, stage in zip(problem.stages, estimate.stages, strict=True)
            if u in active.active
        )
        reasons.append(
            Reason(
                kind="not_resident",
                component=placement_name(unit.component, unit.methods),
                stage=problem.stages[s].name,
                num_bytes={"missing": missing, "over_budget": over[s]},
                seconds={"exposed": max(exposed, 0.0)},
            )
        )
    return reasons


def _bytes_if_resident(candidate: Candidate, u: int, s: int) -> int:
    """Bytes on the device in a stage if a unit were resident and all else stayed as it is."""
    unit, row = candidate.problem.units[u], candidate.kept[u]
    is_active = u in candidate.problem.stages[s].active
    slots = unit.slot_bytes(row[s], candidate.num_slots[u]) if is_active else 0
    whole = unit.kept_bytes((len(unit.groups),) * len(row))
    return candidate.stage_bytes(s) - slots + whole[s] - unit.kept_bytes(row)[s]


def _more(problem: Problem, estimate: Estimate, budget_bytes: int) -> Reason:
    """What one GiB more could save at the most, from the bounds, or that there is nothing to save."""
    if estimate.gap_fraction < SATURATED_GAP and estimate.moved_bytes == 0:
        return Reason(kind="all_resident")
    saved = estimate.seconds - bound_seconds(problem, budget_bytes + GIB)
    least = sum(stage.num_iterations * stage.compute_seconds for stage in problem.stages)
    return Reason(kind="more_memory", seconds={"one_gib": max(saved, 0.0), "unlimited": estimate.seconds - least})
