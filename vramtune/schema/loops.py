"""The loops in a sequence of calls: a pipeline's denoising steps, say."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

LONGEST_PERIOD = 8
"""Most calls of one iteration: guidance makes up to three of a denoiser, networks beside it (ControlNet) one each."""
LEAST_REPEATS = 3
"""Fewest iterations of a loop. Two alike are not one: SD3's three encoders run in turn for each of two prompts, and a
plan may keep a different one for each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The same `period` calls, `num_iterations` times over, beginning with call number `start`."""

    start: int
    period: int
    num_iterations: int

    @property
    def stop(self) -> int:
        """Number of the first call after it."""
        return self.start + self.period * self.num_iterations


def find_loops(tokens: Sequence[Hashable]) -> list[Loop]:
    """Cut a sequence into loops: at each place the period that covers most, the shortest of equals.

    A loop has at least three iterations; a call in none of these is a loop of one iteration of its own.
    """
    loops: list[Loop] = []
    start = 0
    while start < len(tokens):
        best = max((_loop_at(tokens, start, period) for period in range(1, LONGEST_PERIOD + 1)), key=_coverage)
        loops.append(best if _coverage(best) else Loop(start=start, period=1, num_iterations=1))
        start = loops[-1].stop
    return loops


def _loop_at(tokens: Sequence[Hashable], start: int, period: int) -> Loop:
    stop = start + period
    while stop < len(tokens) and tokens[stop] == tokens[stop - period]:
        stop += 1
    return Loop(start=start, period=period, num_iterations=(stop - start) // period)


def _coverage(loop: Loop) -> int:
    return loop.period * loop.num_iterations if loop.num_iterations >= LEAST_REPEATS else 0
