"""Moves a pipeline from stage to stage: evicts first, then takes memory, then copies as the stage runs.

A component that starts takes the pipeline to the next stage in which it runs, whatever the order is. What a plan
does not know (another method, weights that it found unused) is loaded whole for as long as it runs.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.utils.hooks import RemovableHandle

from vramtune.offload.binding import Part, Unit
from vramtune.offload.fit import fit, held_bytes, planned_bytes
from vramtune.offload.groups import Group, views
from vramtune.offload.hooks import hook_groups, hook_spare
from vramtune.offload.meter import Watch
from vramtune.offload.stream import Copy, Lane, Passage, Ring, Traffic
from vramtune.schema import Plan, call_name

FIRST_CUT_FRACTION = 1 / 8
"""Share of a stage's weights that makes room after the first out of memory; twice as much each further time."""


class Target(NamedTuple):
    """Where a pipeline is: in a stage of the plan, or off it while one component does something else."""

    stage: int | None
    part: Part | None = None


class Conductor:
    """Owns what is on the device beside what is resident."""

    def __init__(self, parts: Sequence[Part], plan: Plan, device: torch.device, watch: Watch) -> None:
        self.parts, self.plan, self.device, self.watch = list(parts), plan, device, watch
        self.overrun_bytes = [0] * len(plan.stages)
        """By stage: how much less than planned is left for weights, as out-of-memory errors taught."""
        self._lane = Lane(device, watch)
        self._target: Target | None = None
        self._traffic: Traffic | None = None
        self._passages: dict[Unit, Passage] = {}
        self._copies: dict[Group, Copy] = {}
        self._hooks: dict[Unit, list[RemovableHandle]] = {}
        self._spare_hooks: dict[Part, list[RemovableHandle]] = {}

    @property
    def units(self) -> list[Unit]:
        """The placements, in the plan's order."""
        by_name = {unit.placement.name: unit for part in self.parts for unit in part.units}
        return [by_name[placement.name] for placement in self.plan.placements]

    # ------------------------------------------------------------------------------------------------
    # Called by hooks

    def enter(self, part: Part, method: str | None) -> None:
        """A component's method starts (None: one of them does): go to where it runs, have its root there."""
        target = self._target_for(part, method)
        if target != self._target or self._traffic is None:
            self._go(target)
        assert self._traffic is not None
        for group in (part.root, part.spare):
            if (copy := self._copies.get(group)) is not None:
                self._traffic.arrive(group, copy)

    def leave(self, part: Part) -> None:
        """A component's method is done, or failed."""
        if self._traffic is not None:
            for unit in part.units:
                if (passage := self._passages.get(unit)) is not None:
                    self._traffic.leave(passage)

    def visit(self, unit: Unit, group: Group) -> None:
        """A module of a group starts."""
        passage = self._passages.get(unit)
        if passage is None:
            self._step_in(unit.part)
            passage = self._passages[unit]
        if passage.current is not group:
            assert self._traffic is not None
            self._traffic.enter(passage, group)

    def visit_spare(self, part: Part) -> None:
        """A module that the plan found unused starts."""
        if part.spare.moves and part.spare not in self._copies:
            self._step_off(part)

    def pause(self) -> None:
        """Back to what is resident; every parameter points where its truth is, and masters may be edited."""
        self._close()
        self._evict(set())
        self._lane.finish()

    def rest(self) -> None:
        """The call is over: pause, and begin with the first stage next time."""
        self.pause()
        self._target = None
        for part in self.parts:
            self._bring_home(part)

    def adopt(self, part: Part) -> None:
        """Take a component in: put its groups where they stay, follow its modules."""
        staying = self._residents(part)
        for group in part.groups:
            group.settle_on_device(self.device) if group in staying else group.settle_on_host(self.device)
        self._spare_hooks[part] = hook_spare(part, self.visit_spare)
        self._fit()

    def release(self, part: Part) -> None:
        """Let a component go: its hooks are gone, its weights its own again and on the host."""
        self.rest()
        for unit in part.units:
            for handle in self._hooks.pop(unit, []):
                handle.remove()
        for handle in self._spare_hooks.pop(part, []):
            handle.remove()
        for group in part.groups:
            group.release()

    # ------------------------------------------------------------------------------------------------
    # Weights change

    def refresh(self, part: Part) -> None:
        """Take over what was edited in a component since we last looked."""
        if any(held.is_replaced for group in part.groups for held in group.held):
            for group in part.groups:
                self._drop(group)
            part.collect()
        staying = self._residents(part)
        has_changed = False
        if any(group.is_edited for group in part.groups):
            self._lane.finish()  # masters are about to be written
        for group in part.groups:
            if group.is_edited:
                self._drop(group)
                group.settle_on_device(self.device) if group in staying else group.settle_on_host(self.device)
                has_changed = True
        if has_changed:
            self._fit()

    def make_room(self, part: Part, method: str) -> bool:
        """After out of memory in such a call: give its stage's weights less from now on; False if there is no less."""
        target = self._target_for(part, method)
        self._close()
        self._evict(set())
        if target.stage is None:
            return False
        held = held_bytes(self.units, target.stage)
        wanted = max(2 * self.overrun_bytes[target.stage], int(FIRST_CUT_FRACTION * held), 1)
        least = planned_bytes(self.plan, target.stage) - held + wanted
        self.overrun_bytes[target.stage] = max(wanted, least)
        self._fit()
        return held_bytes(self.units, target.stage) < held

    def _fit(self) -> None:
        """Keep fewer groups where they take more than the plan has for them."""
        for stage, overrun in enumerate(self.overrun_bytes):
            fit(self.units, stage, planned_bytes(self.plan, stage) - overrun)
        for part in self._spare_hooks:  # those taken in, and not let go since
            for group in part.groups:
                if group.master is None and group not in self._residents(part):
                    group.settle_on_host(self.device)
            for unit in part.units:
                if unit.num_resident < len(unit.groups) and unit not in self._hooks:
                    self._hooks[unit] = hook_groups(unit, self.visit)

    def _residents(self, part: Part) -> set[Group]:
        """Groups that never leave the device."""
        if part.is_excluded:
            return set(part.groups)
        return {group for unit in part.units for group in unit.groups[: unit.num_resident]}

    def _bring_home(self, part: Part) -> None:
        """What someone put on the device meanwhile gets its master on the host."""
        if any(held.is_replaced for group in part.groups for held in group.held):
            self.refresh(part)
        for group in part.groups:
            if group.master is not None and any(h.is_edited and not h.tensor.is_cpu for h in group.held):
                group.settle_on_host(self.device)

    # ------------------------------------------------------------------------------------------------
    # From stage to stage

    def _target_for(self, part: Part, method: str | None) -> Target:
        """Where to be for a call: here, in the next stage that knows it, or off the plan."""
        if self._target is not None and self._target.part is part and method is None:
            return self._target
        num_stages = len(self.plan.stages)
        here = self._target.stage if self._target is not None and self._target.stage is not None else -1
        order = [here, *(stage % num_stages for stage in range(here + 1, here + 1 + num_stages))]
        for stage in order:
            if stage >= 0 and self._knows(stage, part, method):
                return Target(stage)
        return Target(None, part)

    def _knows(self, stage: int, part: Part, method: str | None) -> bool:
        if method is not None:
            return call_name(part.name, method) in self.plan.stages[stage].calls
        return any(unit.placement.active[stage] for unit in part.units)

    def _step_in(self, part: Part) -> None:
        """A module starts without its component's having started, or in a stage that does not know it."""
        self.enter(part, None)
        if any(unit not in self._passages for unit in part.units):
            self._step_off(part)

    def _step_off(self, part: Part) -> None:
        self._go(Target(None, part))
        self.enter(part, None)

    def _go(self, target: Target) -> None:
        self._close()
        active = {unit.part for unit in self._active(target)} | ({target.part} if target.part else set())
        for part in active:
            self.refresh(part)
        wanted = self._wanted(target)
        self._evict({group for groups in wanted.values() for group in groups})
        self._target = target
        self.watch.stage(self.plan.stages[target.stage].name if target.stage is not None else _name(target))
        self._open(target, wanted)

    def _active(self, target: Target) -> list[Unit]:
        if target.stage is None:
            return target.part.units if target.part is not None else []
        stage = target.stage
        return [unit for unit in self.units if unit.placement.active[stage]]

    def _wanted(self, target: Target) -> dict[Unit | Part, list[Group]]:
        """The groups that a target keeps, by the unit that keeps them; what is off the plan needs the spare ones."""
        wanted: dict[Unit | Part, list[Group]] = {}
        active = self._active(target)
        for unit in self.units:
            kept, _ = _share(unit, target)
            groups = [group for group in unit.groups[:kept] if group.moves]
            wanted[unit] = groups if unit in active else [group for group in groups if group in self._copies]
        if target.part is not None:
            wanted[target.part] = [group for group in (target.part.root, target.part.spare) if group.moves]
        return wanted

    def _open(self, target: Target, wanted: dict[Unit | Part, list[Group]]) -> None:
        """Take memory for what is absent, then start the copies."""
        for unit, groups in wanted.items():
            for block in _blocks(unit, [group for group in groups if group not in self._copies]):
                self._copies.update(_take(block, self.device))
        self._passages = {unit: self._passage(unit, target) for unit in self._active(target)}
        self._lane.follow_compute()
        self._traffic = Traffic(self._lane, *self._itinerary(target), self._copies)

    def _passage(self, unit: Unit, target: Target) -> Passage:
        num_bytes = unit.ring_bytes(*_share(unit, target))
        return Passage(Ring(num_bytes, self.device) if num_bytes else None)

    def _itinerary(self, target: Target) -> tuple[list[tuple[Passage, Group]], int]:
        """One iteration as planned, and how many there are; off the plan, as in the first stage that is like it."""
        units = self.units
        if target.stage is not None:
            stage = self.plan.stages[target.stage]
            return [
                (self._passages[units[u]], units[u].groups[g]) for u, g in stage.visits
            ], stage.num_iterations
        like = (s for unit in self._passages for s, active in enumerate(unit.placement.active) if active)
        visits = self.plan.stages[next(like, 0)].visits
        mine = [(units[u], g) for u, g in visits if units[u] in self._passages]
        return [(self._passages[unit], unit.groups[g]) for unit, g in mine], 1

    def _close(self) -> None:
        """Let go of the slots, once the device has done with them."""
        if self._traffic is not None:
            self._traffic.close(self._passages.values())
            self._lane.precede_compute()
        self._traffic, self._passages = None, {}

    def _evict(self, wanted: set[Group]) -> None:
        """Free all copies but these; what was freed goes back to the device, so that others may have it."""
        gone = [group for group in self._copies if group not in wanted]
        for group in gone:
            self._drop(group)
        torch.accelerator.empty_cache()

    def _drop(self, group: Group) -> None:
        if self._copies.pop(group, None) is not None:
            group.go_home()


