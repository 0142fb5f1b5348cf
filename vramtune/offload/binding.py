"""A plan bound to a pipeline: its components and weight groups as modules and tensors, and how many are kept.

Fewer are kept than planned where weights grew or activations were larger than predicted (`fit`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vramtune.contract import excluded_components, may_upcast, modules_of, refuse_incoming, refuse_unmovable
from vramtune.errors import UsageError
from vramtune.layout import kept_bytes, ring_bytes, taken_bytes
from vramtune.offload.computed import ComputedWeight, hook_computed
from vramtune.offload.groups import Group, HeldTensor, collect, collect_own, lay_out
from vramtune.schema import Placement, Plan, WeightGroup
from vramtune.units import format_bytes

MOST_DIFFERENCES = 5
"""Differences listed of a plan that does not fit the pipeline."""


@dataclass(slots=True, eq=False)
class BoundPlacement:
    """A placement of the plan with its groups in the pipeline."""

    planned: Placement
    component: "BoundComponent"
    groups: list[Group]
    """Groups in keep order; the first is the component's root."""
    kept: list[int]
    """Number of groups kept in each stage: as planned, or fewer where memory did not suffice."""
    num_slots: list[int]
    """Number of slots in each stage, likewise."""
    is_hooked: bool = False
    """Whether the modules of its groups have hooks, so that some of them may be absent."""

    @property
    def num_resident(self) -> int:
        """Number of groups that stay on the device between calls."""
        return min(self.kept)

    def give_up_resident(self) -> None:
        """Let the last of the groups that stay between calls be absent while nothing of the component runs.

        A component that runs in every stage keeps it in none.
        """
        most = self.num_resident - 1
        idle = [stage for stage, active in enumerate(self.planned.active) if not active]
        for stage in idle or range(len(self.kept)):
            self.kept[stage] = min(self.kept[stage], most)

    def ring_bytes(self, kept: int, num_slots: int) -> int:
        """Bytes of the slots when so many groups are kept while the component runs."""
        absent = [group.num_bytes for group in self.groups[kept:]]
        return ring_bytes(num_slots, largest_absent_bytes=max(absent, default=0), absent_bytes=sum(absent))

    def held_bytes(self, stage: int) -> int:
        """Bytes on the device in a stage: kept groups and slots."""
        return self.bytes_with(stage, self.kept[stage], self.num_slots[stage])

    def bytes_with(self, stage: int, kept: int, num_slots: int) -> int:
        """Bytes on the device in a stage if so many groups and slots were kept."""
        slots = self.ring_bytes(kept, num_slots) if self.planned.active[stage] else 0
        sizes = tuple(group.num_bytes for group in self.groups)
        if not self.planned.takes_segments:
            return sum(sizes[:kept]) + slots
        row = (*self.kept[:stage], kept, *self.kept[stage + 1 :])
        return kept_bytes(sizes, row, is_root_apart=bool(self.planned.methods))[stage] + taken_bytes(slots)


