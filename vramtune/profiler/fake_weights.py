"""A pipeline made fit to run on fake tensors, for a time, and put back exactly as it was."""

import copy
import functools
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from vramtune.contract import drop_offload_hook, modules_of, quieten

_PLAIN_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)
_EMPTY_CELL = CellType()


@contextmanager
def on_fake_weights(pipe: DiffusionPipeline, mode: FakeTensorMode) -> Iterator[None]:
    """Give the pipeline fake weights on the CPU and no offload hooks; afterwards all is as it was.

    Whatever the call does to modules meanwhile (dtypes, caches, tiling switches), to schedulers, to the pipeline's
    own attributes and to the global random state is undone, also after Ctrl-C.
    """
    components = modules_of(pipe)
    modules = list({module for component in components.values() for module in component.modules()})
    with restored([pipe, *modules]), _random_state_restored(), _single_threaded():
        try:
            _prepare_pipeline(pipe)
            _disguise(modules, mode)
            yield
        finally:
            _forget_cached_fakes(modules)


@contextmanager
def restored(owners: list[Any]) -> Iterator[None]:
    """Put back the attributes of these objects, and the contents of their dicts, lists and sets."""
    saved = [(owner, dict(vars(owner)), _contents(owner)) for owner in owners]
    try:
        yield
    finally:
        for owner, attributes, contents in saved:
            vars(owner).clear()
            vars(owner).update(attributes)
            for container, content in contents:
                container.clear()
                container.extend(content) if isinstance(container, list) else container.update(content)


def _contents(owner: object) -> list[tuple[Any, Any]]:
    return [(value, value.copy()) for value in vars(owner).values() if type(value) in _PLAIN_CONTAINERS]


@contextmanager
def _random_state_restored() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def _single_threaded() -> Iterator[None]:
    # The pipeline's own arithmetic is on small tensors: a second thread would only spin.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _prepare_pipeline(pipe: DiffusionPipeline) -> None:
    quieten(pipe)
    for name, part in pipe.components.items():
        if hasattr(part, "set_timesteps"):
            vars(pipe)[name] = copy.deepcopy(part)  # past `__setattr__`, which would register the copy


def _disguise(modules: list[nn.Module], mode: FakeTensorMode) -> None:
    """Swap weights for fakes of the same shape, strides and dtype; what was tied stays tied."""
    fakes: dict[torch.Tensor, torch.Tensor] = {}

    def fake_of(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        if tensor not in fakes:
            fakes[tensor] = _fake_like(tensor, mode)
        return fakes[tensor]

    for module in modules:
        drop_offload_hook(module)
        for slots in (module._parameters, module._buffers):
            for name, tensor in slots.items():
                slots[name] = fake_of(tensor)  # type: ignore[assignment]
        vars(module)["_apply"] = functools.partial(_apply_to_fakes, module)


def _fake_like(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    # On "cpu" attention stays fused; fake "cuda" and "meta" would be traced through the unfused kernel.
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake


def _apply_to_fakes(
    module: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> nn.Module:
    """What `nn.Module._apply` does (`.to`, `.float`, ...): its own swap of tensors refuses fakes."""
    converted: dict[torch.Tensor, torch.Tensor] = {}
    for part in module.modules() if recurse else [module]:
        for slots in (part._parameters, part._buffers):
            for name, tensor in slots.items():
                if tensor is None:
                    continue
                if tensor not in converted:
                    converted[tensor] = _converted(tensor, convert)
                slots[name] = converted[tensor]  # type: ignore[assignment]
    return module


def _converted(fake: torch.Tensor, convert: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    with _disable_current_modes():  # weights are not what the pipeline itself holds
        new = convert(fake)
    return nn.Parameter(new, requires_grad=False) if isinstance(fake, nn.Parameter) else new


def _forget_cached_fakes(modules: list[nn.Module]) -> None:
    """Empty the `lru_cache`s of the modules' classes: they may have kept fakes (rotary embeddings do)."""
    for kind in {base for module in modules for base in type(module).__mro__}:
        for function in vars(kind).values():
            cells = getattr(function, "__closure__", None) or ()
            kept = [cell.cell_contents for cell in cells if cell != _EMPTY_CELL]
            for candidate in (function, *kept):
                if hasattr(candidate, "cache_clear"):
                    candidate.cache_clear()
