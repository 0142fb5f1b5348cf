"""The tensors in whatever calls take and return: nested containers, model outputs, distributions."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """A copy of `value` with each tensor replaced."""

    def replace_leaf(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return function(leaf)
        if not _holds_tensors(leaf):
            return leaf
        twin = copy.copy(leaf)
        for name, attribute in vars(leaf).items():
            setattr(twin, name, tree_map_only(torch.Tensor, function, attribute))
        return twin

    return tree_map(replace_leaf, value)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in `value`, in order."""
    tensors: list[torch.Tensor] = []

    def collect(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(collect, value)
    return tensors


def tensors_reached(value: Any) -> list[torch.Tensor]:
    """The tensors in `value` however deep, as in the caches of keys and values that text encoders return."""
    tensors: dict[torch.Tensor, None] = {}
    waiting, known = [value], set[int]()
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            tensors[item] = None
        elif id(item) not in known:
            known.add(id(item))
            if isinstance(item, Mapping):
                waiting += item.values()
            elif isinstance(item, list | tuple | set):
                waiting += item
            elif hasattr(item, "__dict__") and not isinstance(item, nn.Module | type):
                waiting += vars(item).values()
    return list(tensors)


def _holds_tensors(leaf: Any) -> bool:
    if not hasattr(leaf, "__dict__") or isinstance(leaf, nn.Module | type):
        return False
    return any(isinstance(x, torch.Tensor) for x in tree_leaves(list(vars(leaf).values())))
