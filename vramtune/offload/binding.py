"""A plan's components and groups, found again in a pipeline: what the conductor moves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vramtune.contract import may_upcast, refuse_unmovable
from vramtune.errors import UsageError
from vramtune.layout import ring_bytes
from vramtune.offload.groups import Group, Held, collect, collect_own, lay_out
from vramtune.schema import Placement, Plan, WeightGroup
from vramtune.units import format_bytes

MOST_DIFFERENCES = 5
"""Shown of a plan that does not fit."""


@dataclass(slots=True, eq=False)
class Unit:
    """A placement at run time."""

    placement: Placement
    part: "Part"
    groups: list[Group]
    """In keep order; the first is the component's root."""
    kept: list[int]
    """By stage: as planned, or fewer where memory did not last."""
    num_slots: list[int]
    """By stage likewise."""

    @property
    def num_resident(self) -> int:
        """Groups that stay on the device between calls."""
        return min(self.kept)

    def ring_bytes(self, kept: int, num_slots: int) -> int:
        """Of the slots, when so many groups are kept while it runs."""
        absent = [group.num_bytes for group in self.groups[kept:]]
        return ring_bytes(num_slots, largest_absent_bytes=max(absent, default=0), absent_bytes=sum(absent))

    def held_bytes(self, stage: int, kept: int, num_slots: int) -> int:
        """What it takes on the device in a stage."""
        slots = self.ring_bytes(kept, num_slots) if self.placement.active[stage] else 0
        return sum(group.num_bytes for group in self.groups[:kept]) + slots


@dataclass(slots=True, eq=False)
class Part:
    """A component at run time."""

    name: str
    module: nn.Module
    is_excluded: bool
    """Whether all of it stays on the device: the pipeline's `_exclude_from_cpu_offload`."""
    root: Group = field(default_factory=lambda: Group("root", []))
    spare: Group = field(default_factory=lambda: Group("spare", []))
    """What the plan does not use."""
    units: list[Unit] = field(default_factory=list)
    is_hooked: bool = False
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """By path, as they were when the tensors were found."""
    own_methods: dict[str, Any] = field(default_factory=dict)
    """What the module had of its own, on the instance, where hooks are now."""

    @property
    def is_vacant(self) -> bool:
        """Whether the pipeline has no such component any more."""
        return not any(group.held for group in self.groups)

    @property
    def is_rebuilt(self) -> bool:
        """Whether modules inside were exchanged, put in or taken out since."""
        return list(self.modules.values()) != list(self.module.modules())

    @property
    def groups(self) -> list[Group]:
        """All of them, each once."""
        return [self.root, *(group for unit in self.units for group in unit.groups[1:]), self.spare]

    def collect(self) -> None:
        """Find the tensors of every group in the modules as they are now."""
        before = self.devices_before()
        self.modules = dict(self.module.named_modules())
        taken: dict[torch.Tensor, Held] = {}
        for unit in self.units:
            for group, planned in zip(unit.groups[1:], unit.placement.groups[1:], strict=True):
                group.held = collect(self.planned(planned), taken)
        roots = dict.fromkeys(m for unit in self.units for m in self.planned(unit.placement.groups[0]))
        self.root.held = [held for module in roots for held in collect_own(module, taken)]
        self.spare.held = collect([self.module], taken)
        self.restore_devices_before(before)
        for group in self.groups:
            group.measure()

    def devices_before(self) -> dict[torch.Tensor, torch.device]:
        """Where each tensor was when it was first held."""
        return {held.tensor: held.device_before for group in self.groups for held in group.held}

    def restore_devices_before(self, before: Mapping[torch.Tensor, torch.device]) -> None:
        """Take that over from tensors held earlier."""
        usual = next(iter(before.values()), None)  # of what was put in since: made from weights we had moved
        for held in (held for group in self.groups for held in group.held):
            held.device_before = before.get(held.tensor, usual or held.device_before)

    def planned(self, group: WeightGroup) -> list[nn.Module]:
        """The modules of a group that are still there; what came instead of one is used like what is unplanned."""
        return [self.modules[path] for path in group.modules if path in self.modules]

    def spare_modules(self) -> list[nn.Module]:
        """The modules whose own weights the plan does not use."""
        spare = {held.tensor for held in self.spare.held}
        return [m for m in self.module.modules() if spare & {*m._parameters.values(), *m._buffers.values()}]


