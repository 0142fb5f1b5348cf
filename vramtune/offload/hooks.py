"""How calls of components and modules are noticed: accelerate's hook on each component, forward hooks inside.

What is taken off is what is found to be ours, not what a list says: an interrupt may come between the two, and loaders
take hooks off themselves.
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from torch import nn

from vramtune.compiled import call_attribute
from vramtune.contract import METHODS, entries, is_half_unhooked, offload_hook
from vramtune.contract.refusals import PlanHook
from vramtune.errors import UsageError
from vramtune.offload.binding import BoundComponent, BoundPlacement
from vramtune.offload.casts import unhook_casts
from vramtune.offload.computed import unhook_computed
from vramtune.offload.groups import Group

if TYPE_CHECKING:
    from vramtune.offload.component_calls import ComponentCalls
    from vramtune.offload.conductor import Conductor


class ComponentHook(PlanHook):
    """The hook by which diffusers and accelerate see that a component is offloaded.

    A kind of `CpuOffload`, so that `enable_group_offload` refuses, `pipe.to("cuda")` warns and the LoRA loader
    takes it off and asks for it again. It never moves the module as a whole.
    """

    def __init__(self, component: BoundComponent, calls: "ComponentCalls") -> None:
        super().__init__(execution_device=calls.device)
        self.component, self.calls = component, calls

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Move nothing when the hook is added."""
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Start the component; others call this by hand, and more than once."""
        self.calls.start(self.component)
        return args, kwargs

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """Give the component its weights back, on the host, when someone takes the hook off."""
        self.calls.detach(self.component)
        return module


class CopyRefusal:
    """What `copy.deepcopy` and `pickle` find on a component: a copy's methods would be the original's."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: object) -> Any:
        """Raise a `UsageError`."""
        raise UsageError(
            f"Component {self._name!r} is under a plan and cannot be copied or pickled: its methods are taken over. Call "
            "remove() on what autotune or install returned first."
        )


def hook_component(component: BoundComponent, calls: "ComponentCalls") -> None:
    """Add accelerate's hook, and have `calls` run the component's methods and know of casts before and after."""
    module = component.module
    own_forward, forward = vars(module).get("forward"), module.forward
    add_hook_to_module(module, ComponentHook(component, calls))
    if call_attribute(module) != "forward":  # compiled in place, with all that is in there
        _restore(module, "forward", own_forward)
    for entry, (owner, method) in entries(module).items():
        if entry in METHODS or entry in component.entries:
            called = call_attribute(owner) if method == "forward" else method
            # not accelerate's own `forward`, which works only for as long as its hook is there
            original = forward if (owner, called) == (module, "forward") else getattr(owner, called)
            _replace(component, owner, called, _running(component, entry, original, calls))
    _replace(component, module, "to", _casting(component, module.to, calls))
    for method in ("__deepcopy__", "__reduce_ex__"):
        _replace(component, module, method, CopyRefusal(component.name))


def _replace(component: BoundComponent, owner: nn.Module, method: str, replacement: Callable[..., Any]) -> None:
    if owner is not component.module or method != "forward":  # which accelerate restores
        original, _ = component.own_methods.get((owner, method), (vars(owner).get(method), None))
        component.own_methods[owner, method] = original, replacement
    vars(owner)[method] = replacement


def is_hooked(component: BoundComponent) -> bool:
    """Whether our hook is on the component."""
    hook = offload_hook(component.module)
    return isinstance(hook, ComponentHook) and hook.component is component


def refuse_foreign_hook(component: BoundComponent) -> None:
    """Raise a `UsageError` if someone put another hook of accelerate's on the component while it was under the plan."""
    hook = offload_hook(component.module)
    if hook is not None and not is_hooked(component):
        raise UsageError(
            f"Component {component.name!r} was put under something else's offloading ({type(hook).__name__}) after the "
            "plan was installed, as by another pipeline that has it too. Call remove_all_hooks() there, and the plan is "
            "back at the next call; or remove() the plan."
        )


def unhook_component(component: BoundComponent) -> None:
    """Take accelerate's hook off, which detaches the component."""
    own = vars(component.module)
    if is_hooked(component) or is_half_unhooked(component.module):
        remove_hook_from_module(component.module)
    if getattr(own.get("forward"), "__func__", None) is type(component.module).forward:
        del own["forward"]  # accelerate leaves the class's own on the instance


def restore_methods(component: BoundComponent) -> None:
    """Give the module and its children their methods back, but for its own `forward`, which accelerate restores."""
    for (owner, method), (original, ours) in component.own_methods.items():
        if vars(owner).get(method) is ours:  # or it was compiled anew
            _restore(owner, method, original)
    component.own_methods.clear()


def _restore(owner: nn.Module, method: str, original: Any) -> None:
    if original is None:
        vars(owner).pop(method, None)
    else:
        vars(owner)[method] = original


def _running(
    component: BoundComponent, method: str, original: Callable[..., Any], calls: "ComponentCalls"
) -> Callable[..., Any]:
    @wraps(original)  # pipelines look at the signature
    def running(*args: Any, **kwargs: Any) -> Any:
        at_work = _at_work(component, calls)
        if at_work is None:
            return original(*args, **kwargs)
        component_now, calls_now = at_work
        return calls_now.run(component_now, method, original, args, kwargs)

    return running


