"""What `torch.compile` was put on. A compiled module is a unit: it is called whole, and nothing of ours runs inside.

Known of PyTorch: `module.compile()` keeps what calls the module in `_compiled_call_impl` (`torch/nn/modules/module.py`);
`torch.compile(module)` wraps it, as `_orig_mod`, in an `OptimizedModule` with a `forward` of its own
(`torch/_dynamo/eval_frame.py`).
"""

from collections.abc import Collection

from torch import nn

COMPILED_CALL = "_compiled_call_impl"
"""Attribute of a module compiled in place: what calls it."""
WRAPPED = "_orig_mod"
"""Name under which a wrapper has the module that was compiled."""


def uncompiled(module: nn.Module) -> nn.Module:
    """What a wrapper wraps; of any other module, itself."""
    return module._modules[WRAPPED] if is_wrapper_of_compiled(module) else module  # type: ignore[return-value]


def is_wrapper_of_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` returned it."""
    return WRAPPED in module._modules and type(module).__name__ == "OptimizedModule"


def modules_by_path(component: nn.Module) -> dict[str, nn.Module]:
    """A component's modules by path, as they would be if nothing was compiled."""
    return {_plain(path): m for path, m in component.named_modules() if not is_wrapper_of_compiled(m)}


def units_of(component: nn.Module) -> dict[str, nn.Module]:
    """The outermost compiled modules, or their wrappers, by path; "" where that is the component."""
    units: dict[str, nn.Module] = {}
    for path, module in component.named_modules():
        is_compiled = is_wrapper_of_compiled(module) or vars(module).get(COMPILED_CALL) is not None
        if is_compiled and unit_around(_plain(path), units) is None:
            units[_plain(path)] = module
    return units


class Structure:
    """Which modules a component consisted of and which were compiled: asked in each call whether they still are."""

    def __init__(self, component: nn.Module) -> None:
        self._children = [(module, dict(module._modules)) for module in component.modules()]
        self._compiled = self._compiled_in_place()

    @property
    def has_changed(self) -> bool:
        """Whether modules were exchanged, put in, taken out, wrapped or compiled since."""
        has_other_modules = any(module._modules != children for module, children in self._children)
        return has_other_modules or self._compiled != self._compiled_in_place()

    def _compiled_in_place(self) -> list[nn.Module]:
        return [module for module, _ in self._children if vars(module).get(COMPILED_CALL) is not None]


def unit_around(path: str, units: Collection[str]) -> str | None:
    """The unit that a module is or is in; None if it is in none."""
    while path and path not in units:
        path = path.rpartition(".")[0]
    return path if path in units else None


def call_attribute(unit: nn.Module) -> str:
    """The attribute of the instance that is called when a module is: what is put there runs outside of what is compiled."""
    is_in_place = not is_wrapper_of_compiled(unit) and vars(unit).get(COMPILED_CALL) is not None
    return COMPILED_CALL if is_in_place else "forward"


def _plain(path: str) -> str:
    return ".".join(name for name in path.split(".") if name != WRAPPED)
