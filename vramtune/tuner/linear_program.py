"""The plan as a small program over bytes on the GPU per unit and stage.

For unit c and stage s: `x` bytes kept, `r` those kept in every stage, `y` of `x` those there when the stage
begins, `z` whether anything is streamed, `f` and `t` seconds of the first and of each further iteration. U is a
unit's bytes, v the mean visits of its bytes in an iteration, g its slots, C compute seconds, R the copy rate:

    minimise  sum f + (n - 1) t
    memory    sum x + sum g z <= budget - overhead
    carry     r[c] <= x[c,s],  y[c,s] <= x[c,s],  y[c,s] <= x[c,s-1],  y[c,0] <= r[c]
    idle      x[c,s] <= x[c,s-1] where c is not active, x[c,0] <= r[c]
    stream    U - x <= U z where c is active
    copy      R f >= sum v (U - x) + (x - y),  R t >= sum v (U - x),  f >= C,  t >= C

Where a component is excluded from offload, r = x = U by the variables' own bounds.

Where the host's memory is limited, `l` bytes of each unit are page-locked, M is the rate of staging the others, and in
keep order those are the first; `e` and `w` are what of U - x and of U - y is staged:

    lock      sum l <= lockable - staging slots,  e >= U - x - l,  w >= U - y - l
    stage     M f >= sum (v - 1) e + w,  M t >= sum v e
    host      sum of U - r, or l of what lies in files, <= RAM - idle

Solved three times, each within what the pass before reached: fastest, fewest bytes moved, least held.
z should be 0 or 1; see `solve`.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from vramtune.tuner.problem import Problem, StageProblem

# The second pass may give up this share of the speed: streaming hundreds of gigabytes for less is not worth it. (With
# 0.5% an SDXL's encoders were loaded anew in each call, and another tool that keeps them was as much faster.)
SLACK_FRACTION = 0.001
# Of the solver, for variables of about 1.
TOLERANCE = 1e-6

Term = tuple[int, float]


def solve(problem: Problem, budget_bytes: int, num_slots: int, *, is_lean: bool = False) -> list[list[float]] | None:
    """Bytes kept by unit and stage in the fastest plan, before rounding to groups; None if nothing fits.

    A lean one leaves as little on the host as can be, whatever the host has.

    First with z between 0 and 1; then with z rounded up, which the polish may undo. (Branching on z brings nothing
    that the polish does not find, and HiGHS prints to stdout while it branches.)
    """
    relaxed = Rows(problem)
    _add_constraints(relaxed, problem, budget_bytes, num_slots)
    lean = [_hosted(relaxed)] if is_lean else []
    found = relaxed.in_turn(*lean, call_seconds(relaxed, problem), _moved(relaxed, problem))
    if found is None:
        return None
    rows = Rows(problem)
    _add_constraints(rows, problem, budget_bytes, num_slots)
    rows.fix({variable: math.ceil(found[variable] - TOLERANCE) for variable in rows.streams.values()})
    solution = rows.in_turn(*lean, call_seconds(rows, problem), _moved(rows, problem), _held(rows, problem))
    if solution is None:
        return None
    return [[float(solution[x]) * rows.bytes_scale for x in kept] for kept in rows.kept]


class Rows:
    """Variables and constraint rows; bytes and seconds are scaled to about 1."""

    def __init__(self, problem: Problem) -> None:
        self.bytes_scale = float(max(1, *(unit.total_bytes for unit in problem.units)))
        self.seconds_scale = max(
            self.bytes_scale / problem.copy_bytes_per_second, *(s.compute_seconds for s in problem.stages)
        )
        self.rate = problem.copy_bytes_per_second * self.seconds_scale / self.bytes_scale
        self.lower: list[float] = []
        self.upper: list[float] = []
        units, stages = range(len(problem.units)), range(len(problem.stages))
        sizes = [unit.total_bytes / self.bytes_scale for unit in problem.units]
        self.sizes = sizes
        least = [unit.prefix[unit.least_idle] / self.bytes_scale for unit in problem.units]
        self.resident = [self.variable(sizes[u], lower=least[u]) for u in units]
        self.kept = [[self.variable(sizes[u], lower=least[u]) for _ in stages] for u in units]
        self.carried = [[self.variable(sizes[u]) for _ in stages] for u in units]
        self.streams = {(u, s): self.variable(1) for s in stages for u in problem.stages[s].active}
        self.first = [self.variable(np.inf) for _ in stages]
        self.further = [self.variable(np.inf) for _ in stages]
        total = sum(unit.total_bytes for unit in problem.units)
        limits = [limit for limit in (problem.lockable_bytes, problem.ram_bytes) if limit is not None]
        self.is_lock_limited = min(limits, default=total) < total
        self.locked = [self.variable(size) for size in sizes] if self.is_lock_limited else []
        self.staged = {visit: (self.variable(np.inf), self.variable(np.inf)) for visit in self.streams}
        self.coefficients: list[np.ndarray] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def variable(self, upper: float, *, lower: float = 0.0) -> int:
        """One more variable; before the first row."""
        self.lower.append(lower)
        self.upper.append(upper)
        return len(self.upper) - 1

    def add(self, terms: Iterable[Term], *, low: float = -np.inf, high: float = np.inf) -> None:
        """One more row."""
        row = np.zeros(len(self.upper))
        for variable, factor in terms:
            row[variable] += factor
        self.coefficients.append(row)
        self.low.append(low)
        self.high.append(high)

    def fix(self, values: dict[int, float]) -> None:
        """Give variables their values."""
        for variable, value in values.items():
            self.lower[variable] = self.upper[variable] = value

    def in_turn(self, *goals: np.ndarray) -> np.ndarray | None:
        """The solution that is best by the last goal, within what the goals before it reached.

        The first, seconds, may be missed by a slack: for less, moving many more bytes is not worth it.
        """
        solution, slack = None, SLACK_FRACTION
        for goal in goals:
            solution = self.minimise(goal)
            if solution is None:
                return None
            reached = float(goal @ solution)
            self.add(enumerate(goal), high=reached + slack * abs(reached) + TOLERANCE)
            slack = TOLERANCE
        return solution

    def minimise(self, goal: np.ndarray) -> np.ndarray | None:
        """The best solution by a goal; None where there is none."""
        import highspy  # HiGHS itself (scipy's optimize, which has it inside, takes half a second); often nothing is to solve

        columns = np.array(self.coefficients).T
        used = [np.flatnonzero(column) for column in columns]
        program = highspy.HighsLp()
        program.num_row_, program.num_col_ = len(self.coefficients), len(goal)
        program.col_cost_ = goal
        program.col_lower_, program.col_upper_ = np.array(self.lower, dtype=float), np.array(self.upper, dtype=float)
        program.row_lower_, program.row_upper_ = np.array(self.low, dtype=float), np.array(self.high, dtype=float)
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_ = np.cumsum([0, *map(len, used)], dtype=np.int32)
        program.a_matrix_.index_ = np.concatenate(used).astype(np.int32)
        program.a_matrix_.value_ = np.concatenate([column[rows] for column, rows in zip(columns, used, strict=True)])
        solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)  # or it prints to stdout
        solver.passModel(program)
        solver.run()
        is_solved = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return np.array(solver.getSolution().col_value) if is_solved else None


def _add_constraints(rows: Rows, problem: Problem, budget_bytes: int, num_slots: int) -> None:
    scale = rows.bytes_scale
    if problem.ram_bytes is not None:
        in_files = [sum(unit.file_bytes) / max(unit.total_bytes, 1) for unit in problem.units]
        in_memory = sum(size * (1 - share) for size, share in zip(rows.sizes, in_files, strict=True))
        given = [(r, share - 1) for r, share in zip(rows.resident, in_files, strict=True)]
        locked = list(zip(rows.locked, in_files, strict=True)) if rows.is_lock_limited else []
        rows.add([*given, *locked], high=(problem.ram_bytes - problem.idle_host_bytes) / scale - in_memory)
    if rows.is_lock_limited and problem.lockable_bytes is not None:
        most = max(problem.lockable_bytes - problem.staging_bytes, 0) / scale
        rows.add(((locked, 1.0) for locked in rows.locked), high=most)
    for s, stage in enumerate(problem.stages):
        slots = [
            (rows.streams[u, s], problem.units[u].ring_bytes(problem.units[u].least_kept, num_slots) / scale)
            for u in stage.active
        ]
        add_weights(rows, problem, s, slots, budget_bytes)
        add_seconds(rows, stage, s, stage.num_visits)
        if rows.is_lock_limited:
            _add_staging(rows, problem, stage, s)


def add_weights(rows: Rows, problem: Problem, s: int, slots: list[Term], budget_bytes: int) -> None:
    """What may be on the device in a stage, beside slots of those bytes: memory, carry, idle, stream."""
    stage, scale = problem.stages[s], rows.bytes_scale
    kept = [(rows.kept[u][s], 1.0) for u in range(len(problem.units))]
    rows.add([*kept, *slots], high=(budget_bytes - stage.overhead_bytes) / scale)
    for u, unit in enumerate(problem.units):
        x, y, r = rows.kept[u][s], rows.carried[u][s], rows.resident[u]
        before = rows.kept[u][s - 1] if s else r
        rows.add([(r, 1), (x, -1)], high=0)
        rows.add([(y, 1), (x, -1)], high=0)
        rows.add([(y, 1), (before, -1)], high=0)
        if u in stage.active:
            rows.add([(x, 1)], low=unit.prefix[unit.least_kept] / scale)
            rows.add([(x, 1), (rows.streams[u, s], rows.sizes[u])], low=rows.sizes[u])
        else:
            rows.add([(x, 1), (before, -1)], high=0)


def add_seconds(rows: Rows, stage: StageProblem, s: int, num_visits: Sequence[float]) -> None:
    """What a stage's first and further iterations last at the least: compute, and copies; a unit without visits has none."""
    compute = stage.compute_seconds / rows.seconds_scale
    rows.add([(rows.first[s], 1)], low=compute)
    rows.add([(rows.further[s], 1)], low=compute)
    visited = [u for u in stage.active if num_visits[u]]
    visited_bytes = sum(num_visits[u] * rows.sizes[u] for u in visited)
    streamed = [(rows.kept[u][s], num_visits[u]) for u in visited]
    loaded = [(rows.kept[u][s], num_visits[u] - 1) for u in visited]
    carried = [(rows.carried[u][s], 1.0) for u in visited]
    rows.add([(rows.further[s], rows.rate), *streamed], low=visited_bytes)
    rows.add([(rows.first[s], rows.rate), *loaded, *carried], low=visited_bytes)


