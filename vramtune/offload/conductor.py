"""Moves a pipeline from stage to stage: evicts first, then takes memory, then copies as the stage runs.

A component that starts takes the pipeline to the next stage in which it runs, whatever the order is. What a plan
does not know (another method, weights that it found unused) is loaded whole for as long as it runs.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from vramtune.mapped_files import MappedFiles
from vramtune.offload.binding import Binding, BoundComponent, BoundPlacement
from vramtune.offload.casts import hook_casts
from vramtune.offload.groups import Group, edited
from vramtune.offload.hooks import hook_groups, hook_unplanned, unhook_groups, unhook_modules
from vramtune.offload.inputs import Brought
from vramtune.offload.memory_limit import let_go_of_workspaces
from vramtune.offload.meter import Meter
from vramtune.offload.pieces import gaps_filled, make_arenas, pieces
from vramtune.offload.position import Position, active_placements, counts, itinerary, kept_groups, next_position
from vramtune.offload.settling import put_on, take_off
from vramtune.offload.shares import Shares
from vramtune.offload.stack import is_running
from vramtune.offload.stream import Copy, Lane, Passage, Ring, Traffic, allocate
from vramtune.schema import Plan
from vramtune.tables import Recipe, Tables

logger = logging.getLogger(__name__)


class Conductor:
    """Owns what is on the device besides the resident groups."""

    def __init__(self, binding: Binding, device: torch.device, meter: Meter) -> None:
        self.binding, self.device = binding, device
        self._shares = Shares(binding, device)
        self.on_locked: Callable[[int], object] = lambda num_bytes: None
        """Told of the bytes of each group that was page-locked."""
        self.is_watched = True
        """Whether someone may edit weights between two calls of components, as callbacks do: no copy is in flight then."""
        self._meter, self._lane = meter, Lane(device, meter, self.plan.staging_slot_bytes)
        fixed_bytes = self.plan.estimate.stages[0].fixed_bytes
        self.workspace_bytes = max(fixed_bytes - (meter.context_bytes or 0), 0)  # a context may be another than planned
        self._position: Position | None = None
        self._traffic: Traffic | None = None
        self._passages: dict[BoundPlacement, Passage] = {}
        self._copies: dict[Group, Copy] = {}
        self._adopted: set[BoundComponent] = set()
        """Components that were adopted and not released since."""
        self._recipes: dict[Position, tuple[Recipe, ...]] = {}
        """Of the tables that a position's last stage made."""
        self._is_clean = True
        """Whether the last call ended as calls do."""

    # ------------------------------------------------------------------------------------------------
    # Called as the pipeline runs

    @property
    def plan(self) -> Plan:
        """The plan that is followed."""
        return self.binding.plan

    @property
    def overrun_bytes(self) -> list[int]:
        """Bytes that each stage's weights have less than planned, as out-of-memory errors taught."""
        return self._shares.overrun_bytes

    @property
    def inputs(self) -> dict[BoundComponent, list[Brought]]:
        """What of the last inputs of each component is known again, until the stage ends."""
        return {} if self._traffic is None else self._traffic.inputs

    @property
    def tables(self) -> Tables:
        """Tables that layers make on the device, until the stage ends."""
        return Tables() if self._traffic is None else self._traffic.tables

    def run(
        self,
        call: Callable[[], Any],
        *,
        is_whole: bool = True,
        limit: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> Any:
        """Run a call; at its end, however it comes, all but the resident groups are freed, unless it is not a whole one.

        What an interrupt left half done in an earlier call is made up for first; then `limit` is entered. A call within
        another is part of it.
        """
        if is_running(_RUN, self=self):
            return call()
        self._meter.discard()
        if not self._is_clean:
            self.recover()
        self._is_clean = False
        try:
            with limit():
                result = call()
        finally:
            self.is_watched = True
            if is_whole:
                self.end_call()
        self._is_clean = True
        return result

    def enter(self, component: BoundComponent, method: str | None) -> None:
        """Go to where a component's method runs (None: any of them), and have its root on the device."""
        position = next_position(self.plan, self._position, component, method)
        is_changed = any(g.is_written or g.is_edited or g.is_replaced for g in component.groups)
        if position != self._position or self._traffic is None or is_changed:
            self._move_to(position)
        if is_changed:
            for group in component.groups:
                group.note_writes()
        assert self._traffic is not None
        for group in (component.root, component.unplanned):
            if (copy := self._copies.get(group)) is not None:
                self._traffic.arrive(group, copy)

    def leave(self, component: BoundComponent) -> None:
        """End a component's method, whether it succeeded or failed."""
        if self._traffic is not None:
            for placement in component.placements:
                if (passage := self._passages.get(placement)) is not None:
                    self._traffic.leave(passage)
        if self.is_watched:
            self._lane.finish()

    def visit(self, placement: BoundPlacement, group: Group) -> None:
        """Have a group on the device before one of its modules starts."""
        passage = self._passages.get(placement)
        if passage is None:
            self._enter_by_module(placement.component)
            passage = self._passages[placement]
        if passage.current is not group:
            assert self._traffic is not None
            self._traffic.enter(passage, group)

    def visit_unplanned(self, component: BoundComponent) -> None:
        """Have the unplanned weights on the device before one of their modules starts."""
        if component.unplanned.moves and component.unplanned not in self._copies:
            self._leave_plan(component)

    def pause(self) -> None:
        """Free all but the resident groups; every parameter is on its master then, which may be edited."""
        self._close()
        self._evict(set())
        for component in self.binding.components:
            for group in component.groups:
                group.use_master()
            for computed in component.computed:
                computed()
        self._lane.finish()

    def end_call(self) -> None:
        """Pause, and begin with the first stage next time."""
        self.pause()
        self._position = None
        for component in self._adopted:
            self._settle_edits(component)

    def end(self) -> None:
        """Give back what the copies needed on the host."""
        self._lane.end()

    def recover(self) -> None:
        """Make up for what an interrupt, anywhere in here, left half done."""
        self.end_call()
        self._refit()

    def adopt(self, component: BoundComponent) -> None:
        """Take a component in: follow its modules, put its groups where they stay."""
        hook_unplanned(component, self)
        hook_casts(component.module)
        self._adopted.add(component)
        self._refit()
        logger.debug("component %s adopted", component.name)

    def follow(self, plan: Plan) -> None:
        """Go over to another plan between two calls, which was made for the components as they are now.

        Only groups that stay in the one and not in the other are moved.
        """
        self.end_call()
        if plan is not self.plan:
            self._shares.start_over(plan)
            self._recipes.clear()  # of other stages
        self.binding.follow(plan)
        for component in self._adopted:
            unhook_groups(component)
            hook_unplanned(component, self)
        self._refit()

    def release(self, component: BoundComponent) -> None:
        """Let a component go: its modules are followed no more, its weights are its own again and on the host."""
        self.end_call()
        unhook_modules(component)
        for placement in component.placements:
            placement.is_hooked = False
        if component in self._adopted:
            self._adopted.discard(component)
            logger.debug("component %s released", component.name)
        for group in component.groups:
            group.release()

    # ------------------------------------------------------------------------------------------------
    # Weights that change, memory that does not suffice

    def make_room(self, component: BoundComponent, method: str, asked_bytes: int | None) -> bool:
        """Give the weights less in the stage of a call that asked for bytes in vain; False if they can take no less."""
        return self._make_room(next_position(self.plan, self._position, component, method).stage, asked_bytes)

    def make_room_here(self, asked_bytes: int | None) -> bool:
        """Give the weights less where the pipeline is, one of whose own lines ran out of memory; False if they cannot."""
        stage = None if self._position is None else self._position.stage
        return self._make_room(stage, asked_bytes) or self.make_way()

    def make_way(self) -> bool:
        """Let half of the resident groups give way to what no plan knows; False if they can take no less."""
        before = self._shares.resident_bytes()
        self._shares.halve_residents()
        self.pause()
        self._refit()
        return self._shares.resident_bytes() < before

    def _make_room(self, stage: int | None, asked_bytes: int | None) -> bool:
        """Let the weights of a stage give up what was asked for, the resident ones off the plan; workspaces go first."""
        self._close()
        self._evict(set())
        if let_go_of_workspaces(self.device, self.workspace_bytes):
            return True
        if stage is None:
            return self.make_way()
        before = self._shares.held_bytes(stage)
        self._shares.give_up(stage, asked_bytes)
        self._refit()
        return self._shares.held_bytes(stage) < before

    def take_back(self, peak_bytes: Mapping[str, int], limit_bytes: int) -> None:
        """Follow the whole plan again, once, where the last call's peaks by stage leave room for it."""
        if self._shares.take_back(peak_bytes, limit_bytes, self._meter.others_bytes):
            self.follow(self.plan)

    def refresh(self, component: BoundComponent) -> None:
        """Take over what was edited in a component since we last looked."""
        if not component.is_collected or any(group.is_replaced for group in component.groups):
            component.num_edits += 1
            for group in component.groups:
                self._drop(group)
            component.collect()
        for group in component.groups:
            if group.is_written:
                self._drop(group)
                group.note_writes()
        edited_groups = [group for group in component.groups if group.is_edited]
        if edited_groups:
            component.num_edits += 1
            hook_casts(component.module)  # one that began to cast its weights has edited them
            self._lane.finish()  # masters are about to be written
            for group in edited_groups:
                self._drop(group)
                group.is_settled = False
            put_on(component, take_off(component, self.device, self.on_locked), self.device)
            self._refit()

    def _settle_edits(self, component: BoundComponent) -> None:
        """Give what someone put on the device during the call its master on the host."""
        if any(group.is_replaced for group in component.groups):
            self.refresh(component)
        for group in component.groups:
            if group.master_views and any(not h.tensor.is_cpu for h in edited(group.held)):
                component.num_edits += 1
                group.settle_on_host(self.device)

    def _refit(self) -> None:
        """Keep fewer groups where they take more than their share, and have each where it stays."""
        self._shares.fit(self._adopted)
        staying = {  # all make room before any takes it
            component: take_off(component, self.device, self.on_locked) for component in self._adopted
        }
        for component, groups in staying.items():
            put_on(component, groups, self.device)
            for placement in component.placements:
                if placement.num_resident < len(placement.groups) and not placement.is_hooked:
                    hook_groups(placement, self)
                    placement.is_hooked = True
        if any(group.is_in_place and group.moves for each in self.binding.placements for group in each.groups):
            self._lane.begin_staging()

    # ------------------------------------------------------------------------------------------------
    # From stage to stage

    def _enter_by_module(self, component: BoundComponent) -> None:
        """Enter a component one of whose modules started by itself, or in a stage that does not know it."""
        self.enter(component, None)
        if any(placement not in self._passages for placement in component.placements):
            self._leave_plan(component)

    def _leave_plan(self, component: BoundComponent) -> None:
        self._move_to(Position(None, component))
        self.enter(component, None)

    def _move_to(self, position: Position) -> None:
        self._close()
        components = {placement.component for placement in active_placements(self.binding, position)}
        for component in components | ({position.component} if position.component else set()):
            self.refresh(component)
        kept = kept_groups(self.binding, position, self._copies)
        self._evict({group for groups in kept.values() for group in groups})
        self._position = position
        name = position.name(self.plan)
        logger.debug("stage %s begins", name)
        self._meter.begin_stage(name)
        self._open(position, kept)

    def _open(self, position: Position, kept: dict[BoundPlacement | BoundComponent, list[Group]]) -> None:
        """Take memory for what is absent, then start the copies."""
        with gaps_filled(self.device):  # what cuBLAS's workspace leaves of its segment is planned for activations
            for keeper, groups in kept.items():
                for sharing in pieces(keeper, [group for group in groups if group not in self._copies]):
                    self._copies.update(allocate(sharing, self.device))
            self._passages = {
                placement: self._passage(placement, position) for placement in active_placements(self.binding, position)
            }
            if position.stage is not None:
                make_arenas(self.plan.stages[position.stage].arenas, self.device)
        self._lane.follow_compute()
        tables = Tables(self._recipes.get(position, ()))  # now, or they would wait behind the copies of weights
        visits, num_iterations = itinerary(self.binding, position)
        stops = [(self._passages[placement], group) for placement, group in visits]
        self._traffic = Traffic(self._lane, stops, num_iterations, self._copies, tables)

    def _passage(self, placement: BoundPlacement, position: Position) -> Passage:
        num_bytes = placement.ring_bytes(*counts(placement, position))
        return Passage(Ring(num_bytes, self.device) if num_bytes else None)

    def _close(self) -> None:
        """Let go of the slots, once the device has done with them."""
        if self._traffic is not None:
            self._traffic.close(self._passages.values())
            if self._position is not None and (recipes := self._traffic.tables.recipes):
                self._recipes[self._position] = recipes
        self._lane.precede_compute()
        self.let_go_of_files(self._passages)
        self._traffic, self._passages = None, {}

    def let_go_of_files(self, placements: Iterable[BoundPlacement]) -> None:
        """Take what was read of files out of the process: an encoder's, after its stage."""
        groups = (group for placement in placements for group in placement.groups if group.is_in_place)
        if views := [view for group in groups for view in group.master_views]:
            MappedFiles().let_go(views)

    def _evict(self, kept: set[Group]) -> None:
        """Free all copies but these, and give what was freed back to the device, so that others may have it."""
        evicted = [group for group in self._copies if group not in kept]
        for group in evicted:
            self._drop(group)
        torch.accelerator.empty_cache()
        if evicted and logger.isEnabledFor(logging.DEBUG):
            num_bytes = sum(group.num_bytes for group in evicted)
            logger.debug("evicted %d bytes (%d groups)", num_bytes, len(evicted))

    def _drop(self, group: Group) -> None:
        group.use_master()
        self._copies.pop(group, None)


_RUN = Conductor.run.__code__
