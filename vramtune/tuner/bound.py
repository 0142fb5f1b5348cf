"""Seconds per call that no plan within a budget can beat, call after call, under the model: the higher of two bounds.

- *By visits.* Slots cost nothing, everything kept is there when its stage begins, idle weights take no room unless they are
  excluded from offload. Then each stage is a fractional knapsack that keeps the bytes visited most often, and lasts
  `num_iterations x max(compute, copies of the rest, staging and reading of what of it cannot be page-locked)`.
- *By what is held.* The program of `linear_program.py` with as little as any plan has: one slot, of which a unit that keeps
  more needs less, and as many visits as its least visited group has. So it has what slots take, and what a stage must
  load that the one before it had no room for; no staging.
"""

import math
from itertools import pairwise

from vramtune.tuner.linear_program import TOLERANCE, Rows, add_seconds, add_weights, call_seconds
from vramtune.tuner.problem import Problem, StageProblem, Unit

Point = tuple[float, float]


def bound_seconds(problem: Problem, budget_bytes: int) -> float:
    """The higher of both."""
    by_visits = sum(_by_visits(problem, stage, budget_bytes) for stage in problem.stages)
    total_bytes = sum(unit.total_bytes for unit in problem.units)
    if all(total_bytes + stage.overhead_bytes <= budget_bytes for stage in problem.stages):
        return by_visits
    return max(by_visits, _by_what_is_held(problem, budget_bytes))


def _by_visits(problem: Problem, stage: StageProblem, budget_bytes: int) -> float:
    # what no plan can do without: the roots of active units, excluded units whole
    given = [max(unit.least_idle, int(u in stage.active)) for u, unit in enumerate(problem.units)]
    room = budget_bytes - stage.overhead_bytes
    room -= sum(unit.prefix[count] for unit, count in zip(problem.units, given, strict=True))
    visits: dict[tuple[int, int], int] = {}
    for u, group, *_ in stage.visits:
        if group >= given[u]:
            visits[u, group] = visits.get((u, group), 0) + 1
    copied = staged = 0.0
    paces = [
        (problem.staging_seconds(u, g) / size, problem.reading_seconds(u, g) / size)
        for u, g in visits
        if (size := problem.units[u].sizes[g])
    ]
    lockable = math.inf if problem.lockable_bytes is None else problem.lockable_bytes
    for (u, group), count in sorted(visits.items(), key=lambda item: -item[1]):
        size = problem.units[u].sizes[group]
        absent = max(0, size - max(0, room))
        room -= size
        copied += count * absent
        staged += count * max(0, absent - max(0, lockable))
        lockable -= absent
    copy_seconds = copied / problem.copy_bytes_per_second
    host_seconds = (staged * min(pace, default=0.0) for pace in zip(*paces, strict=True))
    return stage.num_iterations * max(stage.compute_seconds, copy_seconds, *host_seconds)


def _by_what_is_held(problem: Problem, budget_bytes: int) -> float:
    rows = Rows(problem)
    slots = {(u, s): rows.variable(math.inf) for s, stage in enumerate(problem.stages) for u in stage.active}
    for s, stage in enumerate(problem.stages):
        add_weights(rows, problem, s, [(slots[u, s], 1.0) for u in stage.active], budget_bytes)
        for u in stage.active:
            _add_slot(rows, problem.units[u], rows.kept[u][s], slots[u, s])
        add_seconds(rows, stage, s, least_visits(problem, stage))
    goal = call_seconds(rows, problem)
    solution = rows.minimise(goal)
    if solution is None:
        return 0.0  # no plan at all
    return float(goal @ solution) * rows.seconds_scale * (1 - TOLERANCE)


def _add_slot(rows: Rows, unit: Unit, kept: int, slot: int) -> None:
    """A slot is as large as the largest absent group: no less than the lower hull of that over the bytes kept."""
    counts = range(unit.least_kept, len(unit.prefix))
    points = [(unit.prefix[k] / rows.bytes_scale, unit.ring_bytes(k, 1) / rows.bytes_scale) for k in counts]
    for (x, y), (further_x, further_y) in pairwise(lower_hull(points)):
        slope = (further_y - y) / (further_x - x)
        rows.add([(slot, 1), (kept, -slope)], low=y - slope * x)


def lower_hull(points: list[Point]) -> list[Point]:
    """The corners of what lies under all points, from the left to the right."""
    hull: list[Point] = []
    for x, y in sorted(points):
        if hull and hull[-1][0] == x:
            continue
        while len(hull) > 1 and _is_above(hull[-1], hull[-2], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _is_above(point: Point, left: Point, right: Point) -> bool:
    """Whether a point is on the line between two others, or above it."""
    return (point[1] - left[1]) * (right[0] - left[0]) >= (right[1] - left[1]) * (point[0] - left[0])


def least_visits(problem: Problem, stage: StageProblem) -> list[int]:
    """By unit, how often each of its groups is visited in an iteration at the least, the root aside, which stays."""
    counts = [[0] * len(unit.sizes) for unit in problem.units]
    for visit in stage.visits:
        counts[visit.unit][visit.group] += 1
    used = (
        [count for count, size in zip(row[1:], unit.sizes[1:], strict=True) if size]
        for row, unit in zip(counts, problem.units, strict=True)
    )
    return [min(row, default=1) for row in used]
