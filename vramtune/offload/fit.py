"""Fewer groups where a plan's do not fit: weights that grew, activations that were larger than predicted."""

from collections.abc import Sequence

from vramtune.offload.binding import Unit
from vramtune.schema import Plan


def planned_bytes(plan: Plan, stage: int) -> int:
    """What the plan gives to weights and slots in a stage."""
    return sum(p.kept_bytes(stage) + p.slot_bytes(stage) for p in plan.placements)


def held_bytes(units: Sequence[Unit], stage: int) -> int:
    """What weights and slots take in a stage as things are."""
    return sum(unit.held_bytes(stage, unit.kept[stage], unit.num_slots[stage]) for unit in units)


def fit(units: Sequence[Unit], stage: int, allowed_bytes: int) -> bool:
    """Keep fewer groups in a stage until they take no more than that; False if that cannot be done.

    Idle components give way first, resident ones last; among equals the one that holds most.
    """
    while (excess := held_bytes(units, stage) - allowed_bytes) > 0:
        order = sorted(units, key=lambda unit: _reluctance(unit, stage))
        if not any(_give_way(unit, stage, excess) for unit in order):
            return False
    return True


def _reluctance(unit: Unit, stage: int) -> tuple[bool, bool, int]:
    is_resident = unit.num_resident == len(unit.groups)
    held = unit.held_bytes(stage, unit.kept[stage], unit.num_slots[stage])
    return is_resident or unit.part.is_excluded, unit.placement.active[stage], -held


def _give_way(unit: Unit, stage: int, excess_bytes: int) -> bool:
    """Hold less in a stage, by about the excess; False if it holds the least already."""
    if unit.part.is_excluded:
        return False
    now = unit.held_bytes(stage, unit.kept[stage], unit.num_slots[stage])
    least = 1 if unit.placement.active[stage] else 0
    options = [
        (unit.held_bytes(stage, kept, num_slots), kept, num_slots)
        for num_slots in range(unit.num_slots[stage], 0, -1)
        for kept in range(unit.kept[stage], least - 1, -1)
    ]
    fitting = (option for option in options if option[0] <= now - excess_bytes)
    held, kept, num_slots = next(fitting, min(options))
    if held >= now:
        return False
    unit.kept[stage], unit.num_slots[stage] = kept, num_slots
    return True
