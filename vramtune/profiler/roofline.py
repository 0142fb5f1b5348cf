"""One operation's arithmetic and traffic, and the seconds they take on a device."""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.flop_counter import flop_registry

from vramtune.schema import Device

Kind = Literal["matmul", "convolution", "attention", "pointwise"]


class Work(NamedTuple):
    """The arithmetic and traffic of one operation: a multiply-add is two FLOPs, bytes are read or written."""

    kind: Kind
    dtype: str
    flops: int
    num_bytes: int
    num_kernels: int = 1


_MATMUL = {"mm", "addmm", "bmm", "baddbmm", "_scaled_mm"}
_CONVOLUTION = {"convolution", "_convolution", "cudnn_convolution", "convolution_overrideable"}
_GATHER = {"embedding", "index", "gather", "index_select"}
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view"}


def work_seconds(work: Work, device: Device) -> float:
    """Roofline: the slower of arithmetic and traffic, plus the launch.

    `max(flops / (rate(dtype) * efficiency(kind)), bytes / (bandwidth * efficiency)) + kernels * launch`. A dtype
    without a rate on the device is computed at the rate of float32.
    """
    rate = device.flops_per_second.get(work.dtype, device.flops_per_second["float32"])
    compute = work.flops / (rate * device.efficiency_fraction[work.kind])
    traffic = work.num_bytes / (device.memory_bytes_per_second * device.efficiency_fraction["memory"])
    return max(compute, traffic) + work.num_kernels * device.launch_seconds


def operation_work(
    function: Any, args: tuple[Any, ...], *, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
) -> Work | None:
    """The work of an ATen operation other than a view; None for one that starts no kernel."""
    name = function.overloadpacket.__name__
    if name in _NO_KERNEL or not outputs:
        return None
    kind = operation_kind(name)
    written = sum(map(touched_bytes, outputs))
    # A lookup reads only as much of its table as it writes.
    read = written if name in _GATHER else sum(map(touched_bytes, inputs))
    dtype, flops = dtype_name(inputs or outputs), operation_flops(function, args, kind, outputs)
    if name == "constant_pad_nd":  # fills the result, then copies the input into it
        return Work(kind, dtype, flops, written + 2 * read, num_kernels=2)
    return Work(kind, dtype, flops, read + written)


@cache
def operation_kind(name: str) -> Kind:
    """The class of operation by its ATen name."""
    if name in _MATMUL:
        return "matmul"
    if name in _CONVOLUTION:
        return "convolution"
    return "attention" if "scaled_dot_product" in name else "pointwise"


def operation_flops(function: Any, args: tuple[Any, ...], kind: Kind, outputs: Sequence[torch.Tensor]) -> int:
    """FLOPs by PyTorch's own formulas (`torch.utils.flop_counter`); 0 for operations that memory bounds anyway."""
    if kind == "pointwise":
        return 0
    if kind == "attention":
        return attention_flops(*args[:3])
    return _counted_flops(function.overloadpacket, tuple(map(_hashable, args)), outputs[0].shape)


def _hashable(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.shape
    return tuple(argument) if isinstance(argument, list) else argument


@cache
def _counted_flops(operation: Any, args: tuple[Any, ...], out_shape: torch.Size) -> int:
    """By PyTorch's formula, which goes by shapes."""
    return int(flop_registry[operation](*args, out_val=out_shape))


def attention_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """FLOPs of two matrix products per head; PyTorch has no formula for the CPU's fused kernel.

    query: [... lq d], key: [... lk d], value: [... lk dv]; a causal mask saves nothing here.
    """
    return 2 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def touched_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements; an expanded one has no more than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def dtype_name(tensors: Sequence[torch.Tensor]) -> str:
    """Name of the first floating dtype, else of the first."""
    floating = next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0])
    return str(floating.dtype).removeprefix("torch.")
