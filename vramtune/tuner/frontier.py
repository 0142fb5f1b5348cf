"""Latency against VRAM: the fastest plan at each of a row of budgets."""

from collections.abc import Callable

from vramtune.schema import Frontier, FrontierPoint, Profile
from vramtune.tuner.budget import Budget, nothing_fits
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.problem import DEFAULT_SLOTS
from vramtune.tuner.search import check, choose, fastest, no_plan, pose_permitted
from vramtune.tuner.stock_modes import stock_modes
from vramtune.units import format_bytes

NUM_POINTS = 24
"""From 2 to 32 GiB each budget is an eighth larger than the one before: finer than cards differ."""


def trace_frontier(
    profile: Profile,
    *,
    allow: tuple[str, ...] = (),
    show: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> Frontier:
    """Plans from the smallest budget that works up to where everything stays, or the card is full.

    Budgets rise by equal factors; a point is left out where more memory bought nothing. Raises `BudgetError` where
    the card is too small for any plan.
    """
    usable = profile.device.usable_bytes
    check(profile.device, usable, allow)
    problems = pose_permitted(profile, allow)
    low = min(Candidate.least_of_any(problem).peak_bytes for problem in problems.values())
    if low > usable:
        raise nothing_fits(profile, Budget.on(profile.device, usable), allow)
    high = min(Candidate.whole(problems[()], DEFAULT_SLOTS).peak_bytes, usable)
    points: list[FrontierPoint] = []
    num_points = NUM_POINTS if high > low else 1
    for step in range(num_points):
        budget_bytes = round(low * (high / low) ** (step / (NUM_POINTS - 1)))
        show(f"Planning in {format_bytes(budget_bytes)}", step, num_points)
        choice = fastest(choose(problems, Budget.on(profile.device, budget_bytes)))
        if choice is None:  # the host has too little for what a smaller budget leaves to it
            continue
        if not points or choice.estimate.seconds < points[-1].seconds:
            points.append(
                FrontierPoint(budget_bytes=budget_bytes, permissions=choice.permissions, estimate=choice.estimate)
            )
    if not points:
        raise no_plan(profile, problems, Budget.on(profile.device, usable), allow)
    return Frontier(
        pipeline_class=profile.pipeline_class,
        workload=profile.workload,
        device=profile.device,
        points=tuple(points),
        stock=tuple(
            mode
            for permissions in dict.fromkeys(point.permissions for point in reversed(points))
            for mode in stock_modes(profile, permissions=permissions)
        ),
    )
