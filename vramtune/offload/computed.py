"""Weights that hooks compute from parameters when their module starts, as `torch.nn.utils.weight_norm` does.

Each is a plain attribute, which nobody frees: it would stay on the device until its module runs again. It is let go as
soon as the module ends, as the profiler assumes (`vramtune.profiler.fake_copy`).
"""

from collections.abc import Iterable

import torch
from torch import nn

from vramtune.contract import computed_names


class ComputedWeight:
    """A forward hook that lets go of such a weight."""

    def __init__(self, module: nn.Module, name: str) -> None:
        weight = vars(module)[name]
        self.module, self.name, self.device_before = module, name, weight.device
        self.before = weight.to("cpu")
        """What it was before the plan, on the host; the next call of the module computes it again."""

    def __call__(self, *_: object) -> None:
        """Let go of it."""
        vars(self.module)[self.name] = self.before

    def go_home(self) -> None:
        """Put back what it was, where it was."""
        vars(self.module)[self.name] = self.before.to(self.device_before)


@torch.inference_mode(False)
def hook_computed(component: nn.Module, known: Iterable[ComputedWeight]) -> list[ComputedWeight]:
    """Have every such weight of a component let go; those that are known already stay."""
    by_place = {(computed.module, computed.name): computed for computed in known}
    found = []
    for module in component.modules():
        for name in computed_names(module):
            computed = by_place.get((module, name)) or ComputedWeight(module, name)
            found.append(computed)
            if computed not in module._forward_hooks.values():
                module.register_forward_hook(computed)
    return found


def unhook_computed(component: nn.Module) -> None:
    """Take these hooks off."""
    for module in component.modules():
        for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, ComputedWeight)]:
            module._forward_hooks.pop(key, None)
