"""Where a pipeline is in its plan, where it goes for a call, and what is used and kept there."""

from collections.abc import Container
from typing import NamedTuple

from vramtune.offload.binding import Binding, BoundComponent, BoundPlacement
from vramtune.offload.groups import Group
from vramtune.schema import Plan, call_name


class Position(NamedTuple):
    """Where a pipeline is in its plan: in a stage, or off the plan while one component does something else."""

    stage: int | None
    component: BoundComponent | None = None

    def name(self, plan: Plan) -> str:
        """As people read it."""
        if self.stage is not None:
            return plan.stages[self.stage].name
        return f"{self.component.name} (unplanned)" if self.component else "unplanned"


def next_position(plan: Plan, position: Position | None, component: BoundComponent, method: str | None) -> Position:
    """Where to be for a component's call: here, in the next stage that knows it, or off the plan."""
    if position is not None and position.component is component and method is None:
        return position
    num_stages = len(plan.stages)
    here = position.stage if position is not None and position.stage is not None else -1
    order = [here, *(stage % num_stages for stage in range(here + 1, here + 1 + num_stages))]
    for stage in order:
        if stage >= 0 and _knows(plan, stage, component, method):
            return Position(stage)
    return Position(None, component)


def _knows(plan: Plan, stage: int, component: BoundComponent, method: str | None) -> bool:
    if method is not None:
        return call_name(component.name, method) in plan.stages[stage].calls
    return any(placement.planned.active[stage] for placement in component.placements)


def counts(placement: BoundPlacement, position: Position) -> tuple[int, int]:
    """Numbers of groups kept and of slots at a position."""
    if position.stage is not None:
        return placement.kept[position.stage], placement.num_slots[position.stage]
    if placement.component is not position.component:
        return placement.num_resident, 1
    running = [stage for stage, active in enumerate(placement.planned.active) if active]
    return min(placement.kept[s] for s in running), min(placement.num_slots[s] for s in running)


def active_placements(binding: Binding, position: Position) -> list[BoundPlacement]:
    """Those whose component runs at a position."""
    if position.stage is None:
        return position.component.placements if position.component is not None else []
    stage = position.stage
    return [placement for placement in binding.placements if placement.planned.active[stage]]


def kept_groups(
    binding: Binding, position: Position, there: Container[Group]
) -> dict[BoundPlacement | BoundComponent, list[Group]]:
    """The groups kept at a position, by what keeps them; off the plan, the component keeps its unplanned ones.

    Of components that do not run those that are `there` already: nothing is brought for them.
    """
    kept: dict[BoundPlacement | BoundComponent, list[Group]] = {}
    active = active_placements(binding, position)
    for placement in binding.placements:
        num_kept, _ = counts(placement, position)
        groups = [group for group in placement.groups[:num_kept] if group.moves]
        kept[placement] = groups if placement in active else [group for group in groups if group in there]
    if (component := position.component) is not None:
        kept[component] = [group for group in (component.root, component.unplanned) if group.moves]
    return kept


def itinerary(binding: Binding, position: Position) -> tuple[list[tuple[BoundPlacement, Group]], int]:
    """Visits of one iteration, and the number of iterations; off the plan, those of a stage that is like it."""
    stages, placements = binding.plan.stages, binding.placements
    if position.stage is not None:
        stage = stages[position.stage]
        visits, num_iterations = stage.visits, stage.num_iterations
    else:
        active = active_placements(binding, position)
        like = (number for each in active for number, runs in enumerate(each.planned.active) if runs)
        visits, num_iterations = stages[next(like, 0)].visits, 1
        visits = tuple((p, g) for p, g in visits if placements[p] in active)
    return [(placements[p], placements[p].groups[g]) for p, g in visits], num_iterations
