"""How calls of components and modules are noticed: accelerate's hook on each component, forward hooks inside."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from accelerate.hooks import CpuOffload, add_hook_to_module, remove_hook_from_module
from torch import nn
from torch.utils.hooks import RemovableHandle

from vramtune.contract import METHODS, entries
from vramtune.offload.binding import BoundComponent, BoundPlacement

if TYPE_CHECKING:
    from vramtune.offload.component_calls import ComponentCalls
    from vramtune.offload.conductor import Conductor


class ComponentHook(CpuOffload):  # type: ignore[misc]
    """The hook by which diffusers and accelerate see that a component is offloaded.

    A subclass of `CpuOffload`, so that `enable_group_offload` refuses, `pipe.to("cuda")` warns and the LoRA loader
    takes it off and asks for it again. It never moves the module as a whole.
    """

    def __init__(self, component: BoundComponent, calls: "ComponentCalls") -> None:
        super().__init__(execution_device=calls.device)
        self._component, self._calls = component, calls

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Move nothing when the hook is added."""
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Start the component; others call this by hand, and more than once."""
        self._calls.start(self._component)
        return args, kwargs

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """Give the component its weights back, on the host, when someone takes the hook off."""
        self._calls.detach(self._component)
        return module


def hook_component(component: BoundComponent, calls: "ComponentCalls") -> None:
    """Add accelerate's hook, and have `calls` run the component's methods and know of casts before they happen."""
    module = component.module
    add_hook_to_module(module, ComponentHook(component, calls))
    component.is_hooked = True
    for entry, (owner, method) in entries(module).items():
        if entry in METHODS or entry in component.entries:
            _replace(component, owner, method, _running(component, entry, getattr(owner, method), calls))
    _replace(component, module, "to", _casting(module.to, calls))


def _replace(component: BoundComponent, owner: nn.Module, method: str, replacement: Callable[..., Any]) -> None:
    if owner is not component.module or method != "forward":  # which accelerate restores
        component.own_methods[owner, method] = vars(owner).get(method)
    vars(owner)[method] = replacement


def unhook_component(component: BoundComponent) -> None:
    """Take accelerate's hook off, which detaches the component."""
    if component.is_hooked:
        remove_hook_from_module(component.module)
    own = vars(component.module)
    if getattr(own.get("forward"), "__func__", None) is type(component.module).forward:
        del own["forward"]  # accelerate leaves the class's own on the instance


def restore_methods(component: BoundComponent) -> None:
    """Give the module and its children their methods back, but for its own `forward`, which accelerate restores."""
    for (owner, method), original in component.own_methods.items():
        del vars(owner)[method]
        if original is not None:
            vars(owner)[method] = original
    component.own_methods.clear()
    component.is_hooked = False


def _running(
    component: BoundComponent, method: str, original: Callable[..., Any], calls: "ComponentCalls"
) -> Callable[..., Any]:
    @wraps(original)  # pipelines look at the signature
    def running(*args: Any, **kwargs: Any) -> Any:
        return calls.run(component, method, original, args, kwargs)

    return running


def _casting(original: Callable[..., Any], calls: "ComponentCalls") -> Callable[..., Any]:
    @wraps(original)
    def casting(*args: Any, **kwargs: Any) -> Any:
        calls.prepare_cast()
        return original(*args, **kwargs)

    return casting


def hook_groups(placement: BoundPlacement, conductor: "Conductor") -> list[RemovableHandle]:
    """Have the conductor visit each group when one of its modules starts.

    Before other hooks, which may need the weights: `torch.nn.utils.weight_norm`, which audio decoders have, computes
    the weight in one.
    """
    return [
        module.register_forward_pre_hook(lambda *_, group=group: conductor.visit(placement, group), prepend=True)
        for group, planned in zip(placement.groups[1:], placement.planned.groups[1:], strict=True)
        for module in placement.component.modules_of(planned)
    ]


def hook_unplanned(component: BoundComponent, conductor: "Conductor") -> list[RemovableHandle]:
    """Have the conductor know when a module starts whose weights the plan does not use."""
    return [
        module.register_forward_pre_hook(lambda *_: conductor.visit_unplanned(component))
        for module in component.unplanned_modules()
    ]
