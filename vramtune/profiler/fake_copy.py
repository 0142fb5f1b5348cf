"""A copy of a pipeline whose structure is its own and whose weights are fakes: what a call is followed on.

Whatever the call caches, casts, counts or exchanges happens to the copy and goes with it. A list of things to put back
could never be complete: a rotary embedding is a plain object that keeps tensors, a pipeline may have pipelines in it.
"""

import copy
import functools
import gc
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from vramtune.compiled import COMPILED_CALL, is_wrapper_of_compiled, uncompiled
from vramtune.contract import (
    Pipeline,
    compute_each_step,
    computed_names,
    drop_offload_hook,
    is_cast_by_layers,
    store_in_float8,
)
from vramtune.contract.tracing import pipelines_in, quieten, shared_by_copies
from vramtune.plain_tensors import is_wrapper, own_tables, plain_tensors, rebuilt
from vramtune.profiler.fakes import fake_like, fake_view
from vramtune.profiler.quantized_layers import add_state, compute_as_on_gpu, has_state

logger = logging.getLogger(__name__)

Memo = dict[int, Any]
"""`copy.deepcopy`'s: what stands for an object in the copy, by `id`."""
Convert = Callable[[torch.Tensor], torch.Tensor]
ATOMIC = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size)
CONTAINERS = (dict, OrderedDict, list, set)


def fake_copy(pipe: Pipeline, mode: FakeTensorMode) -> Pipeline:
    """The pipeline again, with fake weights on the CPU, no offload hooks, no step caches and no progress bar.

    Weights that were tied are; an attribute that cannot be copied (a lock, an open file) is shared, and said so in a
    log line.
    """
    pipelines = list(pipelines_in(pipe))
    found = _modules_of_all(pipelines)
    modules = [module for module in found if not is_wrapper_of_compiled(module)]
    owners: list[Any] = [*pipelines, *modules]
    memo: Memo = {id(owner): object.__new__(type(owner)) for owner in owners}
    memo |= {id(module): memo[id(uncompiled(module))] for module in found}  # the copy is not compiled
    for module in modules:
        for name in computed_names(module):
            memo[id(vars(module)[name])] = fake_like(vars(module)[name], mode)
        for weight in _weights(module):
            if id(weight) not in memo:
                _add_fakes(weight, module, mode, memo)
    for shared in shared_by_copies(pipe):
        memo[id(shared)] = shared
    with _CopiedToHost():
        for owner in owners:
            memo[id(owner)].__dict__.update(_copied_attributes(owner, memo))
    for module in modules:
        twin = memo[id(module)]
        drop_offload_hook(twin)
        compute_each_step(twin)
        _let_computed_go(twin)
        for weight in _weights(twin):
            own_tables(weight, lambda table: fake_like(table, mode))
        compute_as_on_gpu(twin)
        is_cast = is_cast_by_layers(twin)
        twin.__dict__["_apply"] = functools.partial(_apply_to_fakes, twin, _converted if is_cast else _converted_unseen)
        if is_cast:
            _follow_casts(twin)
    for nested in pipelines:
        quieten(memo[id(nested)])
    copied: Pipeline = memo[id(pipe)]
    return copied


class _CopiedToHost(TorchFunctionMode):
    """While entered, copies of tensors are on the host, where the fake weights are: a scheduler that was made under
    `torch.set_default_device` has its tables on the GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and args[0].device.type not in ("cpu", "meta"):
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().cpu())
        return func(*args, **(kwargs or {}))


def _modules_of_all(pipelines: list[Pipeline]) -> list[nn.Module]:
    values = [value for pipe in pipelines for value in vars(pipe).values()]
    return list({module for value in values if isinstance(value, nn.Module) for module in value.modules()})


def _weights(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from (w for w in (*module._parameters.values(), *module._buffers.values()) if w is not None)


def _add_fakes(weight: torch.Tensor, module: nn.Module, mode: FakeTensorMode, memo: Memo) -> None:
    """Make fakes of the plain tensors that a weight consists of, and one of the weight with the attributes that it has."""
    for plain in plain_tensors(weight, module):
        fake = memo[id(plain.tensor)] = fake_like(plain.tensor, mode)
        for follower in plain.followers:
            if not is_wrapper(follower):
                memo[id(follower)] = fake_view(fake, fake.dtype, fake.shape, fake.stride(), 0, mode)
    memo[id(weight)] = rebuilt(weight, lambda tensor: memo[id(tensor)])
    if has_state(weight):
        add_state(memo[id(weight)], type(weight), _copied_attributes(weight, memo))


def _follow_casts(module: nn.Module) -> None:
    """Have a layer that casts its weights as it begins do so within its trace, and let go of them as it ends."""
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def begin(*_: object) -> None:
        before[:] = [(m._parameters, dict(m._parameters)) for m in module.modules()]
        before.extend((m._buffers, dict(m._buffers)) for m in module.modules())

    def end(*_: object) -> None:
        for tensors, weights in before:
            tensors.update(weights)

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end, always_call=True)


@contextmanager
def stored_in_float8(component: nn.Module) -> Iterator[None]:
    """While entered, a component of a copy has its weights in float8, and layers that cast them."""
    before = {module: _structure(module) for module in component.modules()}
    try:
        store_in_float8(component)
        for layer in component.modules():
            if is_cast_by_layers(layer):
                vars(layer)["_apply"] = functools.partial(_apply_to_fakes, layer, _converted)
                _follow_casts(layer)
        yield
    finally:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)


def _structure(module: nn.Module) -> dict[str, Any]:
    """A module's attributes, and copies of the dictionaries among them: its weights and hooks."""
    return {name: value.copy() if type(value) in CONTAINERS else value for name, value in vars(module).items()}


