"""The fastest plan under a budget: program, rounding to whole groups, polish, reasons."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, product
from math import ceil

from vramtune.errors import BudgetError, UnknownNameError, UsageError
from vramtune.schema import Device, Estimate, Placement, Plan, Profile
from vramtune.tuner.linear_program import SLACK_FRACTION, solve
from vramtune.tuner.local_search import Judge, State, polish, settle, stage_bytes
from vramtune.tuner.permissions import PERMISSIONS
from vramtune.tuner.problem import DEFAULT_SLOTS, Problem, planned_stages, pose
from vramtune.tuner.reasons import explain
from vramtune.tuner.simulate import estimate
from vramtune.units import format_bytes

# Bytes of a solution that lie this close under a whole group count as that group: solver tolerance.
ROUNDING = 1e-6


def choose_plan(
    profile: Profile, budget_bytes: int, *, allow: tuple[str, ...] = (), margin_fraction: float = 0.0
) -> Plan:
    """The fastest plan that stays under the budget, less a margin for what the prediction may miss (a share of it).

    A permission is used only if no plan fits without it, or if it is faster by more than the slack that the
    search itself allows. Raises `UsageError` for a budget above the card or an unknown permission, and
    `BudgetError` if nothing fits.
    """
    check(profile.device, budget_bytes, allow)
    limit = min(budget_bytes, profile.device.usable_bytes)
    budget = _less_margin(limit, margin_fraction)
    best = fastest(pose_permitted(profile, allow), budget, limit_bytes=limit)
    if best is None:
        raise nothing_fits(profile, budget_bytes, allow, margin_fraction=margin_fraction)
    permissions, problem, state, found = best
    return Plan(
        pipeline_class=profile.pipeline_class,
        workload=profile.workload,
        device_name=profile.device.name,
        asked_bytes=budget_bytes,
        budget_bytes=limit,
        stages=planned_stages(problem),
        placements=_placements(problem, state),
        permissions=permissions,
        estimate=found,
        reasons=explain(problem, state, found, budget, permissions),
        versions=profile.versions,
    )


def _less_margin(limit_bytes: int, margin_fraction: float) -> int:
    return int(limit_bytes * (1 - margin_fraction))


def _limit_for(num_bytes: int, margin_fraction: float) -> int:
    """The smallest limit that is so much without its margin."""
    limit = ceil(num_bytes / (1 - margin_fraction))
    return limit if _less_margin(limit, margin_fraction) >= num_bytes else limit + 1


def pose_permitted(profile: Profile, allow: tuple[str, ...]) -> dict[tuple[str, ...], Problem]:
    """The problems that a profile poses, by the permissions that are used, none first."""
    ways = ((), *((v.permission,) for v in profile.variants if v.permission in allow))
    return {permissions: pose(profile, permissions) for permissions in ways}


def fastest(
    problems: Mapping[tuple[str, ...], Problem], budget_bytes: int, *, limit_bytes: int
) -> tuple[tuple[str, ...], Problem, State, Estimate] | None:
    """The best state under a budget, of which problem, and its estimate, its bound that of the limit; None if none fits."""
    best: tuple[tuple[str, ...], Problem, State, Estimate] | None = None
    for permissions, problem in problems.items():
        state = find_state(problem, budget_bytes)
        if state is None:
            continue
        found = estimate(problem, state, limit_bytes)
        if best is None or found.seconds < best[3].seconds * (1 - SLACK_FRACTION):
            best = permissions, problem, state, found
    return best


def check(device: Device, budget_bytes: int, allow: Sequence[str]) -> None:
    """Refuse a budget above the card and permissions that do not exist: needs no profile, only the device."""
    for permission in allow:
        if permission not in PERMISSIONS:
            raise UnknownNameError("permission", permission, PERMISSIONS)
    if budget_bytes > device.total_bytes:
        raise UsageError(
            f"A budget of {format_bytes(budget_bytes)} was asked; {device.name} has "
            f"{format_bytes(device.total_bytes)}. Ask for at most that, or name a larger GPU."
        )


def find_state(problem: Problem, budget_bytes: int) -> State | None:
    """The best state found under a budget; None if none fits."""
    whole = _whole_state(problem, DEFAULT_SLOTS)
    if all(stage_bytes(problem, whole, s) <= budget_bytes for s in range(len(problem.stages))):
        return whole
    judge = Judge(problem, budget_bytes)
    best: State | None = None
    for start in _starts(problem, budget_bytes):
        best = min(filter(None, (best, polish(judge, start))), key=judge.score)
        if judge.is_tired:
            break
    return best


def _starts(problem: Problem, budget_bytes: int) -> Iterator[State]:
    """Where a search may start, best first: the program's solution with as many slots as fit, then states in which
    one unit gives way to the others."""
    solutions = (_rounded(problem, budget_bytes, num_slots) for num_slots in range(DEFAULT_SLOTS, 0, -1))
    wishes = product(range(1, DEFAULT_SLOTS + 1), problem.movable)
    givers = (settle(problem, budget_bytes, _whole_state(problem, n), victim) for n, victim in wishes)
    yield from filter(None, chain(islice(filter(None, solutions), 1), givers))


def least_bytes(problem: Problem) -> int:
    """The smallest budget for which a plan exists."""
    return max(_least_by_stage(problem))


def _least_by_stage(problem: Problem) -> list[int]:
    least = _least_state(problem)
    return [stage_bytes(problem, least, s) for s in range(len(problem.stages))]


def _rounded(problem: Problem, budget_bytes: int, num_slots: int) -> State | None:
    """The program's solution, rounded to whole groups and made to fit."""
    solution = solve(problem, budget_bytes, num_slots)
    if solution is None:
        return None
    kept = tuple(
        tuple(
            max(bisect_right(unit.prefix, bytes_kept + ROUNDING * unit.total_bytes) - 1, least)
            for bytes_kept, least in zip(row, least_row, strict=True)
        )
        for unit, row, least_row in zip(problem.units, solution, _least_state(problem).kept, strict=True)
    )
    wish = State(kept, tuple(min(row) for row in kept), (num_slots,) * len(problem.units))
    return settle(problem, budget_bytes, wish, 0)


