"""What makes two calls equal: shapes, strides and dtypes of tensors, values of everything else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


@dataclass(slots=True, kw_only=True)
class Description:
    """A call's arguments: what identifies them, and what was met on the way, in order."""

    key: object = None
    """Hashable; equal for equal calls."""
    tensors: list[torch.Tensor] = field(default_factory=list)
    containers: list[Any] = field(default_factory=list)
    """Lists and dicts, which a call may change."""
    objects: list[object] = field(default_factory=list)
    """What the key can only name by `id`: keep them alive as long as the key."""


def describe(value: Any) -> Description:
    """Walk nested arguments."""
    description = Description()
    description.key = _token(value, description, {})
    return description


def _token(value: Any, met: Description, storages: dict[int, int]) -> object:
    if isinstance(value, torch.Tensor):
        met.tensors.append(value)
        # Which tensors share storage decides what is freed when.
        shared = storages.setdefault(value.untyped_storage()._cdata, len(storages))
        return "tensor", tuple(value.shape), value.stride(), value.dtype, shared
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, list | dict):
        met.containers.append(value)
    if isinstance(value, list | tuple):
        return type(value), tuple(_token(item, met, storages) for item in value)
    if isinstance(value, Mapping):
        return type(value), tuple((key, _token(item, met, storages)) for key, item in value.items())
    met.objects.append(value)
    return type(value), id(value)
