"""Fake weights for a pipeline, for as long as its call is followed; afterwards it is exactly as it was."""

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

from vramtune.contract import copy_schedulers, drop_offload_hook, modules_of, quieten

_PLAIN_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)
_EMPTY_CELL = CellType()


@contextmanager
def on_fake_weights(pipe: DiffusionPipeline, mode: FakeTensorMode) -> Iterator[None]:
    """While entered, the pipeline has fake weights on the CPU and no offload hooks.

    At the end, also after Ctrl-C, everything is undone that the call did to modules (dtypes, caches, tiling switches),
    schedulers, the pipeline's own attributes and the global random state.
    """
    components = modules_of(pipe)
    modules = list({module for component in components.values() for module in component.modules()})
    with restored([pipe, *modules]), _random_state_restored(), _single_threaded():
        try:
            quieten(pipe)
            copy_schedulers(pipe)
            _fake_weights(modules, mode)
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


def _fake_weights(modules: list[nn.Module], mode: FakeTensorMode) -> None:
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
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                tensors[name] = fake_of(tensor)  # type: ignore[assignment]
        vars(module)["_apply"] = functools.partial(_apply_to_fakes, module)


def _fake_like(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    # On "cpu" attention stays fused; fake "cuda" and "meta" would be traced through the unfused kernel.
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake


def _apply_to_fakes(
    module: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> nn.Module:
    """Stands for `nn.Module._apply` (`.to`, `.float`, ...), whose own swap of tensors refuses fakes."""
    converted: dict[torch.Tensor, torch.Tensor] = {}
    for owner in module.modules() if recurse else [module]:
        for tensors in (owner._parameters, owner._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in converted:
                    converted[tensor] = _converted(tensor, convert)
                tensors[name] = converted[tensor]  # type: ignore[assignment]
    return module


def _converted(fake: torch.Tensor, convert: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    with _disable_current_modes():  # weights do not count as the pipeline's own memory
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
