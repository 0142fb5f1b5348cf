"""A plan bound to a pipeline: its components and weight groups as modules and tensors, and how many are kept.

Fewer are kept than planned where weights grew or activations were larger than predicted (`offload/fit.py`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn

from vramtune.compiled import Structure, modules_by_path, unit_around, units_of
from vramtune.contract import excluded_components, modules_of
from vramtune.contract.refusals import refuse_incoming, refuse_unmovable
from vramtune.errors import UsageError
from vramtune.layout import kept_bytes, ring_bytes, taken_bytes
from vramtune.offload.computed import ComputedWeight, hook_computed
from vramtune.offload.differences import differences
from vramtune.offload.groups import Group, HeldTensor, collect, collect_own
from vramtune.offload.joined import Paths, in_units, join
from vramtune.plain_tensors import plain_tensors
from vramtune.schema import GroupChange, Placement, Plan, WeightGroup

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

    @classmethod
    def of(cls, planned: Placement, component: "BoundComponent", groups: list[Group]) -> Self:
        """A placement with as many groups and slots as are planned."""
        return cls(planned, component, groups, list(planned.kept), [planned.num_slots] * len(planned.kept))

    @property
    def num_resident(self) -> int:
        """Number of groups that stay on the device between calls."""
        return min(self.kept)

    def locks(self, group: Group) -> bool:
        """Whether a group's master is to be page-locked; what the plan does not know is not."""
        return group in self.groups and self.planned.is_locked(self.groups.index(group))

    def give_up_resident(self) -> None:
        """Let the last of the groups that stay between calls be absent while nothing of the component runs.

        A component that runs in every stage keeps it in none.
        """
        most = self.num_resident - 1
        idle = [stage for stage, active in enumerate(self.planned.active) if not active]
        for stage in idle or range(len(self.kept)):
            self.kept[stage] = min(self.kept[stage], most)

    def keep_what_is_there(self) -> None:
        """Count no more groups in a stage that does not use them than the stage before it left."""
        there = self.num_resident
        for stage, active in enumerate(self.planned.active):
            if not active:
                self.kept[stage] = min(self.kept[stage], there)
            there = self.kept[stage]

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
    planned: dict[str, WeightGroup] = field(default_factory=dict)
    """Its groups by name, the root first, as the plan that was installed has them; later plans lack those that are empty."""
    inner: dict[str, Group] = field(default_factory=dict)
    """The same but for the root, as they are."""
    placements: list[BoundPlacement] = field(default_factory=list)
    is_at_work: bool = False
    """Whether all of it was put in, and nothing taken off since by us."""
    is_collected: bool = False
    """Whether the groups hold the tensors that the modules had when we last looked."""
    num_edits: int = 0
    """How often we found that someone had made a weight point elsewhere, or exchanged one."""
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Modules by path, as they were when the tensors were collected."""
    structure: Structure | None = None
    """What they were parts of then."""
    unused: frozenset[str] | None = None
    """Paths of the modules that were there when the plan was installed, and that it does not use; None: nobody knows, and
    nothing joins a group."""
    home: torch.device | None = None
    """Where what came in since is left when the plan is removed: where the rest was. Loaders ask where the pipeline is, and
    may be told the device."""
    paths: Paths = field(default_factory=dict)
    """Of the modules that are planned, by group."""
    joined: Paths = field(default_factory=dict)
    """What came in since, by the group that it joined."""
    entries: frozenset[str] = frozenset()
    """What the plan's stages call of it: names of methods and children."""
    computed: list[ComputedWeight] = field(default_factory=list)
    hooked_modules: list[nn.Module] = field(default_factory=list)
    """Modules that have a hook of ours, or were about to get one."""
    own_methods: dict[tuple[nn.Module, str], tuple[Any, Any]] = field(default_factory=dict)
    """What the module and those in it had on the instance, and what is there now: methods, calls of what is compiled."""
    units: dict[str, nn.Module] = field(default_factory=dict)
    """What was compiled when the tensors were collected, by path: hooks are around it, not inside."""

    @property
    def is_vacant(self) -> bool:
        """Whether the pipeline has no such component any more."""
        return not any(group.held for group in self.groups)

    @property
    def came_in(self) -> bool:
        """Whether the pipeline had no such component when the plan was installed."""
        return self.unused is None

    @property
    def is_rebuilt(self) -> bool:
        """Whether modules inside were exchanged, put in, taken out or compiled since the tensors were collected."""
        is_hidden = any(
            vars(owner).get(attribute) is not ours for (owner, attribute), (_, ours) in self.own_methods.items()
        )
        return is_hidden or self.structure is None or self.structure.has_changed

    @property
    def groups(self) -> list[Group]:
        """All groups, each once."""
        return [self.root, *self.inner.values(), self.unplanned]

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
        self.modules, self.structure, self.joined = modules_by_path(self.module), Structure(self.module), {}
        # as the plan is installed it is first looked at as if nothing was compiled since it was made
        self.units = {} if self.unused is None and self.placements else units_of(self.module)
        self.paths = self._paths()
        taken: dict[torch.Tensor, HeldTensor] = {}
        found: dict[Group, list[HeldTensor]] = {}
        for name, group in self.inner.items():
            found[group] = collect(self.modules_of(name), taken)
        found[self.root] = [held for module in self.modules_of(self.root.name) for held in collect_own(module, taken)]
        if self.unused is not None and self.placements:
            self._collect_joined(found, taken, self.unused)  # not as the plan is installed
        found[self.unplanned] = collect([self.module], taken)
        _take_over(taken.values(), before, self.home)
        for group, held in found.items():
            group.held, group.is_settled = held, False
            group.update_layout()
        self.computed = hook_computed(self.module, self.computed)
        self.is_collected = True

    def _collect_joined(
        self, found: dict[Group, list[HeldTensor]], taken: dict[torch.Tensor, HeldTensor], unused: frozenset[str]
    ) -> None:
        """Collect what came in since the plan was installed into the groups that it joins."""
        new = [path for path, module in self.modules.items() if path not in unused and _has_more(module, taken)]
        planned = {path: group for group, paths in self.paths.items() for path in paths}
        self.joined = join(new, self.modules, planned, unused, self.root.name)
        for group in found:
            modules = [self.modules[path] for path in self.joined.get(group.name, ())]
            more = [collect_own(m, taken) for m in modules] if group is self.root else [collect(modules, taken)]
            found[group] += [held for each in more for held in each]

    def _paths(self) -> Paths:
        planned = {n: tuple(p for p in group.modules if p in self.modules) for n, group in self.planned.items()}
        return in_units(planned, self.modules, self.units, self.unused or (), self.root.name)

    def held_by_tensor(self) -> dict[torch.Tensor, HeldTensor]:
        """What is held, by tensor."""
        return {held.tensor: held for group in self.groups for held in group.held}

    def modules_of(self, group: str) -> list[nn.Module]:
        """The modules of a planned group that are still there, and those that joined it."""
        paths = (*self.paths.get(group, ()), *self.joined.get(group, ()))
        return [self.modules[path] for path in paths]

    def unit_of(self, module: nn.Module) -> nn.Module | None:
        """What is compiled around a module, or the module itself if it is; None if nothing is."""
        if not self.units:
            return None
        path = next(path for path, each in self.modules.items() if each is module)
        unit = unit_around(path, self.units)
        return None if unit is None else self.units[unit]

    def follow(self, plan: Plan) -> None:
        """Bind the groups as they are to another plan, which was made for what they are now."""
        self.placements = [
            BoundPlacement.of(planned, self, [self.root, *(self.inner[group.name] for group in planned.groups[1:])])
            for planned in plan.placements
            if planned.component == self.name
        ]
        for group in self.groups:
            group.is_locked = not self.placements or any(placement.locks(group) for placement in self.placements)

    def num_bytes(self, group: str) -> int:
        """What a planned group has now."""
        return self.inner[group].num_bytes if group in self.inner else self.root.num_bytes

    def unused_paths(self) -> frozenset[str]:
        """The paths of the modules whose own weights the plan does not use."""
        unplanned = set(self.unplanned_modules())
        return frozenset(path for path, module in self.modules.items() if module in unplanned)

    def unplanned_modules(self) -> list[nn.Module]:
        """The modules whose own weights the plan does not use."""
        unplanned = {held.weight for held in self.unplanned.held}
        return [m for m in self.module.modules() if unplanned & {*m._parameters.values(), *m._buffers.values()}]


