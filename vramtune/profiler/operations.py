"""One operation's arithmetic and traffic, by its name, its shapes and how its tensors lie."""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from vramtune.profiler.cuda_kernels import comes_contiguous
from vramtune.profiler.fakes import copy_bytes
from vramtune.schema import Kind, Work

_MATMUL = {"mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "_int_mm"}
_CONVOLUTION = {"convolution", "_convolution", "cudnn_convolution", "convolution_overrideable"}
_GATHER = {"embedding", "index", "gather", "index_select"}
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view"}
NARROW_HEAD, WIDEST_FLASH_HEAD = 64, 256
"""Width of heads up to which attention's kernels are slower, and over which PyTorch has no flash kernel."""


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
    if kind == "attention":
        is_masked = len(inputs) > len("qkv")
        return Work(attention_kind(args[0].shape[-1], dtype, is_masked=is_masked), dtype, flops, read + written)
    if name == "native_group_norm":
        images, groups = args[3], args[6]
        return Work("group_norm", dtype, 0, read + written, num_elements=args[0].numel(), num_blocks=images * groups)
    if is_pointwise(function) and is_strided(inputs, outputs[0]):
        return Work("strided", dtype, flops, read + written, num_elements=outputs[0].numel())
    if dtype == "float32" and rounds_to_tensorfloat32(kind):
        dtype = "tensorfloat32"
    work = Work(kind, dtype, flops, read + written)
    if kind == "convolution" and dtype != "float32" and comes_contiguous(*inputs[:2]):
        return work._replace(layout_in_bytes=copy_bytes(inputs[0]), layout_out_bytes=written)
    return work


def attention_kind(head_width: int, dtype: str, *, is_masked: bool) -> Kind:
    """By what the kernel of 16-bit attention and its speed depend on: a mask, and the width of a head."""
    if dtype == "float32":
        return "attention"
    if is_masked:
        return "masked_attention"
    if head_width <= NARROW_HEAD:
        return "narrow_attention"
    return "attention" if head_width <= WIDEST_FLASH_HEAD else "wide_attention"


@cache
def is_pointwise(function: Any) -> bool:
    """Whether each element of the result comes from one of each operand: PyTorch's tag, and copies."""
    return torch.Tag.pointwise in function.tags or function.overloadpacket.__name__ in ("copy_", "clone", "_to_copy")


def is_strided(inputs: Sequence[torch.Tensor], output: torch.Tensor) -> bool:
    """Whether a pointwise kernel goes element by element: an operand is broadcast, or lies otherwise than the result."""
    return any(
        tensor.numel() > 1 and (tensor.shape != output.shape or tensor.stride() != output.stride()) for tensor in inputs
    )


def rounds_to_tensorfloat32(kind: Kind) -> bool:
    """Whether PyTorch's settings let a kind of float32 operation round its operands: convolutions by default."""
    if kind == "convolution":
        return torch.backends.cudnn.allow_tf32
    return kind == "matmul" and torch.backends.cuda.matmul.allow_tf32


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
    formula = flop_registry[torch.ops.aten.mm if operation is torch.ops.aten._int_mm else operation]
    return int(formula(*args, out_val=out_shape))


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
