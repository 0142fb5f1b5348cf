"""Latency against VRAM: the fastest plan at each of a row of budgets."""

from vramtune.schema import Estimate, Frontier, FrontierPoint, Profile
from vramtune.tuner.problem import Problem
from vramtune.tuner.search import check, fastest, least_bytes, nothing_fits, pose_permitted
from vramtune.tuner.stock_modes import stock_modes

NUM_POINTS = 24


def trace_frontier(profile: Profile, *, allow: tuple[str, ...] = ()) -> Frontier:
    """Plans from the smallest budget that works up to where everything stays, or the card is full.

    Budgets rise by equal factors; a point is left out where more memory bought nothing. Raises `BudgetError` where
    the card is too small for any plan.
    """
    usable = profile.device.usable_bytes
    check(profile.device, usable, allow)
    problems = pose_permitted(profile, allow)
    low = min(map(least_bytes, problems.values()))
    if low > usable:
        raise nothing_fits(profile, usable, allow)
    high = min(_most_bytes(problems[()]), usable)
    points: list[FrontierPoint] = []
    for step in range(NUM_POINTS if high > low else 1):
        budget = round(low * (high / low) ** (step / (NUM_POINTS - 1)))
        best = fastest(problems, budget, limit_bytes=budget)
        assert best is not None, "the smallest budget is enough"
        found = best[3]
        if not points or found.seconds < points[-1].seconds:
            points.append(_point(budget, found))
    return Frontier(points=tuple(points), modes=stock_modes(profile))


def _most_bytes(problem: Problem) -> int:
    """What it takes that everything stays."""
    weights = sum(unit.total_bytes for unit in problem.units)
    return weights + max(stage.overhead_bytes for stage in problem.stages)


def _point(budget_bytes: int, found: Estimate) -> FrontierPoint:
    return FrontierPoint(
        budget_bytes=budget_bytes,
        peak_bytes=found.peak_bytes,
        seconds=found.seconds,
        bound_seconds=found.bound_seconds,
    )
