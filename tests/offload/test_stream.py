"""Rings and their traffic against a model of one copy after the other; and that a wait that is missing is found."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny_pipelines
from tests.offload.tuned_pipelines import tuned
from vramtune.offload.groups import Group, HeldTensor
from vramtune.offload.stream import Copy, Lane, Passage, Ring, Traffic
from vramtune.plain_tensors import PlainTensor

CPU = torch.device("cpu")


class EagerLane:
    """Copies at once, so that a place that is overwritten too early shows in its bytes; notes what waited for what."""

    is_staging = False

    def __init__(self) -> None:
        self.copied: list[tuple[Group, Any]] = []
        self._clock = 0

    def copy(self, group: Group, target: torch.Tensor, after: Any) -> Any:
        target.copy_(group.flat)
        self.copied.append((group, after))
        return self.passed()

    def wait(self, ready: Any) -> None:
        pass

    def passed(self) -> Any:
        self._clock += 1
        return self._clock


def make_group(number: int, num_bytes: int) -> Group:
    """One tensor full of its number, and a master on the host."""
    tensor = torch.full((num_bytes,), number, dtype=torch.uint8)
    group = Group(f"group {number}", [HeldTensor(PlainTensor(tensor, ""), tensor, [], CPU)])
    group.update_layout()
    group.master = torch.full((group.num_bytes,), number, dtype=torch.uint8)
    group.master_views = [group.master[:num_bytes]]
    group.use_master()
    group.held[0].point_at(group.master_views[0])
    return group


def is_there(group: Group, number: int) -> bool:
    """Whether the group's tensor has its values, and not in its master."""
    tensor = group.held[0].tensor
    return group.uses_copy and bool((tensor == number).all())


sizes = st.lists(st.integers(1, 3000), min_size=1, max_size=5)


@given(sizes=sizes, extra_bytes=st.integers(0, 4096), picks=st.lists(st.integers(0, 9), max_size=40))
def test_a_ring_never_overwrites_what_is_wanted_and_gives_first_what_came_first(
    sizes: list[int], extra_bytes: int, picks: list[int]
) -> None:
    groups = [make_group(number, size) for number, size in enumerate(sizes)]
    lane = EagerLane()
    ring = Ring(max(group.num_bytes for group in groups) + extra_bytes, CPU)
    wanted: list[tuple[Any, int]] = []
    for number, pick in enumerate(picks):
        group = groups[pick % len(groups)]
        while not ring.has_room(group):
            assert wanted, "an empty ring has room for every group"
            place, _ = wanted.pop(0)
            place.is_wanted, place.left = False, lane.passed()
        over = [p for p in ring._live if p.start < ring._start(group) + group.num_bytes - ring.num_bytes]
        ring.ask(lane, group, number)  # type: ignore[arg-type]
        assert lane.copied[-1] == (group, over[-1].left if over else None)
        place = ring.next_waiting(group)
        assert place is not None
        assert place.number == number
        assert 0 <= place.start % ring.num_bytes <= ring.num_bytes - group.num_bytes
        wanted.append((place, pick % len(groups)))
        for held, value in wanted:
            _, (tensor,) = ring.copy_at(held.group, held.start)
            assert bool((tensor == value).all())


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=2, max_size=5),
    num_slots=st.integers(1, 3),
    num_kept=st.integers(0, 2),
    num_iterations=st.integers(1, 3),
    detours=st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=30),
)
def test_every_group_is_there_when_it_computes_whatever_the_order(
    sizes: list[int], num_slots: int, num_kept: int, num_iterations: int, detours: list[int | None]
) -> None:
    groups = [make_group(number, size) for number, size in enumerate(sizes)]
    kept, streamed = groups[: min(num_kept, len(groups) - 1)], groups[min(num_kept, len(groups) - 1) :]
    copies = {}
    for group in kept:
        flat = torch.empty(group.num_bytes, dtype=torch.uint8)
        copies[group] = Copy(flat, [flat[: group.held[0].tensor.numel()]])
    most = num_slots * max(group.num_bytes for group in streamed)
    passage = Passage(Ring(min(most, sum(group.num_bytes for group in streamed)), CPU))
    lane = EagerLane()
    planned = list(range(len(groups))) * num_iterations
    traffic = Traffic(lane, [(passage, group) for group in groups], num_iterations, copies)  # type: ignore[arg-type]
    order = [x if y is None else y % len(groups) for x, y in zip(planned, detours, strict=False)]
    order += planned[len(order) :]
    for number in order:
        traffic.enter(passage, groups[number])
        assert is_there(groups[number], number)
    traffic.leave(passage)
    traffic.close([passage])
    assert not any(group.uses_copy for group in streamed)
    if order == planned:
        assert [group for group, _ in lane.copied] == [
            group for i, group in enumerate(groups * num_iterations) if group in streamed or i < len(groups)
        ]


def streaming(sizes: list[int], num_slots: int) -> tuple[list[Group], Passage]:
    """Groups of these sizes, and their passage through so many slots."""
    groups = [make_group(number, size) for number, size in enumerate(sizes)]
    return groups, Passage(Ring(num_slots * max(group.num_bytes for group in groups), CPU))


def are_under_way(traffic: Traffic, passage: Passage, groups: list[Group], order: list[int]) -> list[bool]:
    """Whether each of these visits finds its group's copy asked for already."""
    assert passage.ring is not None
    asked = []
    for number in order:
        traffic.leave(passage)
        asked.append(any(place.group is groups[number] for place in passage.ring.waiting))
        traffic.enter(passage, groups[number])
        assert is_there(groups[number], number)
    return asked


