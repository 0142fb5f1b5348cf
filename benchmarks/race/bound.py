"""Seconds of a steady call that no contestant can beat, from what is on the card besides weights at every moment.

Whoever computes a layer has all of that layer's weights on the card, beside the activations that are alive then and what
else there is room for. So between two moments a contestant copies what the layers in between use, as far as the card had
no room for it at the first of both; and as the kernels in between need their time as well, what lies between takes the
longer of both. However a call is cut at such moments, from one of them to the same one in the next call, it takes the sum
at the least. Of all cuts the one that says most is found, moment by moment, as a longest path.

The moments are the ends of layers' kernels. A layer's weights are still there then, and of no use before its next turn; what
is copied for a stretch is there before its last layer begins, whose kernels follow. That is what a slot costs, of a single
layer at the least.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

MOST_MOMENTS = 3000
"""At which a call may be cut: the time that it takes to look grows by their square."""


class Visit(NamedTuple):
    """One layer's turn, with all weights on the card."""

    layer: int
    """Its number among all of the pipeline's."""
    weight_bytes: int
    begin_seconds: float
    """Kernels from the begin of the call until it begins."""
    end_seconds: float
    """The same until it has ended."""
    live_bytes: int
    """What is on the card besides weights as its kernels end; of a convolution with a copy of its images, which cuDNN takes
    for as long as it computes, and without one of its result, which it can do without."""

    def later(self, seconds: float) -> Self:
        """The same later in the call."""
        return self._replace(begin_seconds=self.begin_seconds + seconds, end_seconds=self.end_seconds + seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of the pipeline."""

    visits: tuple[Visit, ...]
    kernel_seconds: float

    @classmethod
    def of(cls, found: dict[str, Any]) -> Self:
        """As `calls.py` has found it: what is before the denoiser's calls, one of them, which are alike, and what is after."""
        visits: list[Visit] = []
        seconds = 0.0
        for part, times in (("before", 1), ("denoiser", found["num_calls"]), ("after", 1)):
            for _ in range(times):
                visits += [Visit(*visit).later(seconds) for visit in found[part]["visits"]]
                seconds += found[part]["kernel_seconds"]
        return cls(visits=tuple(visits), kernel_seconds=seconds)

    def least_seconds(self, room_bytes: int, bytes_per_second: float) -> float:
        """Of a call, with so much room for weights and activations, where one follows the other."""
        num_visits = len(self.visits)
        first = max(range(num_visits), key=lambda number: self.visits[number].live_bytes)
        # from the visit with which most is alive to the same one in the next call, and as much again to see who comes when
        turns = range(first, first + 2 * num_visits + 1)
        visits = [self.visits[turn % num_visits].later(turn // num_visits * self.kernel_seconds) for turn in turns]
        column = dict(zip(Visit._fields, np.array(visits, dtype=float).T, strict=True))
        begins, ends, weights = column["begin_seconds"], column["end_seconds"], column["weight_bytes"]
        next_turn = _next_turns([visit.layer for visit in visits])
        stride = -(-num_visits // MOST_MOMENTS)
        moments = np.unique([*range(0, num_visits, stride), num_visits])
        reached = np.zeros(num_visits + 1)
        for number, turn in enumerate(moments[1:], 1):
            before = moments[:number]
            used_last = np.where(next_turn[: turn + 1] > turn, weights[: turn + 1], 0.0)
            used = np.cumsum(used_last)  # each layer once, at its last turn
            kernels, needed = begins[turn] - ends[before], used[turn] - used[before]
            room = np.maximum(room_bytes - column["live_bytes"][before] - used_last[before], 0)
            arrived = reached[before] + np.maximum(kernels, (needed - room) / bytes_per_second)
            reached[turn] = float(arrived.max()) + ends[turn] - begins[turn]
        return max(float(reached[num_visits]), self.kernel_seconds)


def _next_turns(layers: list[int]) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """By turn, when the same layer's next one is; after all others where there is none."""
    upcoming: dict[int, int] = {}
    found = np.full(len(layers), len(layers))
    for turn in range(len(layers) - 1, -1, -1):
        found[turn] = upcoming.get(layers[turn], len(layers))
        upcoming[layers[turn]] = turn
    return found