def _at_work(component: BoundComponent, calls: "ComponentCalls") -> "tuple[BoundComponent, ComponentCalls] | None":
    """Who runs the methods of a component's module: someone may have kept one from a plan before, or from before a loader."""
    if component.is_at_work:
        return component, calls
    hook = offload_hook(component.module)
    return (hook.component, hook.calls) if isinstance(hook, ComponentHook) else None


def _casting(component: BoundComponent, original: Callable[..., Any], calls: "ComponentCalls") -> Callable[..., Any]:
    """The component's `to`, which casts only: where its weights are is the plan's.

    The IP-Adapter's loader sends the whole denoiser to where one of its weights is, maybe more than the device has room for.
    """

    @wraps(original)
    def casting(*args: Any, **kwargs: Any) -> Any:
        at_work = _at_work(component, calls)
        if at_work is None:
            return original(*args, **kwargs)
        component_now, calls_now = at_work
        asked: tuple[Any, ...] = torch._C._nn._parse_to(*args, **kwargs)
        _, dtype, _, memory_format = asked
        # by place, as pipelines cast: a component may have names of its own for them (StableUnCLIPImageNormalizer)
        by_place = () if dtype is None else (None, dtype)
        by_name = {} if memory_format is None else {"memory_format": memory_format}
        if by_place or by_name:
            calls_now.prepare_cast()
            original(*by_place, **by_name)
            calls_now.finish_cast(component_now)
        return component.module

    return casting


# ---------------------------------------------------------------------------------------------------
# Modules


class GroupHook:
    """A forward hook that has the conductor visit a group when one of its modules starts."""

    def __init__(self, conductor: "Conductor", placement: BoundPlacement, group: Group) -> None:
        self.component = placement.component
        self._conductor, self._placement, self._group = conductor, placement, group

    def __call__(self, *_: Any) -> None:
        """Tell the conductor."""
        self._conductor.visit(self._placement, self._group)

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return InCopy, ()


class UnplannedModuleHook:
    """A forward hook that tells the conductor of a module whose weights the plan does not use."""

    def __init__(self, conductor: "Conductor", component: BoundComponent) -> None:
        self.component, self._conductor = component, conductor

    def __call__(self, *_: Any) -> None:
        """Tell the conductor."""
        self._conductor.visit_unplanned(self.component)

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return InCopy, ()


Hook = GroupHook | UnplannedModuleHook


class UnitCall:
    """What a compiled module's call becomes: a hook runs before it, outside of what is compiled."""

    def __init__(self, original: Callable[..., Any], hook: Hook) -> None:
        self.original, self.hook = original, hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the hook, then the module."""
        self.hook()
        return self.original(*args, **kwargs)


class InCopy:
    """What becomes of such a hook where a module is copied: the copy's weights are its own."""

    def __call__(self, *_: Any) -> None:
        """Do nothing."""


def hook_groups(placement: BoundPlacement, conductor: "Conductor") -> None:
    """Have the conductor visit each group when one of its modules starts.

    Before other hooks, which may need the weights: `torch.nn.utils.weight_norm`, which audio decoders have, computes
    the weight in one.
    """
    component = placement.component
    for group in placement.groups[1:]:
        for module in component.modules_of(group.name):
            _notice(component, module, GroupHook(conductor, placement, group))


def hook_unplanned(component: BoundComponent, conductor: "Conductor") -> None:
    """Have the conductor know when a module starts whose weights the plan does not use."""
    for module in component.unplanned_modules():
        _notice(component, module, UnplannedModuleHook(conductor, component), prepend=False)


def _notice(component: BoundComponent, module: nn.Module, hook: Hook, *, prepend: bool = True) -> None:
    """Have a hook run when a module starts, or what is compiled around it."""
    unit = component.unit_of(module)
    if unit is None:
        component.hooked_modules.append(module)
        module.register_forward_pre_hook(hook, prepend=prepend)
    elif unit is not component.module:  # whose calls are noticed as they are
        attribute = call_attribute(unit)
        _replace(component, unit, attribute, UnitCall(getattr(unit, attribute), hook))


def unhook_modules(component: BoundComponent) -> None:
    """Take our hooks off the component's modules."""
    unhook_computed(component.module)
    unhook_casts(component.module)
    unhook_groups(component)


def unhook_groups(component: BoundComponent) -> None:
    """Take off those that tell the conductor of groups and of modules without one."""
    for module in component.hooked_modules:
        hooks = module._forward_pre_hooks
        ours = [key for key, hook in hooks.items() if isinstance(hook, GroupHook | UnplannedModuleHook)]
        for key in ours:
            if hooks[key].component is component:  # type: ignore[attr-defined]
                hooks.pop(key, None)
    component.hooked_modules.clear()
    for (unit, attribute), (original, ours) in list(component.own_methods.items()):
        if isinstance(ours, UnitCall):
            if vars(unit).get(attribute) is ours:
                _restore(unit, attribute, original)
            del component.own_methods[unit, attribute]
