"""One stage on three engines and a host: when is each group staged and copied, when does each visit compute.

The recurrence of a first-in-first-out copy engine beside a compute engine. A visit computes when the one before
it is done, its group has arrived, and the host has issued it; it ends when the host has issued its last operation and
the GPU has computed all of it. A group that stays is copied once, whenever its turn comes. A streamed group is copied
on every visit into a ring of bytes, and waits there until the visits whose bytes it overwrites are done. Nothing is
copied back, and no copy starts before its stage does. The host waits for neither engine: it runs ahead of both.

A group in ordinary memory is staged first, slot by slot, and what of it lies in files is read before (`_Staging`). The host
asks for that when there is room for the group in its ring and its iteration has begun, and waits for the end of it before it
issues the visit.
"""

from collections.abc import Iterator
from typing import NamedTuple

from vramtune.layout import STAGING_SLOTS, next_place
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
    locked: tuple[int, int] | None = None
    """Groups before the first or from the second on are staged, which the host takes its time for; None: none are."""

    def staged(self, start: int, end: int) -> Iterator[int]:
        """Those of a range of groups that are staged."""
        if self.locked is not None:
            yield from range(start, min(end, self.locked[0]))
            yield from range(max(start, self.locked[1]), end)


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
    ends = [0.0] + [
        iteration[-1][5] + stage.pipeline_seconds for iteration in _iterations(problem, stage, residency, last)
    ]
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
    iterations = _iterations(problem, stage, residency, stage.num_iterations)
    return [[Visit(*visit) for visit in iteration] for iteration in iterations]


