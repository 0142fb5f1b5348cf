"""One stage on two engines: when is each group copied, when does each visit compute.

The recurrence of a first-in-first-out copy engine beside a compute engine. A visit computes when the one before
it is done and its group has arrived. A group that stays is copied once, whenever its turn comes. A streamed
group is copied on every visit into a ring of bytes, and waits there until the visits whose bytes it overwrites
are done. Nothing is copied back, and no copy starts before its stage does.
"""

from collections.abc import Iterator
from typing import NamedTuple

from vramtune.layout import next_place
from vramtune.tuner.problem import Problem, StageProblem, Unit

# Iterations simulated one by one; the others repeat the mean period of those after the warm-up, over which the
# phase of the ring averages out.
WARM_UP, SIMULATED = 2, 6


class Residency(NamedTuple):
    """One active unit in one stage: groups kept throughout, of those the ones there when it starts, slots."""

    kept: int
    present: int
    num_slots: int


class Visit(NamedTuple):
    """One visit as scheduled, in seconds from the start of the stage; no copy where `copy_start` is None."""

    unit: int
    group: int
    copy_start: float | None
    copy_end: float
    start: float
    end: float


def stage_seconds(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> float:
    """Seconds of all iterations of a stage."""
    last = num_simulated(problem, stage, residency)
    ends = [0.0] + [
        iteration[-1][5] + stage.pipeline_seconds for iteration in _iterations(problem, stage, residency, last)
    ]
    left = stage.num_iterations - last
    if last > WARM_UP:
        return ends[-1] + left * (ends[-1] - ends[WARM_UP]) / (last - WARM_UP)
    return ends[-1] + left * stage.compute_seconds


def num_simulated(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> int:
    """Iterations that must be simulated one by one: one is enough where nothing is streamed."""
    streams = any(r.kept < len(problem.units[unit].groups) for unit, r in residency.items())
    return min(stage.num_iterations, SIMULATED if streams else 1)


def stage_visits(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> list[list[Visit]]:
    """Every visit of every iteration, for drawing."""
    iterations = _iterations(problem, stage, residency, stage.num_iterations)
    return [[Visit(*visit) for visit in iteration] for iteration in iterations]


def moved_bytes(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> int:
    """Bytes copied to the device in all iterations of a stage."""
    once = sum(
        problem.units[unit].prefix[r.kept] - problem.units[unit].prefix[r.present] for unit, r in residency.items()
    )
    streamed = sum(stage.streamed_bytes[unit][r.kept] for unit, r in residency.items())
    return once + stage.num_iterations * streamed


def _iterations(
    problem: Problem, stage: StageProblem, residency: dict[int, Residency], num_iterations: int
) -> Iterator[list[tuple[int, int, float | None, float, float, float]]]:
    """Yield each iteration's visits as the fields of `Visit` (plain tuples: this is the search's inner loop)."""
    rate, latency = problem.copy_bytes_per_second, problem.device.copy_latency_seconds
    rings = {unit: _Ring(problem.units[unit], r) for unit, r in residency.items()}
    sizes = {unit: problem.units[unit].sizes for unit in residency}
    absent = {unit: {g for g in range(r.present, r.kept) if sizes[unit][g]} for unit, r in residency.items()}
    steps = [
        (unit, group, sizes[unit][group], seconds, group >= residency[unit].kept)
        for unit, group, seconds in stage.visits
    ]
    copy_clock = clock = 0.0
    for _ in range(num_iterations):
        visits = []
        for unit, group, size, seconds, is_streamed in steps:
            copy_start = None
            ready = 0.0
            if is_streamed:
                copy_start = rings[unit].place(size)
                if copy_start < copy_clock:
                    copy_start = copy_clock
            elif group in absent[unit]:
                absent[unit].remove(group)
                copy_start = copy_clock
            if copy_start is not None:
                ready = copy_clock = copy_start + latency + size / rate
            start = ready if ready > clock else clock
            clock = start + seconds
            if is_streamed:
                rings[unit].ends.append(clock)
            visits.append((unit, group, copy_start, ready, start, clock))
        clock += stage.pipeline_seconds
        yield visits


class _Ring:
    """First-in-first-out places in a ring of bytes; a place never wraps around the end."""

    __slots__ = ("ends", "head", "num_bytes", "oldest", "starts")

    def __init__(self, unit: Unit, residency: Residency) -> None:
        self.num_bytes = unit.ring_bytes(residency.kept, residency.num_slots)
        self.head = self.oldest = 0  # bytes handed out so far; first place that is not yet overwritten
        self.starts: list[int] = []
        self.ends: list[float] = []
        """When the visit in each place is done, in seconds."""

    def place(self, num_bytes: int) -> float:
        """Take the next place; returns when the visits that it overwrites are done, in seconds."""
        start = next_place(self.head, num_bytes, self.num_bytes)
        self.starts.append(start)
        self.head = start + num_bytes
        overwritten = self.head - self.num_bytes
        oldest = self.oldest
        while self.starts[oldest] < overwritten:
            oldest += 1
        self.oldest = oldest
        return self.ends[oldest - 1] if oldest else 0.0
