"""Does a plan fit a pipeline? By what it does not: modules that are missing, groups of other sizes."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from vramtune.compiled import modules_by_path
from vramtune.contract import may_upcast
from vramtune.offload.groups import HeldTensor, collect, collect_own, lay_out
from vramtune.schema import Placement, WeightGroup
from vramtune.units import format_bytes


def differences(components: Mapping[str, nn.Module], placements: Iterable[Placement]) -> Iterable[str]:
    """What the placements have that these components have not, or not so, in words."""
    for planned in placements:
        component = components.get(planned.component)
        if component is None:
            yield f"the pipeline has no component {planned.component!r}"
            continue
        modules = modules_by_path(component)
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