def _share(unit: Unit, target: Target) -> tuple[int, int]:
    """Groups kept and slots of a unit at a target."""
    if target.stage is not None:
        return unit.kept[target.stage], unit.num_slots[target.stage]
    if unit.part is not target.part:
        return unit.num_resident, 1
    running = [stage for stage, active in enumerate(unit.placement.active) if active]
    return min(unit.kept[s] for s in running), min(unit.num_slots[s] for s in running)


def _blocks(unit: Unit | Part, groups: list[Group]) -> Iterator[list[Group]]:
    """Groups that come and go together, so that their memory can be one piece."""
    if isinstance(unit, Part):
        yield from ([group] for group in groups)
        return
    borders = sorted({0, 1, len(unit.groups), *unit.kept})
    for start, stop in pairwise(borders):
        if block := [group for group in unit.groups[start:stop] if group in groups]:
            yield block


def _take(groups: list[Group], device: torch.device) -> dict[Group, Copy]:
    """One piece of device memory for these groups."""
    flat = torch.empty(sum(group.num_bytes for group in groups), dtype=torch.uint8, device=device)
    copies, start = {}, 0
    for group in groups:
        stop = start + group.num_bytes
        copies[group] = Copy(flat[start:stop], views(flat, start, group.spans))
        start = stop
    return copies


def _name(target: Target) -> str:
    return f"{target.part.name} (unplanned)" if target.part is not None else "unplanned"
