"""What makes two calls equal: shapes, strides and dtypes of tensors, values of everything else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


@dataclass(slots=True, kw_only=True)
class Description:
    """A call's arguments: the key that identifies them, and the tensors and containers in them, in order."""

    key: object = None
    """Hashable; equal for equal calls."""
    tensors: list[torch.Tensor] = field(default_factory=list)
    containers: list[Any] = field(default_factory=list)
    """Lists and dicts, which a call may change."""
    objects: list[object] = field(default_factory=list)
    """Objects that the key names by `id`: they must live as long as the key."""


def describe(value: Any) -> Description:
    """Describe nested arguments."""
    description = Description()
    description.key = _token(value, description, {})
    return description


def _token(value: Any, description: Description, storages: dict[int, int]) -> object:
    if isinstance(value, torch.Tensor):
        description.tensors.append(value)
        # Which tensors share storage decides what is freed when.
        shared = storages.setdefault(value.untyped_storage()._cdata, len(storages))
        return "tensor", tuple(value.shape), value.stride(), value.dtype, shared
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, list | dict):
        description.containers.append(value)
    if isinstance(value, list | tuple):
        return type(value), tuple(_token(item, description, storages) for item in value)
    if isinstance(value, Mapping):
        return type(value), tuple((key, _token(item, description, storages)) for key, item in value.items())
    description.objects.append(value)
    return type(value), id(value)