@dataclass(slots=True, eq=False)
class BoundComponent:
    """A component of the pipeline with its placements."""

    name: str
    module: nn.Module
    is_excluded: bool
    """Whether all of it stays on the device: the pipeline's `_exclude_from_cpu_offload`."""
    root: Group = field(default_factory=lambda: Group("root", []))
    unplanned: Group = field(default_factory=lambda: Group("unplanned", []))
    """Weights that the plan does not use."""
    placements: list[BoundPlacement] = field(default_factory=list)
    is_at_work: bool = False
    """Whether all of it was put in, and nothing taken off since by us."""
    is_collected: bool = False
    """Whether the groups hold the tensors that the modules had when we last looked."""
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Modules by path, as they were when the tensors were collected."""
    entries: frozenset[str] = frozenset()
    """What the plan's stages call of it: names of methods and children."""
    computed: list[ComputedWeight] = field(default_factory=list)
    hooked_modules: list[nn.Module] = field(default_factory=list)
    """Modules that have a hook of ours, or were about to get one."""
    own_methods: dict[tuple[nn.Module, str], Any] = field(default_factory=dict)
    """Methods that the module and its children had on the instance, where hooks are now."""

    @property
    def is_vacant(self) -> bool:
        """Whether the pipeline has no such component any more."""
        return not any(group.held for group in self.groups)

    @property
    def is_rebuilt(self) -> bool:
        """Whether modules inside were exchanged, put in or taken out since the tensors were collected."""
        return list(self.modules.values()) != list(self.module.modules())

    @property
    def groups(self) -> list[Group]:
        """All groups, each once."""
        inner = (group for placement in self.placements for group in placement.groups[1:])
        return [self.root, *inner, self.unplanned]

    @property
    def keepers(self) -> "list[BoundPlacement | BoundComponent]":
        """What keeps groups on the device: the placements, and for what they do not know the component itself."""
        return [*self.placements, self]

    @property
    def resident_groups(self) -> set[Group]:
        """Groups that never leave the device."""
        if self.is_excluded:
            return set(self.groups)
        return {group for placement in self.placements for group in placement.groups[: placement.num_resident]}

    def collect(self) -> None:
        """Collect the tensors of every group from the modules as they are now."""
        self.is_collected = False
        before = self.held_by_tensor()
        self.modules = dict(self.module.named_modules())
        taken: dict[torch.Tensor, HeldTensor] = {}
        found: dict[Group, list[HeldTensor]] = {}
        for placement in self.placements:
            for group, planned in zip(placement.groups[1:], placement.planned.groups[1:], strict=True):
                found[group] = collect(self.modules_of(planned), taken)
        roots = dict.fromkeys(m for p in self.placements for m in self.modules_of(p.planned.groups[0]))
        found[self.root] = [held for module in roots for held in collect_own(module, taken)]
        found[self.unplanned] = collect([self.module], taken)
        _take_over(taken.values(), before)
        for group, held in found.items():
            group.held, group.is_settled = held, False
            group.update_layout()
        self.computed = hook_computed(self.module, self.computed)
        self.is_collected = True

    def held_by_tensor(self) -> dict[torch.Tensor, HeldTensor]:
        """What is held, by tensor."""
        return {held.tensor: held for group in self.groups for held in group.held}

    def modules_of(self, group: WeightGroup) -> list[nn.Module]:
        """The modules of a planned group that are still there; what came in their place counts as unplanned."""
        return [self.modules[path] for path in group.modules if path in self.modules]

    def unplanned_modules(self) -> list[nn.Module]:
        """The modules whose own weights the plan does not use."""
        unplanned = {held.weight for held in self.unplanned.held}
        return [m for m in self.module.modules() if unplanned & {*m._parameters.values(), *m._buffers.values()}]


def _take_over(all_held: Iterable[HeldTensor], before: Mapping[torch.Tensor, HeldTensor]) -> None:
    """Take over what was known of tensors that were held earlier."""
    usual = next((known.device_before for known in before.values()), None)
    for held in all_held:
        known = before.get(held.tensor)
        if known is not None:
            held.device_before, held.address, held.version = known.device_before, known.address, known.version
        elif usual is not None:
            held.device_before = usual  # a new tensor, made from weights that we had moved


