"""The fastest plan under a budget: linear program, rounding to whole groups, local search, reasons."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, product
from typing import NamedTuple

from vramtune.errors import BudgetError, UnknownNameError, UsageError
from vramtune.schema import PERMISSIONS, Device, Estimate, Placement, Plan, Profile, Reason
from vramtune.tuner.budget import MARGIN_FRACTION, Budget, nothing_fits, too_little_ram
from vramtune.tuner.linear_program import SLACK_FRACTION, solve
from vramtune.tuner.local_search import Candidate, Judge, polish, settle
from vramtune.tuner.problem import DEFAULT_SLOTS, Problem, planned_stages, pose
from vramtune.tuner.reasons import explain
from vramtune.tuner.simulate import estimate
from vramtune.units import format_bytes

# Bytes of a solution that lie this close under a whole group count as that group: solver tolerance.
ROUNDING = 1e-6
# Share of the seconds that finer groups must save: each more costs the host, on slow ones more than is predicted.
LEAST_FINER_GAIN = 0.01
# Share of the seconds that a permission must save to be used where a plan fits without it: it changes the output.
LEAST_PERMITTED_GAIN = 0.005


class Choice(NamedTuple):
    """The best candidate under the permissions that it uses, and what it is predicted to cost."""

    permissions: tuple[str, ...]
    candidate: Candidate
    estimate: Estimate
    is_finer: bool
    """Whether it moves the finer groups."""


def choose_plan(
    profile: Profile,
    asked_bytes: int,
    *,
    ram_bytes: int | None = None,
    lock_bytes: int | None = None,
    allow: tuple[str, ...] = (),
    margin_fraction: float = 0.0,
) -> Plan:
    """The fastest plan that stays under the budget, less a margin for what the prediction may miss (a share of it).

    `ram_bytes` is what weights may take of the host, `lock_bytes` what of that may be page-locked; left out, all that the
    device's facts say there is. A permission is used only if no plan fits without it, or if it is faster by more than
    `LEAST_PERMITTED_GAIN`. Raises `UsageError` for a budget above the card or an unknown permission, and `BudgetError` if
    nothing fits.
    """
    check(profile.device, asked_bytes, allow)
    budget = Budget.on(
        profile.device, asked_bytes, ram_bytes=ram_bytes, lock_bytes=lock_bytes, margin_fraction=margin_fraction
    )
    return _fastest_plan(profile, pose_permitted(profile, allow), budget, allow)


def plan_again(profile: Profile, plan: Plan) -> Plan:
    """A plan for what a pipeline that is at work became, within the budget and under the permissions of its first plan.

    Raises `BudgetError` if nothing fits.
    """
    budget = Budget.of(plan, margin_fraction=MARGIN_FRACTION)
    problems = {plan.permissions: pose(profile, plan.permissions)}
    return _fastest_plan(profile, problems, budget, plan.permissions)


def _fastest_plan(
    profile: Profile, problems: Mapping[tuple[str, ...], Problem], budget: Budget, allow: tuple[str, ...]
) -> Plan:
    choices = choose(problems, budget)
    choice = fastest(choices)
    if choice is None:
        raise no_plan(profile, problems, budget, allow)
    return Plan(
        pipeline_class=profile.pipeline_class,
        workload=profile.workload,
        device_name=profile.device.name,
        asked_bytes=budget.asked_bytes,
        budget_bytes=budget.limit_bytes,
        ram_bytes=budget.ram_bytes,
        lockable_bytes=budget.lockable_bytes,
        storage_bytes_per_second=_storage_rate(choice),
        storage_source=profile.device.storage_source,
        stages=planned_stages(choice.candidate.problem),
        placements=_placements(choice.candidate),
        permissions=choice.permissions,
        is_finer=choice.is_finer,
        estimate=choice.estimate,
        reasons=(
            *_permissions_used(choice, choices, problems, budget),
            *explain(choice.candidate, choice.estimate, budget.target_bytes),
        ),
        versions=profile.versions,
    )


def _storage_rate(choice: Choice) -> float | None:
    """How fast files are read at each visit; None where they are not."""
    problem = choice.candidate.problem
    is_read = bool(choice.estimate.file_bytes) and problem.is_read_anew
    return problem.device.storage_bytes_per_second if is_read else None


def check(device: Device, asked_bytes: int, allow: Sequence[str]) -> None:
    """Refuse a budget above the card and permissions that do not exist: needs no profile, only the device."""
    check_permissions(allow)
    if asked_bytes > device.total_bytes:
        raise UsageError(
            f"A budget of {format_bytes(asked_bytes)} was asked; {device.name} has "
            f"{format_bytes(device.total_bytes)}. Ask for at most that, or name a larger GPU."
        )


def check_permissions(allow: Iterable[str]) -> None:
    """Refuse permissions that do not exist."""
    for permission in allow:
        if permission not in PERMISSIONS:
            raise UnknownNameError("permission", permission, PERMISSIONS)


def pose_permitted(profile: Profile, allow: tuple[str, ...]) -> dict[tuple[str, ...], Problem]:
    """The problems that a profile poses, by the permissions that are used, the fewest first.

    Raises `UsageError` for a permission under which the profile's call was not followed.
    """
    if missing := [name for name in allow if name not in profile.permissions]:
        raise UsageError(
            f"This profile does not know what {missing[0]!r} would change: to see that, the call is followed once more. "
            f"Profile with allow={missing[0]!r} (`vramtune profile --allow {missing[0]}`)."
        )
    ways = [(), *sorted((v.permissions for v in profile.variants if {*v.permissions} <= {*allow}), key=len)]
    return {permissions: pose(profile, permissions) for permissions in ways}


def choose(problems: Mapping[tuple[str, ...], Problem], budget: Budget) -> list[Choice]:
    """The best candidate of each problem that meets the budget's target, where there is one.

    The bound in its estimate is that of the budget's limit.
    """
    choices = (_choose(permissions, budget.applied_to(problem), budget) for permissions, problem in problems.items())
    return list(filter(None, choices))


def _choose(permissions: tuple[str, ...], problem: Problem, budget: Budget) -> Choice | None:
    """The best candidate of one problem, in finer groups where that is worth it; None if there is none."""
    candidate = best_candidate(problem, budget.target_bytes)
    found = (
        None if candidate is None else Choice(permissions, candidate, estimate(candidate, budget.limit_bytes), False)
    )
    if problem.finer is None or (found is not None and not _may_finer_groups_gain(found)):
        return found
    candidate = best_candidate(problem.finer, budget.target_bytes)
    if candidate is None:
        return found
    finer = Choice(permissions, candidate, estimate(candidate, budget.limit_bytes), True)
    is_worth_it = found is None or finer.estimate.seconds < found.estimate.seconds * (1 - LEAST_FINER_GAIN)
    return finer if is_worth_it else found


def _may_finer_groups_gain(choice: Choice) -> bool:
    """Whether it could be worth it: if slots took nothing, as much more would be kept, and no call waits for less than no copy."""
    candidate, seconds = choice.candidate, choice.estimate.seconds
    stages = candidate.problem.stages
    slot_bytes = sum(stage.num_iterations * candidate.slot_bytes(s) for s, stage in enumerate(stages))
    waiting_seconds = seconds - sum(stage.compute_seconds for stage in choice.estimate.stages)
    most_gained = min(slot_bytes / candidate.problem.copy_bytes_per_second, waiting_seconds)
    return most_gained >= LEAST_FINER_GAIN * seconds


def fastest(choices: Iterable[Choice]) -> Choice | None:
    """The fastest, of which each further permission saves what is worth it; None if there is none."""
    best: Choice | None = None
    for choice in choices:
        if best is None or choice.estimate.seconds < best.estimate.seconds * (1 - LEAST_PERMITTED_GAIN):
            best = choice
    return best


def _permissions_used(
    choice: Choice, choices: Sequence[Choice], problems: Mapping[tuple[str, ...], Problem], budget: Budget
) -> Iterator[Reason]:
    """For each permission what it saves; where nothing fits without it, how little would do; nothing if it is a must."""
    for permission in choice.permissions:
        others = [other for other in choices if permission not in other.permissions]
        if (without := fastest(others)) is not None:
            seconds = {"saves": without.estimate.seconds - choice.estimate.seconds}
            yield Reason(kind="permission_used", permission=permission, seconds=seconds)
        elif least := [Candidate.least_of_any(p).peak_bytes for used, p in problems.items() if permission not in used]:
            num_bytes = {"smallest": budget.limit_for(min(least))}
            yield Reason(kind="permission_used", permission=permission, num_bytes=num_bytes)


def best_candidate(problem: Problem, budget_bytes: int) -> Candidate | None:
    """The best candidate found under a budget, within what the host has; None if none fits."""
    whole = Candidate.whole(problem, DEFAULT_SLOTS)
    if whole.peak_bytes <= budget_bytes:
        return whole if whole.is_within_ram else None
    judge = Judge(problem, budget_bytes)
    best: Candidate | None = None
    for start in (candidate.housed for candidate in _starts(problem, budget_bytes)):
        if not start.is_within_ram:
            continue
        # once the allowance of effort is spent, what is left stands as it is, and must be worth more than a slack
        allowed = 1 - SLACK_FRACTION if judge.is_exhausted else 1
        polished = polish(judge, start)
        if best is None or judge.score(polished) < allowed * judge.score(best):
            best = polished
    return best


def _starts(problem: Problem, budget_bytes: int) -> Iterator[Candidate]:
    """Where a search may start, best first: the program's solution with as many slots as fit, then candidates in
    which one unit gives way to the others."""
    solutions = (_rounded(problem, budget_bytes, num_slots) for num_slots in range(DEFAULT_SLOTS, 0, -1))
    others = (
        settle(Candidate.whole(problem, num_slots), budget_bytes, yields_first=u)
        for num_slots, u in product(range(1, DEFAULT_SLOTS + 1), problem.movable)
    )
    lean = [leanest(problem, budget_bytes)] if problem.ram_bytes is not None else []
    yield from filter(None, chain(islice(filter(None, solutions), 1), lean, others))


def leanest(problem: Problem, budget_bytes: int) -> Candidate | None:
    """The candidate that leaves least on the host; None if none fits."""
    whole = Candidate.whole(problem, DEFAULT_SLOTS)
    if whole.peak_bytes <= budget_bytes:
        return whole
    unlimited = replace(problem, ram_bytes=None)
    candidates = (
        _rounded(unlimited, budget_bytes, num_slots, is_lean=True) for num_slots in range(1, DEFAULT_SLOTS + 1)
    )
    fitting = [replace(candidate, problem=problem).housed for candidate in candidates if candidate is not None]
    return min(fitting, key=lambda candidate: candidate.host_bytes, default=None)


def no_plan(
    profile: Profile, problems: Mapping[tuple[str, ...], Problem], budget: Budget, allow: tuple[str, ...]
) -> BudgetError:
    """The error for a budget that nothing fits: the host's memory, where there is a plan but for that."""
    limited = (leanest(budget.applied_to(problem), budget.target_bytes) for problem in problems.values())
    fitting = [candidate.host_bytes for candidate in limited if candidate is not None]
    if not fitting or budget.ram_bytes is None:
        return nothing_fits(profile, budget, allow)
    return too_little_ram(profile, budget, min(fitting))