def _whole_state(problem: Problem, num_slots: int) -> State:
    """Everything resident: nothing is faster, and nothing moves."""
    counts = tuple(len(unit.groups) for unit in problem.units)
    kept = tuple((count,) * len(problem.stages) for count in counts)
    return State(kept, counts, (num_slots,) * len(counts))


def _least_state(problem: Problem) -> State:
    """The least of each unit in each stage, one slot: no state needs fewer bytes."""
    kept = tuple(
        tuple(unit.least_kept if u in stage.active else unit.least_idle for stage in problem.stages)
        for u, unit in enumerate(problem.units)
    )
    return State(kept, tuple(unit.least_idle for unit in problem.units), (1,) * len(kept))


def _placements(problem: Problem, state: State) -> tuple[Placement, ...]:
    return tuple(
        Placement(
            component=unit.component,
            methods=unit.methods,
            groups=unit.groups,
            active=tuple(u in stage.active for stage in problem.stages),
            kept=state.kept[u],
            num_slots=state.num_slots[u],
        )
        for u, unit in enumerate(problem.units)
    )


def nothing_fits(
    profile: Profile, asked: int, allow: tuple[str, ...], *, margin_fraction: float = 0.0
) -> BudgetError:
    """The error that says how little would do, and which permission would lower it, or what exclusion is to blame."""
    variants: dict[tuple[str, ...], Problem] = {(): pose(profile)}
    variants |= {(v.permission,): pose(profile, (v.permission,)) for v in profile.variants}
    needed = {p: _limit_for(least_bytes(problem), margin_fraction) for p, problem in variants.items()}
    best = min((p for p in needed if set(p) <= set(allow)), key=needed.__getitem__)
    other = min(needed, key=needed.__getitem__)
    smallest = needed[best]
    permission, permitted = (other[0], needed[other]) if needed[other] < smallest else (None, None)
    least = _least_by_stage(variants[best])
    tight = variants[best].stages[least.index(least_bytes(variants[best]))]
    besides = tight.overhead_bytes - variants[best].unused_bytes
    most = profile.device.usable_bytes
    usable = "" if asked <= most else f" ({format_bytes(most)} of it usable on {profile.device.name})"
    on_card = smallest <= most
    advice = f"Give it at least {format_bytes(smallest)}" + ("" if on_card else ", which takes a larger GPU")
    if permitted is not None:
        advice += f", or allow {permission!r}, with which {format_bytes(permitted)} would do"
    advice += _without_exclusion(profile, best, min(asked, most), margin_fraction)
    return BudgetError(
        f"{profile.pipeline_class} does not fit {format_bytes(asked)}{usable}: stage {tight.name!r} alone needs "
        f"{format_bytes(smallest)}, {format_bytes(besides)} of it besides weights. {advice}.",
        budget_bytes=asked,
        smallest_bytes=smallest,
        permission=permission,
        permitted_bytes=permitted,
    )


def _without_exclusion(
    profile: Profile, permissions: tuple[str, ...], limit: int, margin_fraction: float
) -> str:
    """A further sentence of advice where the budget would do if nothing were excluded from offload."""
    enough = _limit_for(least_bytes(pose(replace(profile, excluded=()), permissions)), margin_fraction)
    if enough > limit:
        return ""
    names = [repr(c.name) for c in profile.components if c.name in profile.excluded]
    return (
        f". {' and '.join(names)} {'is' if len(names) == 1 else 'are'} excluded from offload (the pipeline's "
        f"`_exclude_from_cpu_offload`); without that {format_bytes(enough)} would do"
    )
