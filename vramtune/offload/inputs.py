"""Inputs of components that a pipeline has on the host: brought to the device, and known again at the next call.

Some pipelines give a component the same small tensors of the host in every step (rotary tables). The host waits for
each such copy, and with it the copies of weights that it would ask for meanwhile.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils._pytree import tree_leaves

from vramtune.offload.groups import num_writes

SMALL_BYTES = 1 << 20
"""Largest inputs that are known again; to compare larger ones would take the host as long as what it saves."""


@dataclass(frozen=True, slots=True, eq=False)
class Brought:
    """An input that was copied to the device."""

    bits: torch.Tensor
    """Its bytes, in a copy on the host: what it is in place of may be written to."""
    original: torch.Tensor
    """Without storage: dtype, shape and strides."""
    there: torch.Tensor
    """The copy on the device."""
    version: int
    """Number of in-place writes to the copy when it was made."""


def to_device(inputs: Any, device: torch.device, known: Iterable[Brought]) -> tuple[Any, list[Brought]]:
    """Inputs on the device, and what of them to know again; nothing is rebuilt if all are there.

    A copy is used again where it has the same bits still, and by one input: a component may write to it. Caches, which
    a component writes to as well, are never rebuilt.
    """
    unused = list(known)
    is_elsewhere = any(
        isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.device != device for leaf in tree_leaves(inputs)
    )
    if not is_elsewhere:
        return inputs, unused
    brought: list[Brought] = []

    def bring(value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(map(bring, value))
        if type(value) is dict:
            return {key: bring(item) for key, item in value.items()}
        if not _may_be_known(value):
            return value
        bits = _bits(value)
        copy = next((copy for copy in unused if _is_same(copy, value, bits)), None)
        if copy is None:
            there = value.to(device)
            copy = Brought(bits.clone(), torch.empty_like(value, device="meta"), there, num_writes(there))
        else:
            unused.remove(copy)
        brought.append(copy)
        return copy.there

    there = send_to_device(bring(inputs), device)
    return there, [copy for copy in brought if not copy.there.is_inference()]


def _may_be_known(value: object) -> bool:
    """Whether a value is a plain, small tensor of the host."""
    return (
        type(value) is torch.Tensor
        and value.is_cpu
        and value.layout is torch.strided
        and not (value.requires_grad or value.is_quantized)
        and value.nbytes <= SMALL_BYTES
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg().flatten().view(torch.uint8)


def _is_same(brought: Brought, tensor: torch.Tensor, bits: torch.Tensor) -> bool:
    """Whether the copy on the device is what copying the tensor would give."""
    original = brought.original
    return (
        (original.dtype, original.shape, original.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        and num_writes(brought.there) == brought.version
        and torch.equal(brought.bits, bits)
    )