class Binding:
    """A pipeline's components bound to a plan; the only list of them."""

    def __init__(self, pipe: Any, plan: Plan) -> None:
        self.plan, self._pipe = plan, pipe
        self.components = self._bind(modules_of(pipe), plan.placements)
        _refuse_shared(self.components)

    @property
    def placements(self) -> list[BoundPlacement]:
        """The placements in the plan's order, by which its visits count."""
        by_name = {p.planned.name: p for component in self.components for p in component.placements}
        return [by_name[planned.name] for planned in self.plan.placements]

    def exchanges(self) -> Iterator[tuple[BoundComponent | None, BoundComponent]]:
        """Yield each component to be exchanged (None: there was none) with what the pipeline has in its place now.

        The caller puts each one in with `replace` before it asks for the next.
        """
        present = modules_of(self._pipe)
        known = {component.module for component in self.components}
        for name, incoming in present.items():
            if incoming not in known:
                refuse_incoming(name, incoming, known)
        for old in list(self.components):
            module = present.get(old.name)
            others = [component for component in self.components if component is not old]
            # Gone, another one's second name, or partly the old one (which it wraps, say), to be let go of before: below.
            if module is None or module in {other.module for other in others} or _overlap(module, old.module):
                if not old.is_vacant:
                    yield old, _vacant(old.name, self.plan)
            elif module is not old.module:
                new = self._bind_component(old.name, module, old.is_excluded)
                _refuse_shared([*others, new])
                yield old, new
        for old in [c for c in self.components if c.is_rebuilt and not c.is_vacant]:
            yield old, self.bind_again(old)
        for name, module in present.items():
            if module not in {component.module for component in self.components}:
                vacant = next((c for c in self.components if c.name == name), None)
                new = self._bind_component(name, module, name in excluded_components(self._pipe))
                _refuse_shared([*(component for component in self.components if component is not vacant), new])
                yield vacant, new

    def bind_again(self, component: BoundComponent) -> BoundComponent:
        """The same component with its modules as they are now."""
        return self._bind_component(component.name, component.module, component.is_excluded)

    def replace(self, old: BoundComponent | None, new: BoundComponent) -> None:
        """Put a component in the place of an old one, or at the end."""
        if old is None:
            self.components.append(new)
            return
        if new.module is old.module:
            _take_over(new.held_by_tensor().values(), old.held_by_tensor())
        self.components[self.components.index(old)] = new

    def _bind(self, modules: Mapping[str, nn.Module], planned: Iterable[Placement]) -> list[BoundComponent]:
        """Components bound to their placements; a `UsageError` says what differs if those are for others."""
        for name, module in modules.items():
            refuse_unmovable(name, module)
        if differences := list(_differences(modules, planned)):
            more = len(differences) - MOST_DIFFERENCES
            listed = "; ".join(differences[:MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
            raise UsageError(
                f"This plan for a {self.plan.pipeline_class} does not fit the pipeline: {listed}. Make a plan for "
                "this one."
            )
        excluded = excluded_components(self._pipe)
        names: dict[nn.Module, str] = {}
        for name, module in modules.items():
            names.setdefault(module, name)  # two names may stand for one module
        return [self._bind_component(name, module, name in excluded) for module, name in names.items()]

    def _bind_component(self, name: str, module: nn.Module, is_excluded: bool) -> BoundComponent:
        component = _vacant(name, self.plan)
        component.module, component.is_excluded = module, is_excluded
        component.collect()
        return component


def _overlap(module: nn.Module, old: nn.Module) -> bool:
    """Whether these are two modules with one inside both."""
    return module is not old and not set(module.modules()).isdisjoint(old.modules())


def _vacant(name: str, plan: Plan) -> BoundComponent:
    """A component that the pipeline does not have any more: placements without tensors."""
    called = (call.partition(".") for stage in plan.stages for call in stage.calls)
    entries = frozenset(entry for owner, _, entry in called if owner == name)
    component = BoundComponent(name, nn.Module(), is_excluded=False, entries=entries)
    for planned in plan.placements:
        if planned.component == name:
            groups = [component.root, *(Group(group.name, []) for group in planned.groups[1:])]
            kept, slots = list(planned.kept), [planned.num_slots] * len(planned.kept)
            component.placements.append(BoundPlacement(planned, component, groups, kept, slots))
    return component


# ---------------------------------------------------------------------------------------------------
# Does the plan fit the pipeline?


def _refuse_shared(components: list[BoundComponent]) -> None:
    names: dict[torch.Tensor, str] = {}
    for component in components:
        for tensor in (held.tensor for group in component.groups for held in group.held):
            if names.setdefault(tensor, component.name) != component.name:
                raise UsageError(
                    f"Components {names[tensor]!r} and {component.name!r} share a weight; vramtune needs each to have "
                    "its own. Copy the weight in one of them."
                )


def _differences(components: Mapping[str, nn.Module], placements: Iterable[Placement]) -> Iterable[str]:
    for planned in placements:
        component = components.get(planned.component)
        if component is None:
            yield f"the pipeline has no component {planned.component!r}"
            continue
        modules = dict(component.named_modules())
        for group in planned.groups:
            yield from _group_differences(planned.component, group, modules, group is planned.groups[0])


def _group_differences(
    component: str, group: WeightGroup, modules: Mapping[str, nn.Module], is_root: bool
) -> Iterable[str]:
    missing = [path for path in group.modules if path not in modules]
    if missing:
        yield f"{component} has no module {missing[0]!r}"
        return
    taken: dict[torch.Tensor, HeldTensor] = {}
    outer = [modules[path] for path in group.modules]
    held = [h for m in outer for h in collect_own(m, taken)] if is_root else collect(outer, taken)
    tensors = [each.value for each in held]
    num_bytes = lay_out(tensors)[1]
    # A pipeline may cast a component up before it uses it (SDXL its VAE), and is planned so.
    upcast_bytes = lay_out(t.to("meta").float() if t.is_floating_point() else t for t in tensors)[1]
    may_be = {num_bytes, upcast_bytes} if may_upcast(modules[""]) else {num_bytes}
    if group.weight_bytes not in may_be:
        yield (
            f"{component}'s group {group.name!r} has {format_bytes(num_bytes)} where the plan has "
            f"{format_bytes(group.weight_bytes)}"
        )


# ---------------------------------------------------------------------------------------------------
# Do the weights fit the plan's share of memory?


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
    before = held = held_bytes(placements, stage)
    while held > allowed_bytes:
        order = sorted(placements, key=lambda placement: _rank(placement, stage))
        if not any(_give_way(placement, stage, held - allowed_bytes) for placement in order):
            break
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
