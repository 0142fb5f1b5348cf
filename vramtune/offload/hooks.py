"""How the conductor hears of what runs: accelerate's hook on each component, forward hooks in its modules."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from accelerate.hooks import CpuOffload, add_hook_to_module, remove_hook_from_module
from torch import nn
from torch.utils.hooks import RemovableHandle

from vramtune.contract import METHODS
from vramtune.offload.binding import Part, Unit
from vramtune.offload.groups import Group


class ComponentHook(CpuOffload):  # type: ignore[misc]
    """What diffusers and accelerate know a component's offloading by.

    A subclass of `CpuOffload`, so that `enable_group_offload` refuses, `pipe.to("cuda")` warns and the LoRA loader
    takes it off and asks for it again. It never moves the module as a whole.
    """

    def __init__(
        self, device: torch.device, on_start: Callable[[], None], on_detach: Callable[[], None]
    ) -> None:
        super().__init__(execution_device=device)
        self._on_start, self._on_detach = on_start, on_detach

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Nothing moves when the hook is added."""
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The component starts; may be called by hand, and more than once."""
        self._on_start()
        return args, kwargs

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """Someone takes the hook off: the component gets its weights back, on the host."""
        self._on_detach()
        return module


def hook_component(
    part: Part,
    device: torch.device,
    *,
    run: Callable[[str, Callable[..., Any], Any, Any], Any],
    on_start: Callable[[], None],
    on_detach: Callable[[], None],
    on_cast: Callable[[], None],
) -> None:
    """Add accelerate's hook, and have `run(method, original, args, kwargs)` called for each of the methods.

    `on_cast` is called before the module's `to`.
    """
    add_hook_to_module(part.module, ComponentHook(device, on_start, on_detach))
    part.is_hooked = True
    own = vars(part.module)
    for method in METHODS:
        if callable(original := getattr(part.module, method, None)):
            if method != "forward":
                part.own_methods[method] = own.get(method)
            own[method] = _running(method, original, run)
    part.own_methods["to"] = own.get("to")
    own["to"] = _casting(part.module.to, on_cast)


def unhook_component(part: Part) -> None:
    """Take accelerate's hook off, which tells of it, and with it everything else."""
    if part.is_hooked:
        remove_hook_from_module(part.module)
    own = vars(part.module)
    if getattr(own.get("forward"), "__func__", None) is type(part.module).forward:
        del own["forward"]  # accelerate leaves the class's own on the instance


def restore_methods(part: Part) -> None:
    """Give the module its methods back, but for `forward`, which accelerate restores."""
    own = vars(part.module)
    for method, original in part.own_methods.items():
        del own[method]
        if original is not None:
            own[method] = original
    part.own_methods.clear()
    part.is_hooked = False


def _running(method: str, original: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)  # pipelines look at the signature
    def running(*args: Any, **kwargs: Any) -> Any:
        return run(method, original, args, kwargs)

    return running


def _casting(original: Callable[..., Any], on_cast: Callable[[], None]) -> Callable[..., Any]:
    @wraps(original)
    def casting(*args: Any, **kwargs: Any) -> Any:
        on_cast()
        return original(*args, **kwargs)

    return casting


def hook_groups(unit: Unit, visit: Callable[[Unit, Group], None]) -> list[RemovableHandle]:
    """Tell of every module of the unit's groups that starts, before other hooks that may need its weights.

    `torch.nn.utils.weight_norm`, which audio decoders have, computes the weight in such a hook.
    """
    return [
        module.register_forward_pre_hook(lambda *_, group=group: visit(unit, group), prepend=True)
        for group, planned in zip(unit.groups[1:], unit.placement.groups[1:], strict=True)
        for module in unit.part.planned(planned)
    ]


def hook_spare(part: Part, visit: Callable[[Part], None]) -> list[RemovableHandle]:
    """Tell of every module with weights that the plan found unused."""
    return [module.register_forward_pre_hook(lambda *_: visit(part)) for module in part.spare_modules()]
