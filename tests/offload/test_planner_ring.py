"""The planner's ring and the runtime's: the same places for the same visits, which overwrite the same ones."""

from itertools import accumulate
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vramtune.layout import round_up
from vramtune.offload.binding import BoundComponent, BoundPlacement
from vramtune.offload.groups import Group
from vramtune.offload.stream import Place, Ring
from vramtune.schema import Placement, WeightGroup
from vramtune.tuner.problem import Unit
from vramtune.tuner.schedule import Residency, _Ring


class RecordingLane:
    """Copies nothing; notes which event each copy waits for."""

    is_staging = False

    def __init__(self) -> None:
        self.waited_for: Any = None

    def copy(self, group: Group, target: torch.Tensor, after: Any) -> Any:
        self.waited_for = after


def planner_unit(sizes: list[int]) -> Unit:
    """The unit of these groups as the planner has it."""
    return Unit(
        component="transformer",
        methods=(),
        groups=(),
        sizes=tuple(sizes),
        prefix=(0, *accumulate(sizes)),
        largest=tuple(max(sizes[kept:], default=0) for kept in range(len(sizes) + 1)),
        least_kept=1,
    )


def bound_placement(sizes: list[int]) -> BoundPlacement:
    """The placement of these groups as the runtime has it."""
    planned = Placement(
        component="transformer",
        methods=(),
        groups=tuple(WeightGroup(name=str(n), weight_bytes=s, modules=()) for n, s in enumerate(sizes)),
        active=(True,),
        kept=(1,),
        num_slots=1,
    )
    component = BoundComponent("transformer", nn.Module(), is_excluded=False)
    groups = [Group(group.name, [], num_bytes=group.weight_bytes) for group in planned.groups]
    return BoundPlacement(planned, component, groups, [1], [1])


@given(
    sizes=st.lists(st.integers(1, 4000).map(round_up), min_size=1, max_size=6),
    num_kept=st.integers(0, 5),
    num_slots=st.integers(1, 4),
    picks=st.lists(st.integers(0, 9), max_size=60),
)
def test_planner_and_runtime_give_random_visits_the_same_places_and_overwrite_the_same(
    sizes: list[int], num_kept: int, num_slots: int, picks: list[int]
) -> None:
    num_kept = min(num_kept, len(sizes) - 1)
    placement = bound_placement(sizes)
    planner = _Ring(planner_unit(sizes), Residency(num_kept, num_kept, num_slots))
    ring, lane = Ring(placement.ring_bytes(num_kept, num_slots), torch.device("cpu")), RecordingLane()
    assert ring.num_bytes == planner.num_bytes
    computing: list[Place] = []
    num_done = waited_for = 0
    for number, pick in enumerate(picks):
        group = placement.groups[num_kept + pick % (len(sizes) - num_kept)]
        planner_waits_for = planner.place(group.num_bytes)
        while not ring.has_room(group):
            place = computing.pop(0)
            num_done += 1
            place.is_wanted, place.left = False, num_done  # type: ignore[assignment]
        assert num_done >= planner_waits_for
        ring.ask(lane, group, number)  # type: ignore[arg-type]
        place = ring.waiting.popleft()
        computing.append(place)
        waited_for = max(waited_for, lane.waited_for or 0)
        assert place.start == planner.starts[-1]
        assert waited_for == planner_waits_for
        planner.ends.append(number + 1)
    # Nothing was waited for in vain: the ring had room as soon as what the planner overwrites was done.
    assert num_done == waited_for
