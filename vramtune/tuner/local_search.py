"""Local search over whole groups and slots, with the simulator as judge.

A `Candidate` says how many groups each unit keeps in each stage in which it runs, and how many it keeps always.
What idle units carry from stage to stage follows from that and from the room there is (`settle`).
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Self

from vramtune.layout import SMALL_SEGMENT_BYTES, round_up
from vramtune.tuner.homes import locked_ranges, moving_bytes
from vramtune.tuner.linear_program import SLACK_FRACTION
from vramtune.tuner.problem import Problem
from vramtune.tuner.schedule import Residency, moved_bytes, num_simulated, stage_seconds

MAX_SLOTS = 8
# Effort of one search, in simulated visits (half a microsecond to one each); small problems are done long before.
MAX_EFFORT = 20_000
EFFORT_PER_ENTRY = 4
"""To settle a candidate, by unit and stage."""
MOST_CARRIES = 3
"""Numbers of groups that are tried: the most that have room, and fewer where rounding takes more than there is."""
# A gain below this share of the score is rounding noise.
LEAST_GAIN = 1e-8

Kept = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer to a problem; two answers to the same problem are equal if their counts are."""

    problem: Problem = field(compare=False, repr=False)
    kept: Kept
    """Groups by unit and stage."""
    resident: tuple[int, ...]
    """Groups kept always, by unit."""
    num_slots: tuple[int, ...]
    """By unit."""
    locked: tuple[tuple[int, int], ...] | None = None
    """By unit, the first group in page-locked memory and the one behind the last; None: all that move are."""

    @classmethod
    def whole(cls, problem: Problem, num_slots: int) -> Self:
        """Everything resident: nothing is faster, and nothing moves."""
        counts = tuple(len(unit.groups) for unit in problem.units)
        kept = tuple((count,) * len(problem.stages) for count in counts)
        return cls(problem, kept, counts, (num_slots,) * len(counts))

    @classmethod
    def least(cls, problem: Problem) -> Self:
        """The least of each unit in each stage, one slot: no candidate needs fewer bytes."""
        kept = tuple(
            tuple(unit.least_kept if u in stage.active else unit.least_idle for stage in problem.stages)
            for u, unit in enumerate(problem.units)
        )
        return cls(problem, kept, tuple(unit.least_idle for unit in problem.units), (1,) * len(kept))

    @classmethod
    def least_of_any(cls, problem: Problem) -> Self:
        """The least in the groups of which that needs fewer bytes, the finer ones mostly."""
        return min(map(cls.least, problem.grains), key=lambda candidate: candidate.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """Bytes on the device in the stage that needs most."""
        return max(map(self.stage_bytes, range(len(self.problem.stages))))

    def residencies(self, s: int) -> dict[int, Residency]:
        """What a stage begins with and keeps, by active unit."""
        return {
            u: Residency(
                self.kept[u][s],
                min(self.kept[u][s], self.kept[u][s - 1] if s else self.resident[u]),
                self.num_slots[u],
                self.locked[u] if self.locked else None,
            )
            for u in self.problem.stages[s].active
        }

    @property
    def housed(self) -> Self:
        """The candidate with what is copied most often page-locked, as far as that may be."""
        if self.problem.lockable_bytes is None and self.problem.ram_bytes is None:
            return self
        plain = replace(self, locked=None)
        residencies = [plain.residencies(s) for s in range(len(self.problem.stages))]
        return replace(plain, locked=locked_ranges(self.problem, self.resident, residencies))

    @property
    def locked_bytes(self) -> int:
        """Page-locked memory: of groups that move, and of the slots through which others are staged."""
        slots = self.problem.staging_bytes if self.staged_bytes else 0
        return slots + moving_bytes(self.problem, self.resident) - self.staged_bytes

    @property
    def staged_bytes(self) -> int:
        """Groups that move and are in ordinary memory."""
        return sum(self.problem.units[u].sizes[group] for u, group in self._staged())

    @property
    def file_bytes(self) -> int:
        """What of them stays in files."""
        return sum(self.problem.units[u].file_bytes[group] for u, group in self._staged())

    def _staged(self) -> Iterator[tuple[int, int]]:
        for u, (start, end) in enumerate(self.locked or ()):
            moving = range(self.resident[u], len(self.problem.units[u].groups))
            yield from ((u, group) for group in moving if not start <= group < end)

    @property
    def pageable_bytes(self) -> int:
        """Ordinary memory: of groups that are staged from there, and of what stays on the host all the time."""
        return self.staged_bytes - self.file_bytes + self.problem.idle_host_bytes

    @property
    def host_bytes(self) -> int:
        """All that weights take of the host."""
        return self.locked_bytes + self.pageable_bytes

    @property
    def is_within_ram(self) -> bool:
        """Whether that is no more than the host may give."""
        return self.problem.ram_bytes is None or self.host_bytes <= self.problem.ram_bytes

    def weight_bytes(self, s: int) -> int:
        """Weights on the device throughout a stage, without what excluded components own beyond their units."""
        return sum(unit.kept_bytes(row)[s] for unit, row in zip(self.problem.units, self.kept, strict=True))

    def slot_bytes(self, s: int) -> int:
        """Bytes of a stage's slots."""
        units, active = self.problem.units, self.problem.stages[s].active
        return sum(units[u].slot_bytes(self.kept[u][s], self.num_slots[u]) for u in active)

    def shared_bytes(self, s: int) -> int:
        """What a stage takes less than planned since small tensors share segments, of which each has one in the plan.

        At the most it is what the activations take, from which a prediction subtracts it.
        """
        stage = self.problem.stages[s]
        rows = zip(self.problem.units, self.kept, strict=True)
        small = [num_bytes for unit, row in rows for num_bytes in unit.small_pieces(row, s)]
        small += [stage.small_bytes] if stage.small_bytes else []
        others_bytes = round_up(max(sum(small) - stage.small_tensors.free_bytes, 0), SMALL_SEGMENT_BYTES)
        if stage.small_bytes and s:  # what stages before this one left with the pipeline lies in two segments
            others_bytes = max(others_bytes, 2 * SMALL_SEGMENT_BYTES - stage.small_tensors.reserved_bytes)
        return min(max(len(small) * SMALL_SEGMENT_BYTES - others_bytes, 0), stage.activation_bytes)

    def stage_bytes(self, s: int) -> int:
        """Bytes on the device during a stage: weights, slots, overhead."""
        return self.weight_bytes(s) + self.slot_bytes(s) + self.problem.stages[s].overhead_bytes


class Judge:
    """Scores candidates of one problem under one budget; remembers every stage it has simulated."""

    def __init__(self, problem: Problem, budget_bytes: int) -> None:
        self.problem, self.budget_bytes = problem, budget_bytes
        self.effort = 0
        self._seen: dict[tuple[int, tuple[Residency, ...]], tuple[float, int]] = {}
        self._most_moved = max(1, sum(_traffic(problem, u) for u in range(len(problem.units))))

    @property
    def is_exhausted(self) -> bool:
        """Whether the allowance of effort is spent."""
        return self.effort > MAX_EFFORT

    def seconds_and_moved(self, candidate: Candidate) -> tuple[float, int]:
        """Seconds and bytes moved of a steady call."""
        costs = [self._stage(s, candidate.residencies(s)) for s in range(len(self.problem.stages))]
        return sum(seconds for seconds, _ in costs), sum(moved for _, moved in costs)

    def score(self, candidate: Candidate) -> float:
        """Seconds, dearer by up to `SLACK_FRACTION` the more is moved; the least is best."""
        return self._weigh(*self.seconds_and_moved(candidate))

    def least_score(self, candidate: Candidate) -> float:
        """A quick bound below `score`: engines that never wait for each other."""
        seconds, total = 0.0, 0
        rate = self.problem.copy_bytes_per_second
        for s, stage in enumerate(self.problem.stages):
            active = candidate.residencies(s)
            moved = self._moved(s, active)
            seconds += max(stage.num_iterations * stage.compute_seconds, moved / rate)
            total += moved
        return self._weigh(seconds, total)

    def _weigh(self, seconds: float, moved: int) -> float:
        return seconds * (1 + SLACK_FRACTION * moved / self._most_moved)

    def _moved(self, s: int, active: dict[int, Residency]) -> int:
        return moved_bytes(self.problem, self.problem.stages[s], active)

    def _stage(self, s: int, active: dict[int, Residency]) -> tuple[float, int]:
        key = (s, tuple(active.values()))
        if key not in self._seen:
            stage = self.problem.stages[s]
            self.effort += len(stage.visits) * num_simulated(self.problem, stage, active)
            self._seen[key] = stage_seconds(self.problem, stage, active), self._moved(s, active)
        return self._seen[key]


def polish(judge: Judge, start: Candidate) -> Candidate:
    """The best candidate that single steps lead to, or that the allowance of effort reaches."""
    best, score = start, judge.score(start)
    improving = True
    while improving:
        improving = False
        for neighbour in _neighbours(best, judge.budget_bytes):
            candidate = neighbour.housed
            judge.effort += EFFORT_PER_ENTRY * len(best.kept) * len(judge.problem.stages)
            if judge.is_exhausted:
                return best
            if not candidate.is_within_ram or judge.least_score(candidate) >= score * (1 - LEAST_GAIN):
                continue
            candidate_score = judge.score(candidate)
            if candidate_score < score * (1 - LEAST_GAIN):
                best, score, improving = candidate, candidate_score, True
                break
    return best


def settle(wanted: Candidate, budget_bytes: int, *, yields_first: int) -> Candidate | None:
    """The candidate nearest to what is wanted that fits: that unit gives way first where there is too little room.

    Only the entries of active units and the resident counts are wanted; what idle units hold follows.
    """
    problem = wanted.problem
    order = [yields_first, *(u for u in range(len(problem.units)) if u != yields_first)]
    candidate = _consistent(wanted)
    while (excess := -min(room := _room(candidate, budget_bytes))) > 0:
        s = room.index(-excess)
        smaller = next(filter(None, (_give_way(candidate, u, s, excess) for u in order)), None)
        if smaller is None:
            return None
        candidate = _consistent(smaller)
    return _carry(candidate, room)


def _consistent(wanted: Candidate) -> Candidate:
    """What is wanted, with nothing resident that is not kept throughout, and nothing idle that is not resident."""
    kept, resident = [], []
    for row, most, active in zip(wanted.kept, wanted.resident, wanted.problem.active_stages, strict=True):
        least = min([most, *[row[s] for s in active]])
        own = [least] * len(row)
        for s in active:
            own[s] = row[s]
        kept.append(tuple(own))
        resident.append(least)
    return replace(wanted, kept=tuple(kept), resident=tuple(resident))


def _room(candidate: Candidate, budget_bytes: int) -> list[int]:
    """Bytes left by stage, below 0 where the candidate does not fit: `stage_bytes` unit by unit, which is faster."""
    problem = candidate.problem
    room = [budget_bytes - stage.overhead_bytes for stage in problem.stages]
    for unit, row, num_slots, active in zip(
        problem.units, candidate.kept, candidate.num_slots, problem.active_stages, strict=True
    ):
        for s, num_bytes in enumerate(unit.kept_bytes(row)):
            room[s] -= num_bytes
        for s in active:
            room[s] -= unit.slot_bytes(row[s], num_slots)
    return room


def _give_way(candidate: Candidate, u: int, s: int, excess_bytes: int) -> Candidate | None:
    """The candidate with less of a unit in a stage, by about the excess; None if it holds the least already."""
    unit, is_active = candidate.problem.units[u], u in candidate.problem.stages[s].active
    count = candidate.kept[u][s]
    least = unit.least_kept if is_active else unit.least_idle
    if count <= least:
        return None
    if not is_active:
        fewer = max(bisect_right(unit.prefix, unit.prefix[count] - excess_bytes) - 1, least)
        return _with_counts(candidate, u, {}, fewer)
    num_slots = candidate.num_slots[u]
    allowed = unit.prefix[count] + unit.ring_bytes(count, num_slots) - excess_bytes
    fitting = (k for k in range(count - 1, least, -1) if unit.prefix[k] + unit.ring_bytes(k, num_slots) <= allowed)
    return _with_counts(candidate, u, {s: next(fitting, least)}, candidate.resident[u])


def _carry(candidate: Candidate, room: list[int]) -> Candidate:
    """Let units that run again later in the call hold their groups meanwhile, as far as there is room, by stage."""
    problem = candidate.problem
    kept = list(candidate.kept)
    for u, unit in enumerate(problem.units):
        for start, end in pairwise(problem.active_stages[u]):
            gap = range(start + 1, end)
            if not gap:
                continue
            resident = candidate.resident[u]
            most = unit.prefix[resident] + min(room[s] for s in gap)
            carried = min(kept[u][start], kept[u][end], bisect_right(unit.prefix, most) - 1)
            before = unit.kept_bytes(kept[u])
            for count in range(carried, max(resident, carried - MOST_CARRIES), -1):
                row = (*kept[u][: start + 1], *[count] * len(gap), *kept[u][end:])
                left = [r + b - a for r, b, a in zip(room, before, unit.kept_bytes(row), strict=True)]
                if min(left) >= 0:  # another piece of memory takes more in other stages too
                    kept[u], room = row, left
                    break
    return replace(candidate, kept=tuple(kept))


def _neighbours(candidate: Candidate, budget_bytes: int) -> Iterator[Candidate]:
    """Candidates one step away: first those that fill free room, then those in which another unit gives way."""
    problem = candidate.problem
    seen, tried = {candidate}, set()
    heaviest = tuple(sorted(problem.movable, key=lambda u: -_traffic(problem, u)))
    fills = ((wanted, (u,)) for u in heaviest for wanted in _fills(candidate, u))
    steps = ((wanted, heaviest) for u in heaviest for wanted in _steps(candidate, u))
    for wanted, yielding in chain(fills, steps):
        asked = _consistent(wanted)
        if (asked, yielding) in tried:
            continue
        tried.add((asked, yielding))
        for settled in _settled(asked, budget_bytes, yielding):
            if settled is not None and settled not in seen:
                seen.add(settled)
                yield settled


def _settled(wanted: Candidate, budget_bytes: int, yielding: tuple[int, ...]) -> Iterator[Candidate | None]:
    """What it comes to when each of these units gives way first: one and the same where there is room for all."""
    room = _room(wanted, budget_bytes)
    if min(room) >= 0:
        yield _carry(wanted, room)
    else:
        yield from (settle(wanted, budget_bytes, yields_first=u) for u in yielding)


def _fills(candidate: Candidate, u: int) -> Iterator[Candidate]:
    """All of a unit resident, or kept in one stage: it gives way itself, down to what there is room for."""
    everything, active = len(candidate.problem.units[u].groups), candidate.problem.active_stages[u]
    yield _with_counts(candidate, u, dict.fromkeys(active, everything), everything)
    for s in active:
        yield _with_counts(candidate, u, {s: everything}, candidate.resident[u])


def _steps(candidate: Candidate, u: int) -> Iterator[Candidate]:
    """Another number of slots, another count in one stage or in all, another resident count."""
    unit, active = candidate.problem.units[u], candidate.problem.active_stages[u]
    row, resident, slots = candidate.kept[u], candidate.resident[u], candidate.num_slots
    scopes = [active] if len(active) == 1 else [active, *((s,) for s in active)]
    for num_slots in range(1, MAX_SLOTS + 1):
        yield replace(candidate, num_slots=(*slots[:u], num_slots, *slots[u + 1 :]))
    for delta in _deltas(len(unit.groups)):
        count = _clamp(resident + delta, unit.least_idle, len(unit.groups))
        yield _with_counts(candidate, u, {s: max(count, row[s]) for s in active}, count)
        for scope in scopes:
            counts = {s: _clamp(row[s] + delta, unit.least_kept, len(unit.groups)) for s in scope}
            yield _with_counts(candidate, u, counts, resident)


def _traffic(problem: Problem, u: int) -> float:
    """Bytes that a call would copy if all of a unit were streamed."""
    return problem.units[u].total_bytes * sum(s.num_iterations * s.num_visits[u] for s in problem.stages)


def _with_counts(candidate: Candidate, u: int, counts: dict[int, int], resident: int) -> Candidate:
    """The candidate with other counts of a unit, by stage, and another resident count."""
    kept, before = candidate.kept, candidate.resident
    row = tuple(counts.get(s, k) for s, k in enumerate(kept[u]))
    return replace(candidate, kept=(*kept[:u], row, *kept[u + 1 :]), resident=(*before[:u], resident, *before[u + 1 :]))


def _deltas(num_groups: int) -> list[int]:
    """Steps of 1, 2, 4, ... groups, both ways, up to all."""
    steps = [2**k for k in range(num_groups.bit_length())]
    return [sign * step for step in steps for sign in (1, -1)]


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