def _let_computed_go(module: nn.Module) -> None:
    """Let go of what hooks compute when the module starts as soon as it ends, as the runtime does."""
    before = {name: vars(module)[name] for name in computed_names(module)}
    if before:
        module.register_forward_hook(lambda module, *_: module.__dict__.update(before))


def _copied_attributes(owner: object, memo: Memo) -> dict[str, Any]:
    attributes = {}
    for name, value in vars(owner).items():
        if name == COMPILED_CALL:
            continue
        try:
            attributes[name] = _copied(value, memo)
        except (TypeError, RuntimeError, NotImplementedError, AttributeError) as error:  # what copies and pickles raise
            logger.warning("%s.%s is not copied but shared: %s", type(owner).__name__, name, error)
            attributes[name] = value
    return attributes


def _copied(value: Any, memo: Memo) -> Any:
    if isinstance(value, ATOMIC):
        return value
    if type(value) in CONTAINERS and not value:  # a module has a dozen, which `copy.deepcopy` takes apart each
        return memo.setdefault(id(value), type(value)())
    for function in _functions_in(value):
        memo.setdefault(id(function), _copied_function(function, memo))
    return copy.deepcopy(value, memo)


def _functions_in(value: Any) -> list[FunctionType]:
    """Functions that remember something: methods exchanged on an instance, hooks."""
    values = value.values() if isinstance(value, dict) else (getattr(value, "func", value),)  # `functools.partial`
    return [item for item in values if isinstance(item, FunctionType) and item.__closure__]


def _copied_function(function: FunctionType, memo: Memo) -> FunctionType:
    """The function again, remembering the copies of what it remembers: `copy.deepcopy` shares functions."""
    twin = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(CellType() for _ in function.__closure__ or ()),
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    memo[id(function)] = twin  # first: it may remember itself
    for cell, copied in zip(function.__closure__ or (), twin.__closure__ or (), strict=True):
        copied.cell_contents = _copied(cell.cell_contents, memo)
    vars(twin).update(_copied_attributes(function, memo))
    return twin


def _apply_to_fakes(
    module: nn.Module,
    converted_by: Callable[[torch.Tensor, Convert], torch.Tensor],
    convert: Convert,
    recurse: bool = True,
) -> nn.Module:
    """Stands for `nn.Module._apply` (`.to`, `.float`, ...), whose own swap of tensors refuses fakes."""
    converted: dict[torch.Tensor, torch.Tensor] = {}
    for owner in module.modules() if recurse else [module]:
        for tensors in (owner._parameters, owner._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in converted:
                    converted[tensor] = converted_by(tensor, convert)
                tensors[name] = converted[tensor]  # type: ignore[assignment]
    return module


def _converted(fake: torch.Tensor, convert: Convert) -> torch.Tensor:
    new = convert(fake)
    if new is fake or not isinstance(fake, nn.Parameter):
        return new
    return nn.Parameter(new, requires_grad=False)


def _converted_unseen(fake: torch.Tensor, convert: Convert) -> torch.Tensor:
    with _disable_current_modes():  # weights do not count as the pipeline's own memory
        return _converted(fake, convert)


@contextmanager
def cached_fakes_forgotten() -> Iterator[None]:
    """At the end, empty every `lru_cache` of the process that has kept a fake tensor: rotary embeddings use them.

    They belong to functions and classes, which copies of instances share.
    """
    try:
        yield
    finally:
        for cache in _caches():
            if cache.cache_info().currsize and _reaches_a_fake(cache):
                cache.cache_clear()


def _caches() -> list[Any]:
    """Every `lru_cache`; of those that `gc.freeze()` hides from the collector, what a module or a class holds."""
    items: list[Any] = gc.get_objects()
    if gc.get_freeze_count():
        modules = [module for module in list(sys.modules.values()) if issubclass(type(module), ModuleType)]
        named = [value for module in modules for value in list(vars(module).values())]
        # by type: isinstance asks an object's __class__, which wakes proxies
        classes = {id(value): value for value in named if issubclass(type(value), type)}.values()
        items += named + [value for each in classes for value in list(vars(each).values())]
    return [item for item in items if type(item) is functools._lru_cache_wrapper]


def _reaches_a_fake(cache: Any) -> bool:
    """Whether a cached result is a fake tensor, or a container of some."""
    held = [item for item in gc.get_referents(cache) if isinstance(item, FakeTensor | dict | list | tuple)]
    inside = gc.get_referents(*(item for item in held if not isinstance(item, FakeTensor)))
    containers = [item for item in inside if isinstance(item, dict | list | tuple)]
    return any(isinstance(item, FakeTensor) for item in (*held, *inside, *gc.get_referents(*containers)))
