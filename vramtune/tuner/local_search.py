"""Local search over whole groups and slots, with the simulator as judge.

A `State` says how many groups each unit keeps in each stage in which it runs, and how many it keeps always.
What idle units carry from stage to stage follows from that and from the room there is (`settle`).
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise

from vramtune.tuner.linear_program import SLACK_FRACTION
from vramtune.tuner.problem import Problem
from vramtune.tuner.schedule import Residency, moved_bytes, num_simulated, stage_seconds

MAX_SLOTS = 8
# Effort of one search, in simulated visits (half a microsecond to one each); small problems are done long before.
MAX_EFFORT = 20_000
EFFORT_PER_ENTRY = 4
"""To settle a candidate, by unit and stage."""
# A gain below this share of the score is rounding noise.
LEAST_GAIN = 1e-8

Kept = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class State:
    """Groups kept by unit and stage, those kept always, slots by unit."""

    kept: Kept
    resident: tuple[int, ...]
    num_slots: tuple[int, ...]


class Judge:
    """Scores states of one problem under one budget; remembers every stage it has simulated."""

    def __init__(self, problem: Problem, budget_bytes: int) -> None:
        self.problem, self.budget_bytes = problem, budget_bytes
        self.effort = 0
        self._seen: dict[tuple[int, tuple[Residency, ...]], tuple[float, int]] = {}
        self._most_moved = max(1, sum(_traffic(problem, u) for u in range(len(problem.units))))

    @property
    def is_tired(self) -> bool:
        """Whether the allowance of effort is spent."""
        return self.effort > MAX_EFFORT

    def seconds_and_moved(self, state: State) -> tuple[float, int]:
        """Seconds and bytes moved of a steady call."""
        costs = [self._stage(s, residencies(self.problem, state, s)) for s in range(len(self.problem.stages))]
        return sum(seconds for seconds, _ in costs), sum(moved for _, moved in costs)

    def score(self, state: State) -> float:
        """Seconds, dearer by up to `SLACK_FRACTION` the more is moved; the least is best."""
        return self._weigh(*self.seconds_and_moved(state))

    def least_score(self, state: State) -> float:
        """A quick bound below `score`: engines that never wait for each other."""
        seconds, total = 0.0, 0
        rate = self.problem.copy_bytes_per_second
        for s, stage in enumerate(self.problem.stages):
            active = residencies(self.problem, state, s)
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


def residencies(problem: Problem, state: State, s: int) -> dict[int, Residency]:
    """What a stage finds and keeps, by active unit."""
    return {
        u: Residency(
            state.kept[u][s],
            min(state.kept[u][s], state.kept[u][s - 1] if s else state.resident[u]),
            state.num_slots[u],
        )
        for u in problem.stages[s].active
    }


def stage_bytes(problem: Problem, state: State, s: int) -> int:
    """Bytes on the device during a stage: weights, slots, overhead."""
    stage = problem.stages[s]
    weights = sum(unit.prefix[state.kept[u][s]] for u, unit in enumerate(problem.units))
    slots = sum(problem.units[u].ring_bytes(state.kept[u][s], state.num_slots[u]) for u in stage.active)
    return weights + slots + stage.overhead_bytes


def polish(judge: Judge, state: State) -> State:
    """The best state that single steps lead to, or that the allowance of effort reaches."""
    score = judge.score(state)
    improving = True
    while improving:
        improving = False
        for candidate in _neighbours(judge.problem, judge.budget_bytes, state):
            judge.effort += EFFORT_PER_ENTRY * len(state.kept) * len(judge.problem.stages)
            if judge.is_tired:
                return state
            if judge.least_score(candidate) >= score * (1 - LEAST_GAIN):
                continue
            found = judge.score(candidate)
            if found < score * (1 - LEAST_GAIN):
                state, score, improving = candidate, found, True
                break
    return state


def settle(problem: Problem, budget_bytes: int, wish: State, victim: int) -> State | None:
    """The state nearest to a wish that fits: `victim` gives way first where there is too little room.

    Only the entries of active units and the resident counts are wishes; what idle units hold follows.
    """
    kept, resident = [list(row) for row in wish.kept], list(wish.resident)
    order = [victim, *(u for u in range(len(problem.units)) if u != victim)]
    while True:
        state = _followed(problem, State(tuple(map(tuple, kept)), tuple(resident), wish.num_slots))
        kept, resident = [list(row) for row in state.kept], list(state.resident)
        room = _room(problem, budget_bytes, state)
        excess = -min(room)
        if excess <= 0:
            return _carry(problem, room, state)
        s = room.index(-excess)
        if not any(_give_way(problem, state, kept, resident, u, s, excess) for u in order):
            return None


def _followed(problem: Problem, wish: State) -> State:
    """The wish with nothing resident that is not kept throughout, and nothing idle that is not resident."""
    kept, resident = [], []
    for row, wished, active in zip(wish.kept, wish.resident, problem.active_stages, strict=True):
        least = min([wished, *[row[s] for s in active]])
        own = [least] * len(row)
        for s in active:
            own[s] = row[s]
        kept.append(tuple(own))
        resident.append(least)
    return State(tuple(kept), tuple(resident), wish.num_slots)


def _room(problem: Problem, budget_bytes: int, state: State) -> list[int]:
    """Bytes left by stage, below zero where the state does not fit: `stage_bytes` unit by unit, which is faster."""
    room = [budget_bytes - stage.overhead_bytes for stage in problem.stages]
    for unit, row, num_slots, active in zip(
        problem.units, state.kept, state.num_slots, problem.active_stages, strict=True
    ):
        for s, count in enumerate(row):
            room[s] -= unit.prefix[count]
        for s in active:
            room[s] -= unit.ring_bytes(row[s], num_slots)
    return room


def _give_way(
    problem: Problem, state: State, kept: list[list[int]], resident: list[int], u: int, s: int, excess: int
) -> bool:
    """Lower what a unit holds in a stage by about the excess; False if it holds the least already."""
    unit = problem.units[u]
    held = kept[u][s]
    least = unit.least_kept if u in problem.stages[s].active else unit.least_idle
    if held <= least:
        return False
    if u not in problem.stages[s].active:
        resident[u] = max(bisect_right(unit.prefix, unit.prefix[held] - excess) - 1, least)
        return True
    needed = unit.prefix[held] + unit.ring_bytes(held, state.num_slots[u]) - excess
    fitting = (
        k
        for k in range(held - 1, least, -1)
        if unit.prefix[k] + unit.ring_bytes(k, state.num_slots[u]) <= needed
    )
    kept[u][s] = next(fitting, least)
    return True


def _carry(problem: Problem, room: list[int], state: State) -> State:
    """Let units that run again later in the call hold their groups meanwhile, as far as there is room, by stage."""
    kept = [list(row) for row in state.kept]
    for u, unit in enumerate(problem.units):
        for start, end in pairwise(problem.active_stages[u]):
            gap = range(start + 1, end)
            if not gap:
                continue
            held = state.resident[u]
            most = unit.prefix[held] + min(room[s] for s in gap)
            carried = min(kept[u][start], kept[u][end], bisect_right(unit.prefix, most) - 1)
            for s in gap:
                kept[u][s] = max(carried, held)
                room[s] -= unit.prefix[kept[u][s]] - unit.prefix[held]
    return replace(state, kept=tuple(map(tuple, kept)))


def _neighbours(problem: Problem, budget_bytes: int, state: State) -> Iterator[State]:
    """States one step away: first those that fill free room, then those in which another unit gives way."""
    seen, tried = {state}, set()
    heaviest = tuple(sorted(problem.movable, key=lambda u: -_traffic(problem, u)))
    fills = ((wish, (u,)) for u in heaviest for wish in _fills(problem, state, u))
    steps = ((wish, heaviest) for u in heaviest for wish in _steps(problem, state, u))
    for wish, victims in chain(fills, steps):
        asked = _followed(problem, wish)
        if (asked, victims) in tried:
            continue
        tried.add((asked, victims))
        for candidate in _settled(problem, budget_bytes, asked, victims):
            if candidate is not None and candidate not in seen:
                seen.add(candidate)
                yield candidate


def _settled(
    problem: Problem, budget_bytes: int, wish: State, victims: tuple[int, ...]
) -> Iterator[State | None]:
    """What a wish comes to with each of the victims: one and the same where there is room for it."""
    room = _room(problem, budget_bytes, wish)
    if min(room) >= 0:
        yield _carry(problem, room, wish)
    else:
        yield from (settle(problem, budget_bytes, wish, victim) for victim in victims)


def _fills(problem: Problem, state: State, u: int) -> Iterator[State]:
    """All of a unit resident, or kept in one stage: it gives way itself, down to what there is room for."""
    everything, active = len(problem.units[u].groups), problem.active_stages[u]
    yield _wish(state, u, dict.fromkeys(active, everything), everything)
    for s in active:
        yield _wish(state, u, {s: everything}, state.resident[u])


def _steps(problem: Problem, state: State, u: int) -> Iterator[State]:
    """Another number of slots, another count in one stage or in all, another resident count."""
    unit = problem.units[u]
    active = problem.active_stages[u]
    scopes = [active] if len(active) == 1 else [active, *((s,) for s in active)]
    for num_slots in range(1, MAX_SLOTS + 1):
        yield replace(state, num_slots=(*state.num_slots[:u], num_slots, *state.num_slots[u + 1 :]))
    for delta in _deltas(len(unit.groups)):
        resident = _clamp(state.resident[u] + delta, unit.least_idle, len(unit.groups))
        yield _wish(state, u, {s: max(resident, state.kept[u][s]) for s in active}, resident)
        for scope in scopes:
            counts = {s: _clamp(state.kept[u][s] + delta, unit.least_kept, len(unit.groups)) for s in scope}
            yield _wish(state, u, counts, state.resident[u])


def _traffic(problem: Problem, u: int) -> float:
    """Bytes that a call would copy if all of a unit were streamed."""
    return problem.units[u].total_bytes * sum(s.num_iterations * s.num_visits[u] for s in problem.stages)


def _wish(state: State, u: int, counts: dict[int, int], resident: int) -> State:
    row = tuple(counts.get(s, k) for s, k in enumerate(state.kept[u]))
    return State(
        (*state.kept[:u], row, *state.kept[u + 1 :]),
        (*state.resident[:u], resident, *state.resident[u + 1 :]),
        state.num_slots,
    )


def _deltas(num_groups: int) -> list[int]:
    """Steps of 1, 2, 4, ... groups, both ways, up to all."""
    steps = [2**k for k in range(num_groups.bit_length())]
    return [sign * step for step in steps for sign in (1, -1)]


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
