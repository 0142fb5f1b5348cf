"""Which groups give way where a plan's do not fit."""

from torch import nn

from vramtune.offload.binding import BoundComponent, BoundPlacement
from vramtune.offload.fit import fit, held_bytes
from vramtune.offload.groups import Group
from vramtune.schema import Placement, WeightGroup

GROUP_BYTES = 512
IDLES, RUNS = 0, 1
"""Stages: in the second, what runs at all runs; what is idle there ran in the first."""


def bound(
    name: str,
    *,
    kept: tuple[int, int],
    runs: bool = True,
    num_groups: int = 4,
    num_slots: int = 2,
    excluded: bool = False,
) -> BoundPlacement:
    """A component of equal groups that runs in the second stage or in the first; `kept` in that order."""
    planned = tuple(WeightGroup(name=str(n), weight_bytes=GROUP_BYTES, modules=(str(n),)) for n in range(num_groups))
    placement = Placement(
        component=name, methods=(), groups=planned, active=(not runs, runs), kept=kept[::-1], num_slots=num_slots
    )
    groups = [Group(group.name, [], num_bytes=GROUP_BYTES) for group in planned]
    component = BoundComponent(name, nn.Module(), excluded)
    return BoundPlacement(placement, component, groups, list(kept[::-1]), [num_slots] * 2)


def kept_within(placements: list[BoundPlacement], num_groups: int) -> list[int]:
    """The counts kept in the second stage when so many groups' bytes are allowed there; the other stage is left alone."""
    before, held_before = [each.kept[IDLES] for each in placements], held_bytes(placements, RUNS)
    assert fit(placements, RUNS, num_groups * GROUP_BYTES) == held_before - held_bytes(placements, RUNS)
    assert held_bytes(placements, RUNS) <= num_groups * GROUP_BYTES
    assert [each.kept[IDLES] for each in placements] == before
    return [each.kept[RUNS] for each in placements]


def test_placements_that_fit_stay_as_they_are() -> None:
    placements = [bound("a", kept=(2, 1)), bound("b", kept=(2, 4), runs=False)]
    assert kept_within(placements, 6) == [2, 2]
    assert placements[0].num_slots == [2, 2]


def test_an_idle_placement_gives_way_before_a_running_one() -> None:
    assert kept_within([bound("a", kept=(3, 0)), bound("b", kept=(3, 4), runs=False)], 5) == [3, 1]
    assert kept_within([bound("b", kept=(3, 4), runs=False), bound("a", kept=(3, 0))], 5) == [1, 3]


def test_among_idle_placements_the_one_that_holds_most_gives_way() -> None:
    placements = [bound("a", kept=(1, 4), runs=False), bound("b", kept=(3, 4), runs=False)]
    assert kept_within(placements, 3) == [1, 2]


def test_a_resident_placement_gives_way_last() -> None:
    placements = [bound("a", kept=(4, 4), runs=False), bound("b", kept=(4, 0), num_slots=1)]
    assert kept_within(placements, 6) == [4, 1]
    assert kept_within(placements, 4) == [2, 1]


def test_an_excluded_placement_stays_even_where_nothing_else_is_left() -> None:
    placements = [bound("a", kept=(3, 3), runs=False, excluded=True), bound("b", kept=(1, 1), runs=False)]
    fit(placements, RUNS, 2 * GROUP_BYTES)
    assert held_bytes(placements, RUNS) > 2 * GROUP_BYTES
    assert [each.kept[RUNS] for each in placements] == [3, 0]


def test_no_more_is_given_up_than_was_asked_for() -> None:
    assert kept_within([bound("a", kept=(4, 5), runs=False, num_groups=5)], 3) == [3]


def test_a_running_placement_keeps_its_root_and_gives_up_slots_too() -> None:
    running = bound("a", kept=(2, 1), num_slots=2)
    assert kept_within([running], 3) == [1]
    assert running.num_slots[RUNS] == 2
    assert kept_within([running], 2) == [1]
    assert running.num_slots == [2, 1]
    assert fit([running], RUNS, GROUP_BYTES) == 0
    assert held_bytes([running], RUNS) > GROUP_BYTES
    assert (running.kept[RUNS], running.num_slots[RUNS]) == (1, 1)


def test_an_idle_component_has_no_more_than_the_stage_before_it_left() -> None:
    placement = bound("a", kept=(3, 1))  # idle in the first stage, in which residents alone are there
    placement.kept[IDLES] = 4
    fit([placement], RUNS, 100 * GROUP_BYTES)
    assert placement.kept == [3, 3]
