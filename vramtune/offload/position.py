"""Where a pipeline is in its plan, and what a placement keeps there."""

from typing import NamedTuple

from vramtune.offload.binding import BoundComponent, BoundPlacement


class Position(NamedTuple):
    """Where a pipeline is in its plan: in a stage, or off the plan while one component does something else."""

    stage: int | None
    component: BoundComponent | None = None


def counts(placement: BoundPlacement, position: Position) -> tuple[int, int]:
    """Numbers of groups kept and of slots at a position."""
    if position.stage is not None:
        return placement.kept[position.stage], placement.num_slots[position.stage]
    if placement.component is not position.component:
        return placement.num_resident, 1
    running = [stage for stage, active in enumerate(placement.planned.active) if active]
    return min(placement.kept[s] for s in running), min(placement.num_slots[s] for s in running)