def _rounded(problem: Problem, budget_bytes: int, num_slots: int, *, is_lean: bool = False) -> Candidate | None:
    """The program's solution, rounded to whole groups and made to fit."""
    solution = solve(problem, budget_bytes, num_slots, is_lean=is_lean)
    if solution is None:
        return None
    kept = tuple(
        tuple(
            max(bisect_right(unit.prefix, bytes_kept + ROUNDING * unit.total_bytes) - 1, least)
            for bytes_kept, least in zip(row, least_row, strict=True)
        )
        for unit, row, least_row in zip(problem.units, solution, Candidate.least(problem).kept, strict=True)
    )
    resident = tuple(min(row) for row in kept)
    wanted = Candidate(problem, kept, resident, (num_slots,) * len(problem.units))
    return settle(wanted, budget_bytes, yields_first=0)


def _placements(candidate: Candidate) -> tuple[Placement, ...]:
    return tuple(
        Placement(
            component=unit.component,
            methods=unit.methods,
            groups=unit.groups,
            active=tuple(u in stage.active for stage in candidate.problem.stages),
            kept=candidate.kept[u],
            num_slots=candidate.num_slots[u],
            locked=candidate.locked[u] if candidate.locked else None,
            takes_segments=unit.takes_segments,
        )
        for u, unit in enumerate(candidate.problem.units)
    )