def _add_staging(rows: Rows, problem: Problem, stage: StageProblem, s: int) -> None:
    for u in stage.active:
        streamed, absent = rows.staged[u, s]
        rows.add([(streamed, 1), (rows.kept[u][s], 1), (rows.locked[u], 1)], low=rows.sizes[u])
        rows.add([(absent, 1), (rows.carried[u][s], 1), (rows.locked[u], 1)], low=rows.sizes[u])
    for seconds in (problem.staging_seconds, problem.reading_seconds):
        again: list[Term] = []
        first: list[Term] = []
        for u in stage.active:
            streamed, absent = rows.staged[u, s]
            unit_seconds = sum(seconds(u, g) for g in range(len(problem.units[u].sizes)))
            pace = unit_seconds / max(problem.units[u].total_bytes, 1) * rows.bytes_scale / rows.seconds_scale
            again.append((streamed, -pace * stage.num_visits[u]))
            first += [(streamed, pace * (1 - stage.num_visits[u])), (absent, -pace)]
        rows.add([(rows.further[s], 1), *again], low=0)
        rows.add([(rows.first[s], 1), *first], low=0)


def call_seconds(rows: Rows, problem: Problem) -> np.ndarray:
    """The goal: seconds of all iterations of all stages."""
    goal = np.zeros(len(rows.upper))
    for s, stage in enumerate(problem.stages):
        goal[rows.first[s]], goal[rows.further[s]] = 1, stage.num_iterations - 1
    return goal


def _moved(rows: Rows, problem: Problem) -> np.ndarray:
    goal = np.zeros(len(rows.upper))
    for s, stage in enumerate(problem.stages):
        for u in stage.active:
            goal[rows.carried[u][s]] -= 1
            goal[rows.kept[u][s]] -= stage.num_iterations * stage.num_visits[u] - 1
    return goal


def _hosted(rows: Rows) -> np.ndarray:
    """Less what is resident: what is left on the host but for a constant."""
    goal = np.zeros(len(rows.upper))
    goal[rows.resident] = -1
    return goal


def _held(rows: Rows, problem: Problem) -> np.ndarray:
    goal = np.zeros(len(rows.upper))
    for kept in rows.kept:
        goal[kept] = 1
    return goal