def bind(components: Mapping[str, nn.Module], plan: Plan, *, excluded: Iterable[str]) -> list[Part]:
    """The pipeline's components as parts; `UsageError` says what differs if the plan is for others."""
    for name, module in components.items():
        refuse_unmovable(name, module)
    differences = list(_differences(components, plan))
    if differences:
        more = len(differences) - MOST_DIFFERENCES
        listed = "; ".join(differences[:MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise UsageError(
            f"This plan for a {plan.pipeline_class} does not fit the pipeline: {listed}. Make a plan for this one."
        )
    parts: dict[nn.Module, Part] = {}
    for name, module in components.items():
        if module not in parts:  # two names may stand for one module
            parts[module] = bind_part(name, module, plan, is_excluded=name in set(excluded))
    _refuse_shared(list(parts.values()))
    return list(parts.values())


def bind_part(name: str, module: nn.Module, plan: Plan, *, is_excluded: bool) -> Part:
    """One component with its placements."""
    part = vacant_part(name, plan)
    part.module, part.is_excluded = module, is_excluded
    part.collect()
    return part


def vacant_part(name: str, plan: Plan) -> Part:
    """Placements whose component the pipeline no longer has: nothing of them is anywhere."""
    part = Part(name, nn.Module(), is_excluded=False)
    for placement in plan.placements:
        if placement.component == name:
            groups = [part.root, *(Group(group.name, []) for group in placement.groups[1:])]
            kept, slots = list(placement.kept), [placement.num_slots] * len(placement.kept)
            part.units.append(Unit(placement, part, groups, kept, slots))
    return part


def _refuse_shared(parts: list[Part]) -> None:
    names: dict[torch.Tensor, str] = {}
    for part in parts:
        for tensor in (held.tensor for group in part.groups for held in group.held):
            if names.setdefault(tensor, part.name) != part.name:
                raise UsageError(
                    f"Components {names[tensor]!r} and {part.name!r} share a weight; each must have its own."
                )


# ---------------------------------------------------------------------------------------------------
# Does the plan fit?


def _differences(components: Mapping[str, nn.Module], plan: Plan) -> Iterable[str]:
    for placement in plan.placements:
        module = components.get(placement.component)
        if module is None:
            yield f"it has no component {placement.component!r}"
            continue
        modules = dict(module.named_modules())
        for group in placement.groups:
            yield from _group_differences(placement.component, group, modules, group is placement.groups[0])


def _group_differences(
    component: str, group: WeightGroup, modules: Mapping[str, nn.Module], is_root: bool
) -> Iterable[str]:
    missing = [path for path in group.modules if path not in modules]
    if missing:
        yield f"{component} has no module {missing[0]!r}"
        return
    taken: dict[torch.Tensor, Held] = {}
    inside = [
        part for path in group.modules for part in ([modules[path]] if is_root else modules[path].modules())
    ]
    tensors = [held.tensor for part in inside for held in collect_own(part, taken)]
    found = lay_out(tensors)[1]
    # A pipeline may cast a component up before it uses it (SDXL its VAE), and is planned so.
    upcast = lay_out(t.to("meta").float() if t.is_floating_point() else t for t in tensors)[1]
    if group.weight_bytes != found and not (may_upcast(modules[""]) and group.weight_bytes == upcast):
        yield (
            f"{component}'s group {group.name!r} has {format_bytes(found)} where the plan has "
            f"{format_bytes(group.weight_bytes)}"
        )
