"""Latency against VRAM: the fastest plan at each of a row of budgets."""

from vramtune.schema import Frontier, FrontierPoint, Profile
from vramtune.tuner.problem import pose
from vramtune.tuner.search import choose_plan, least_bytes
from vramtune.tuner.strategies import stock_modes

NUM_POINTS = 24


def trace_frontier(profile: Profile, *, allow: tuple[str, ...] = ()) -> Frontier:
    """Plans from the smallest budget that works up to where everything stays, or the card is full.

    Budgets rise by equal factors; a point is left out where more memory bought nothing.
    """
    permitted = [(), *((v.permission,) for v in profile.variants if v.permission in allow)]
    problems = [pose(profile, permissions) for permissions in permitted]
    low = min(least_bytes(problem) for problem in problems)
    weights = sum(unit.total_bytes for unit in problems[0].units)
    high = min(
        weights + max(stage.overhead_bytes for stage in problems[0].stages), profile.device.usable_bytes
    )
    points: list[FrontierPoint] = []
    for step in range(NUM_POINTS if high > low else 1):
        budget = round(low * (max(high, low) / low) ** (step / max(NUM_POINTS - 1, 1)))
        found = choose_plan(profile, budget, allow=allow).estimate
        if not points or found.seconds < points[-1].seconds:
            points.append(
                FrontierPoint(
                    budget_bytes=budget,
                    peak_bytes=found.peak_bytes,
                    seconds=found.seconds,
                    bound_seconds=found.bound_seconds,
                )
            )
    return Frontier(points=tuple(points), modes=stock_modes(profile))