def staged_bytes(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> int:
    """What of `moved_bytes` comes from ordinary memory."""
    total = 0
    for unit, r in residency.items():
        sizes, streamed = problem.units[unit].sizes, stage.streamed_bytes[unit]
        total += sum(sizes[group] for group in r.staged(r.present, r.kept))
        again = (streamed[group] - streamed[group + 1] for group in r.staged(r.kept, len(sizes)))
        total += stage.num_iterations * sum(again)
    return total


def staging_seconds(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> float:
    """What the host takes to copy `staged_bytes` into the slots."""
    return sum(
        times * problem.staging_seconds(unit, group) for unit, group, times in _staged(problem, stage, residency)
    )


def reading_seconds(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> float:
    """What it takes to read the files of that."""
    return sum(
        problem.reading_seconds(unit, group, is_first=True) + (times - 1) * problem.reading_seconds(unit, group)
        for unit, group, times in _staged(problem, stage, residency)
    )


def read_bytes(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> int:
    """What of `staged_bytes` is read from storage."""
    if not problem.is_read_anew:
        return 0
    staged = _staged(problem, stage, residency)
    return round(sum(times * problem.units[unit].file_bytes[group] for unit, group, times in staged))


def _staged(problem: Problem, stage: StageProblem, residency: dict[int, Residency]) -> Iterator[tuple[int, int, float]]:
    """The groups that are staged in a stage, by unit, and how often."""
    for unit, r in residency.items():
        streamed = stage.streamed_bytes[unit]
        for group in r.staged(r.present, len(problem.units[unit].sizes)):
            if size := problem.units[unit].sizes[group]:
                visits = (streamed[group] - streamed[group + 1]) / size
                if times := 1 if group < r.kept else stage.num_iterations * visits:
                    yield unit, group, times


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
    steps = _steps(problem, stage, residency)
    absent = {
        unit: {g for g in range(r.present, r.kept) if problem.units[unit].sizes[g]} for unit, r in residency.items()
    }
    staged_groups = {unit: {*r.staged(r.present, len(problem.units[unit].sizes))} for unit, r in residency.items()}
    mapped: set[tuple[int, int]] = set()  # groups that were staged in this stage before
    staging = _Staging(problem) if any(staged_groups.values()) else None
    most_ahead_bytes = max((size for _, _, size, *_ in steps), default=0)
    copy_clock = clock = asked = 0.0  # when the host asked for the last copy
    issued = _num_loaded(residency) * LOAD_OPERATIONS * problem.operation_seconds  # when the host is free
    arrival_seconds, wait_seconds = ARRIVAL_OPERATIONS * problem.operation_seconds, problem.operation_seconds
    for _ in range(num_iterations):
        visits, ahead_bytes, begun = [], 0, issued
        for unit, group, size, gpu, host, is_streamed in steps:
            copy_start = None
            ready = 0.0
            if is_streamed:
                copy_start = rings[unit].place(size)
                if copy_start < copy_clock:
                    copy_start = copy_clock
            elif group in absent[unit]:
                absent[unit].remove(group)
                copy_start = copy_clock
                issued += arrival_seconds
            if copy_start is not None:
                is_staged = False
                if staging is not None:
                    ahead_bytes += size
                    asked = max(asked, rings[unit].left_seconds if is_streamed else 0.0)
                    if ahead_bytes > most_ahead_bytes and begun > asked:
                        asked = begun
                    is_staged = group in staged_groups[unit]
                if staging is not None and is_staged:
                    read = problem.reading_seconds(unit, group, is_first=(unit, group) not in mapped)
                    mapped.add((unit, group))
                    filled = problem.staging_seconds(unit, group)
                    copy_start, staged, ready = staging.copy(size, read, filled, asked, copy_start)
                    copy_clock = ready
                    if staged > issued:
                        issued = staged
                else:
                    ready = copy_clock = copy_start + latency + size / rate
            start = ready if ready > clock else clock
            if issued > start:
                start = issued
            clock = start + gpu
            issued += host
            if is_streamed and size and not rings[unit].overwrites:
                issued -= wait_seconds  # which is for what its place overwrites
            if issued > clock:
                clock = issued
            if is_streamed:
                rings[unit].ends.append(clock)
                rings[unit].issued.append(issued)
            visits.append((unit, group, copy_start, ready, start, clock))
        clock += stage.pipeline_seconds
        issued += stage.pipeline_seconds
        yield visits


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

    __slots__ = ("ends", "head", "issued", "num_bytes", "oldest", "overwrites", "starts")

    def __init__(self, unit: Unit, residency: Residency) -> None:
        self.num_bytes = unit.ring_bytes(residency.kept, residency.num_slots)
        self.head = self.oldest = 0  # bytes handed out so far; first place that is not yet overwritten
        self.starts: list[int] = []
        self.ends: list[float] = []
        """When the visit in each place is done, in seconds."""
        self.issued: list[float] = []
        """When the host had issued it."""
        self.overwrites = False
        """Whether the last place was the first over another one."""

    def place(self, num_bytes: int) -> float:
        """Take the next place; returns when the visits that it overwrites are done, in seconds."""
        start = next_place(self.head, num_bytes, self.num_bytes)
        self.starts.append(start)
        self.head = start + num_bytes
        overwritten = self.head - self.num_bytes
        oldest = self.oldest
        while self.starts[oldest] < overwritten:
            oldest += 1
        self.overwrites, self.oldest = oldest > self.oldest, oldest
        if not oldest:
            return 0.0
        return self.ends[oldest - 1]

    @property
    def left_seconds(self) -> float:
        """When the host had issued what the last place overwrites."""
        return self.issued[self.oldest - 1] if self.oldest else 0.0


class _Staging:
    """Page-locked slots, filled in turn by one thread: the next one when what was copied from it is on the device.

    Another thread reads files ahead of it.
    """

    __slots__ = ("_clock", "_copy_rate", "_free", "_latency", "_next", "_read_clock", "_slot_bytes")

    def __init__(self, problem: Problem) -> None:
        self._copy_rate = problem.copy_bytes_per_second
        self._latency, self._slot_bytes = problem.device.copy_latency_seconds, problem.staging_slot_bytes
        self._clock, self._read_clock, self._next = 0.0, 0.0, 0
        self._free = [0.0] * STAGING_SLOTS

    def copy(
        self, num_bytes: int, read_seconds: float, fill_seconds: float, asked: float, after: float
    ) -> tuple[float, float, float]:
        """Read and stage a group, which takes the host so long, when it is asked for, and copy it after that; when the first
        copy starts, the last slot is filled, and the last copy ends, all in seconds."""
        clock, start, left = max(self._clock, asked), None, num_bytes
        read = max(self._read_clock, asked) if read_seconds else asked
        while left > 0:
            part = min(left, self._slot_bytes)
            left -= part
            read += part / num_bytes * read_seconds
            clock = max(clock, self._free[self._next], read) + part / num_bytes * fill_seconds
            begins = max(after, clock)
            start = begins if start is None else start
            after = self._free[self._next] = begins + self._latency + part / self._copy_rate
            self._next = (self._next + 1) % STAGING_SLOTS
        self._clock = clock
        if read_seconds:
            self._read_clock = read
        return (after if start is None else start), clock, after