def _has_more(module: nn.Module, taken: Mapping[torch.Tensor, HeldTensor]) -> bool:
    """Whether a module has weights of its own that no group has taken."""
    weights = (weight for weight in (*module._parameters.values(), *module._buffers.values()) if weight is not None)
    return any(plain.tensor not in taken for weight in weights for plain in plain_tensors(weight, module))


def _take_over(
    all_held: Iterable[HeldTensor], before: Mapping[torch.Tensor, HeldTensor], home: torch.device | None
) -> None:
    """Take over what was known of tensors that were held earlier; others were made from weights that we had moved."""
    usual = next((known.device_before for known in before.values()), home)
    for held in all_held:
        known = before.get(held.tensor)
        if known is not None:
            held.device_before, held.address, held.version = known.device_before, known.address, known.version
        elif usual is not None:
            held.device_before = usual


class Binding:
    """A pipeline's components bound to a plan; the only list of them."""

    def __init__(self, pipe: Any, plan: Plan) -> None:
        self.plan, self._pipe = plan, pipe
        self._planned: dict[str, dict[str, WeightGroup]] = {}
        for placement in plan.placements:
            self._planned.setdefault(placement.component, {}).update({g.name: g for g in placement.groups})
        self._unused: dict[str, frozenset[str]] = {}
        self._home: torch.device | None = None
        self.components = self._bind(modules_of(pipe), plan.placements)
        _refuse_shared(self.components)
        self._unused = {component.name: component.unused_paths() for component in self.components}
        for component in self.components:
            component.unused = self._unused[component.name]
        self._home = next((held.device_before for c in self.components for g in c.groups for held in g.held), None)
        self._first_bytes = {(c.name, group): c.num_bytes(group) for c in self.components for group in c.planned}
        for component in self.components:
            if units_of(component.module):
                component.collect()

    @property
    def placements(self) -> list[BoundPlacement]:
        """The placements in the plan's order, by which its visits count."""
        by_name = {p.planned.name: p for component in self.components for p in component.placements}
        return [by_name[planned.name] for planned in self.plan.placements]

    def changes(self) -> tuple[GroupChange, ...]:
        """By what the groups differ from what they were when the plan was installed."""
        return tuple(self._changes())

    def _changes(self) -> Iterator[GroupChange]:
        for component in self.components:
            if component.came_in and (more_bytes := component.unplanned.num_bytes):
                group = component.unplanned.name
                yield GroupChange(component=component.name, group=group, more_bytes=more_bytes, modules=())
            for name, planned in component.planned.items():
                joined = component.joined.get(name, ())
                more_bytes = component.num_bytes(name) - self._first_bytes[component.name, name]
                if joined or more_bytes:
                    modules = (*planned.modules, *joined)
                    yield GroupChange(component=component.name, group=name, more_bytes=more_bytes, modules=modules)

    def follow(self, plan: Plan) -> None:
        """Bind the components as they are to another plan, which was made for what they are now."""
        self.plan = plan
        for component in self.components:
            component.follow(plan)

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
                    yield old, self._vacant(old.name)
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
            _take_over(new.held_by_tensor().values(), old.held_by_tensor(), self._home)
        self.components[self.components.index(old)] = new

    def _bind(self, modules: Mapping[str, nn.Module], planned: Iterable[Placement]) -> list[BoundComponent]:
        """Components bound to their placements; a `UsageError` says what differs if those are for others."""
        for name, module in modules.items():
            refuse_unmovable(name, module)
        if found := list(differences(modules, planned)):
            more = len(found) - MOST_DIFFERENCES
            listed = "; ".join(found[:MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
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
        component = self._vacant(name)
        component.module, component.is_excluded = module, is_excluded
        component.unused, component.home = self._unused.get(name), self._home
        component.collect()
        return component

    def _vacant(self, name: str) -> BoundComponent:
        """A component that the pipeline does not have any more: placements without tensors."""
        called = (call.partition(".") for stage in self.plan.stages for call in stage.calls)
        entries = frozenset(entry for owner, _, entry in called if owner == name)
        component = BoundComponent(name, nn.Module(), is_excluded=False, entries=entries)
        component.planned = self._planned.get(name, {})
        component.root.name = next(iter(component.planned), component.root.name)
        component.inner = {group: Group(group, []) for group in component.planned if group != component.root.name}
        component.follow(self.plan)
        return component


def _overlap(module: nn.Module, old: nn.Module) -> bool:
    """Whether these are two modules with one inside both."""
    return module is not old and not set(module.modules()).isdisjoint(old.modules())


def _refuse_shared(components: list[BoundComponent]) -> None:
    names: dict[torch.Tensor, str] = {}
    for component in components:
        for tensor in (held.tensor for group in component.groups for held in group.held):
            if names.setdefault(tensor, component.name) != component.name:
                raise UsageError(
                    f"Components {names[tensor]!r} and {component.name!r} share a weight; vramtune needs each to have "
                    "its own. Copy the weight in one of them."
                )
