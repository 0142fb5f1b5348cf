"""Do the weights fit the plan's share of memory? Fewer groups are kept where they grew, or activations needed more."""

from collections.abc import Iterable, Sequence

from vramtune.offload.binding import BoundPlacement
from vramtune.schema import Plan


def planned_bytes(plan: Plan, stage: int) -> int:
    """Bytes that the plan gives to weights and slots in a stage."""
    return sum(p.kept_bytes(stage) + p.slot_bytes(stage) for p in plan.placements)


def resident_bytes(placements: Iterable[BoundPlacement]) -> int:
    """Bytes of the groups that stay on the device between calls; placements of a component share its root."""
    groups = {group for placement in placements for group in placement.groups[: placement.num_resident]}
    return sum(group.num_bytes for group in groups)


def held_bytes(placements: Sequence[BoundPlacement], stage: int) -> int:
    """Bytes that weights and slots take in a stage as things are."""
    return sum(placement.held_bytes(stage) for placement in placements)


def fit(placements: Sequence[BoundPlacement], stage: int, allowed_bytes: int) -> int:
    """Keep fewer groups in a stage until they take no more than that, or can take no less; returns the bytes given up.

    Idle components give way first, resident ones last; among equals the one that holds most.
    """
    _keep_what_is_there(placements)
    before = held = held_bytes(placements, stage)
    while held > allowed_bytes:
        order = sorted(placements, key=lambda placement: _rank(placement, stage))
        if not any(_give_way(placement, stage, held - allowed_bytes) for placement in order):
            break
        _keep_what_is_there(placements)
        held = held_bytes(placements, stage)
    return before - held


def fit_residents(placements: Iterable[BoundPlacement], allowed_bytes: int) -> int:
    """Keep fewer groups between calls until they take no more than that; returns the bytes given up."""
    movable = [placement for placement in placements if not placement.component.is_excluded]
    before = held = resident_bytes(movable)
    while held > allowed_bytes:
        max(movable, key=lambda placement: resident_bytes([placement])).give_up_resident()
        held = resident_bytes(movable)
    return before - held


def _keep_what_is_there(placements: Iterable[BoundPlacement]) -> None:
    for placement in placements:
        placement.keep_what_is_there()


def _rank(placement: BoundPlacement, stage: int) -> tuple[bool, bool, int]:
    """The lowest gives way first."""
    is_resident = placement.num_resident == len(placement.groups)
    stays = is_resident or placement.component.is_excluded
    return stays, placement.planned.active[stage], -placement.held_bytes(stage)


def _give_way(placement: BoundPlacement, stage: int, excess_bytes: int) -> bool:
    """Hold less in a stage, by about the excess; False if the placement holds the least already."""
    if placement.component.is_excluded:
        return False
    now = placement.held_bytes(stage)
    least = 1 if placement.planned.active[stage] else 0
    options = [
        (placement.bytes_with(stage, kept, num_slots), kept, num_slots)
        for num_slots in range(placement.num_slots[stage], 0, -1)
        for kept in range(placement.kept[stage], least - 1, -1)
    ]
    fitting = (option for option in options if option[0] <= now - excess_bytes)
    held, kept, num_slots = next(fitting, min(options))
    if held >= now:
        return False
    placement.kept[stage], placement.num_slots[stage] = kept, num_slots
    return True
