"""Which groups give way where a plan's do not fit."""

from torch import nn

from vramtune.offload.binding import Part, Unit
from vramtune.offload.fit import fit, held_bytes
from vramtune.offload.groups import Group
from vramtune.schema import Placement, WeightGroup

GROUP_BYTES = 512
RUNS, IDLES = 0, 1
"""Stages: in the first, what runs at all runs."""


def unit(
    name: str,
    *,
    kept: tuple[int, int],
    runs: bool = True,
    num_groups: int = 4,
    num_slots: int = 2,
    excluded: bool = False,
) -> Unit:
    """A component of equal groups that runs in the first stage or in the second."""
    planned = tuple(
        WeightGroup(name=str(n), weight_bytes=GROUP_BYTES, modules=(str(n),)) for n in range(num_groups)
    )
    placement = Placement(
        component=name, methods=(), groups=planned, active=(runs, not runs), kept=kept, num_slots=num_slots
    )
    groups = [Group(group.name, [], num_bytes=GROUP_BYTES) for group in planned]
    return Unit(placement, Part(name, nn.Module(), excluded), groups, list(kept), [num_slots] * 2)


def fitted(units: list[Unit], num_groups: int) -> list[int]:
    """The counts kept in the first stage when so many groups' bytes are allowed there; the other stage is left alone."""
    before = [each.kept[IDLES] for each in units]
    assert fit(units, RUNS, num_groups * GROUP_BYTES)
    assert held_bytes(units, RUNS) <= num_groups * GROUP_BYTES
    assert [each.kept[IDLES] for each in units] == before
    return [each.kept[RUNS] for each in units]


def test_what_fits_stays() -> None:
    units = [unit("a", kept=(2, 1)), unit("b", kept=(2, 1), runs=False)]
    assert fitted(units, 6) == [2, 2]
    assert units[0].num_slots == [2, 2]


def test_what_is_idle_gives_way_first() -> None:
    assert fitted([unit("a", kept=(3, 0)), unit("b", kept=(3, 1), runs=False)], 5) == [3, 1]
    assert fitted([unit("b", kept=(3, 1), runs=False), unit("a", kept=(3, 0))], 5) == [1, 3]


def test_among_equals_the_one_that_holds_most_gives_way() -> None:
    units = [unit("a", kept=(1, 1), runs=False), unit("b", kept=(3, 1), runs=False)]
    assert fitted(units, 3) == [1, 2]


def test_what_is_resident_gives_way_last() -> None:
    units = [unit("a", kept=(4, 4), runs=False), unit("b", kept=(4, 0), num_slots=1)]
    assert fitted(units, 6) == [4, 1]
    assert fitted(units, 4) == [2, 1]


def test_what_is_excluded_stays_even_where_nothing_else_is_left() -> None:
    units = [unit("a", kept=(3, 3), runs=False, excluded=True), unit("b", kept=(1, 1), runs=False)]
    assert not fit(units, RUNS, 2 * GROUP_BYTES)
    assert [each.kept[RUNS] for each in units] == [3, 0]


def test_no_more_gives_way_than_is_asked_for() -> None:
    assert fitted([unit("a", kept=(4, 1), runs=False)], 3) == [3]


def test_what_runs_keeps_its_root_and_gives_slots_too() -> None:
    running = unit("a", kept=(2, 1), num_slots=2)
    assert fitted([running], 3) == [1]
    assert running.num_slots[RUNS] == 2
    assert fitted([running], 2) == [1]
    assert running.num_slots == [1, 2]
    assert not fit([running], RUNS, GROUP_BYTES)
    assert (running.kept[RUNS], running.num_slots[RUNS]) == (1, 1)