@pytest.mark.parametrize(
    ("order", "unforeseen", "copied"),
    [
        ([0, 1, 2, 3, 0, 1, 2, 3], [], [0, 1, 2, 3] * 2),
        ([0, 2, 3, 0, 1, 2, 3], [], [0, 1, 2, 3] * 2),  # one left out
        ([0, 0, 1, 2, 3], [1], [0, 1, 2, 0, 1, 2, 3]),  # all but the first
        ([0, 1, 0, 1, 2, 3], [2], [0, 1, 2, 3] * 2),  # the rest of an iteration left out
        ([0, 1, 2, 3] * 4, [8], [0, 1, 2, 3] * 4 + [0]),  # more iterations than planned
    ],
)
def test_behind_a_detour_copies_are_under_way_again_and_none_is_made_twice(
    order: list[int], unforeseen: list[int], copied: list[int]
) -> None:
    groups, passage = streaming([512] * 4, num_slots=2)
    lane = EagerLane()
    traffic = Traffic(lane, [(passage, group) for group in groups], 2, {})  # type: ignore[arg-type]
    under_way = are_under_way(traffic, passage, groups, order)
    traffic.leave(passage)
    assert [visit for visit, was_asked in enumerate(under_way) if not was_asked] == unforeseen
    assert [groups.index(group) for group, _ in lane.copied] == copied


def test_a_detour_of_one_placement_moves_the_order_of_the_others_too() -> None:
    groups, passage = streaming([512] * 3, num_slots=1)
    others, other = streaming([512] * 2, num_slots=2)
    visits = [*((passage, group) for group in groups), *((other, group) for group in others)]
    lane = EagerLane()
    traffic = Traffic(lane, visits, 2, {})  # type: ignore[arg-type]
    are_under_way(traffic, passage, groups, [0, 1, 0, 1, 2])
    traffic.enter(other, others[0])
    assert other.place is not None
    assert other.place.number == visits.index((other, others[0])) + len(visits)


def test_a_group_that_computes_twice_in_a_row_with_an_end_between_is_there_both_times() -> None:
    groups, passage = streaming([512, 512], num_slots=1)
    lane = EagerLane()
    traffic = Traffic(lane, [(passage, group) for group in groups], 1, {})  # type: ignore[arg-type]
    for _ in range(2):
        traffic.enter(passage, groups[0])
        assert is_there(groups[0], 0)
        traffic.leave(passage)
        assert not groups[0].uses_copy


def test_a_stage_that_ends_while_a_group_computes_sends_it_home() -> None:
    groups, passage = streaming([512, 512], num_slots=2)
    lane = EagerLane()
    traffic = Traffic(lane, [(passage, group) for group in groups], 1, {})  # type: ignore[arg-type]
    traffic.enter(passage, groups[0])
    traffic.close([passage])
    assert not groups[0].uses_copy
    assert passage.current is None


def test_a_copy_over_several_places_waits_for_the_last_computation_on_any_of_them() -> None:
    computed, passed_over, wide = make_group(0, 512), make_group(1, 512), make_group(2, 1024)
    lane, ring = EagerLane(), Ring(1024, CPU)
    ring.ask(lane, computed, 0)  # type: ignore[arg-type]
    ring.ask(lane, passed_over, 1)  # type: ignore[arg-type]
    place = ring.next_waiting(computed)
    assert place is not None
    place.is_wanted, place.left = False, lane.passed()
    ring.forget_waiting()
    ring.ask(lane, wide, 2)  # type: ignore[arg-type]
    assert lane.copied[-1] == (wide, place.left)


# ---------------------------------------------------------------------------------------------------
# A wait that is missing


@pytest.mark.usefixtures("no_garbage")
@pytest.mark.parametrize("name", ["flux", "sdxl"])
def test_computing_without_waiting_for_the_copy_is_found_as_a_race(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Lane, "wait", lambda self, ready: None)
    check_race(name, "is not ordered after write by copy to device")


@pytest.mark.usefixtures("no_garbage")
@pytest.mark.parametrize("name", ["flux", "sdxl"])
def test_overwriting_a_place_without_waiting_for_its_computation_is_found_as_a_race(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    copy: Callable[..., Any] = Lane.copy
    monkeypatch.setattr(Lane, "copy", lambda self, group, target, after: copy(self, group, target, None))
    check_race(name, r"write by copy to device .*is not ordered after")


@pytest.mark.usefixtures("no_garbage")
def test_freeing_slots_without_waiting_for_their_copies_is_found_as_a_race(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lane, "precede_compute", lambda self: None)

    with tuned("flux", 0.4, copy_to_compute=5) as (pipe, _), pytest.raises(RuntimeError, match="sim race"):
        tiny_pipelines.run(pipe, "flux", num_inference_steps=1)


def check_race(name: str, message: str) -> None:
    with tuned(name, 0.4, copy_to_compute=5) as (pipe, _), pytest.raises(RuntimeError, match="sim race: .*" + message):
        tiny_pipelines.run(pipe, name)


def test_of_an_iteration_that_has_not_begun_no_more_is_copied_than_the_largest_group() -> None:
    groups, passage = streaming([512, 512, 1024, 512], num_slots=4)
    lane = EagerLane()
    traffic = Traffic(lane, [(passage, group) for group in groups], 2, {})  # type: ignore[arg-type]
    asked = [len(lane.copied)]
    for number in [0, 1, 2, 3] * 2:
        traffic.enter(passage, groups[number])
        traffic.leave(passage)
        asked.append(len(lane.copied))
    assert asked == [2, *[6] * 4, *[8] * 4]
