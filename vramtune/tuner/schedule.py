"""One stage on two engines and a host: when is each group copied, when does each visit compute.

The recurrence of a first-in-first-out copy engine beside a compute engine. A visit computes when the one before
it is done, its group has arrived, and the host has issued it; it ends when the host has issued its last operation and
the GPU has computed all of it. A group that stays is copied once, whenever its turn comes. A streamed group is copied
on every visit into a ring of bytes, and waits there until the visits whose bytes it overwrites are done. Nothing is
copied back, and no copy starts before its stage does. The host waits for neither engine: it runs ahead of both.
"""

from collections.abc import Iterator
from typing import NamedTuple

from vramtune.layout import next_place
from vramtune.tuner.problem import (
    ARRIVAL_OPERATIONS,
    CALL_OPERATIONS,
    LOAD_OPERATIONS,
    STREAM_OPERATIONS,
    Problem,
    StageProblem,
    Unit,
)

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
    # a component's call lasts at least as long as the slower of GPU and host, whatever the others do meanwhile
    return max(_recurrence_seconds(problem, stage, residency), stage.num_iterations * stage.compute_seconds)


def host_seconds(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> float:
    """What the host takes to issue all iterations of a stage."""
    once = _num_loaded(residency) * (LOAD_OPERATIONS + ARRIVAL_OPERATIONS) * problem.operation_seconds
    return once + stage.num_iterations * _issued_seconds(problem, stage, residency)


def _issued_seconds(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> float:
    """What the host takes to issue one iteration."""
    return sum(step.host_seconds for step in _steps(problem, stage, residency)) + stage.pipeline_seconds


def _recurrence_seconds(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> float:
    last = num_simulated(problem, stage, residency)
    ends = [0.0, *_iterations(problem, stage, residency, last)]
    left = stage.num_iterations - last
    if last > WARM_UP:
        return ends[-1] + left * (ends[-1] - ends[WARM_UP]) / (last - WARM_UP)
    return ends[-1] + left * max(stage.compute_seconds, _issued_seconds(problem, stage, residency))


def num_simulated(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> int:
    """Iterations that must be simulated one by one: one is enough where nothing is streamed."""
    streams = any(r.kept < len(problem.units[unit].groups) for unit, r in residency.items())
    return min(stage.num_iterations, SIMULATED if streams else 1)


def stage_visits(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> list[list[Visit]]:
    """Every visit of every iteration, for drawing."""
    visits: list[list[Visit]] = []
    for _ in _iterations(problem, stage, residency, stage.num_iterations, visits):
        pass
    return visits


def moved_bytes(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> int:
    """Bytes copied to the device in all iterations of a stage."""
    once = sum(
        problem.units[unit].prefix[r.kept] - problem.units[unit].prefix[r.present] for unit, r in residency.items()
    )
    streamed = sum(stage.streamed_bytes[unit][r.kept] for unit, r in residency.items())
    return once + stage.num_iterations * streamed


def _iterations(
    problem: Problem,
    stage: StageProblem,
    residency: dict[int, Residency],
    num_iterations: int,
    visits: list[list[Visit]] | None = None,
) -> Iterator[float]:
    """Yield each iteration's end, in seconds; its visits are added to `visits`, if given. (The search's inner loop.)"""
    rate, latency = problem.copy_bytes_per_second, problem.device.copy_latency_seconds
    rings = {unit: _Ring(problem.units[unit], r) for unit, r in residency.items()}
    steps = [
        (step, *step[2:5], rings[step.unit] if step.is_streamed else None) for step in _steps(problem, stage, residency)
    ]
    absent = {
        unit: {g for g in range(r.present, r.kept) if problem.units[unit].sizes[g]} for unit, r in residency.items()
    }
    copy_clock = clock = 0.0
    issued = _num_loaded(residency) * LOAD_OPERATIONS * problem.operation_seconds  # when the host is free
    arrival_seconds = ARRIVAL_OPERATIONS * problem.operation_seconds
    for _ in range(num_iterations):
        if visits is not None:
            visits.append([])
        for step, size, gpu, host, ring in steps:
            copy_start = None
            ready = 0.0
            if ring is not None:
                copy_start = ring.place(size)
                if copy_start < copy_clock:
                    copy_start = copy_clock
                ready = copy_clock = copy_start + latency + size / rate
            elif step.group in absent[step.unit]:
                absent[step.unit].remove(step.group)
                copy_start = copy_clock
                issued += arrival_seconds
                ready = copy_clock = copy_start + latency + size / rate
            start = ready if ready > clock else clock
            if issued > start:
                start = issued
            clock = start + gpu
            issued += host
            if issued > clock:
                clock = issued
            if ring is not None:
                ring.ends.append(clock)
            if visits is not None:
                visits[-1].append(Visit(step.unit, step.group, copy_start, ready, start, clock))
        clock += stage.pipeline_seconds
        issued += stage.pipeline_seconds
        yield clock


def _num_loaded(residency: dict[int, Residency]) -> int:
    """Groups that are copied once and stay, all of which the host asks for before it begins."""
    return sum(r.kept - r.present for r in residency.values())


class _Step(NamedTuple):
    """A visit of one iteration, as things are placed."""

    unit: int
    group: int
    num_bytes: int
    gpu_seconds: float
    host_seconds: float
    is_streamed: bool


def _steps(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> list[_Step]:
    """The visits of one iteration, with the host's time for what the plan adds to them."""
    call_seconds = CALL_OPERATIONS * problem.operation_seconds
    copy_seconds = STREAM_OPERATIONS * problem.operation_seconds
    sizes = {unit: problem.units[unit].sizes for unit in residency}
    steps = []
    for unit, group, gpu, host in stage.visits:
        size, is_streamed = sizes[unit][group], group >= residency[unit].kept
        ours = (0.0 if group else call_seconds) + (copy_seconds if is_streamed and size else 0.0)
        steps.append(_Step(unit, group, size, gpu, host + ours, is_streamed))
    return steps


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
