"""What CUDA does otherwise than the CPU, on which fakes claim to be, where it shows in memory or time.

Seen by comparing traces with the events of PyTorch's allocator, on an H100 (`benchmarks/calls_on_gpu.py`) and over the
catalog on the null card (`benchmarks/memory_on_nullcuda.py`). Attention is in `cuda_attention.py`.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vramtune.profiler.cuda_attention import HALF, attention
from vramtune.profiler.cuda_reductions import staging_bytes
from vramtune.profiler.fakes import copy_bytes, is_dense
from vramtune.profiler.tensor_trees import tensors_of

aten = torch.ops.aten
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of dimensions."""
HALF_RESULT = "int8_mm_dequant"
"""A kernel of bitsandbytes' that makes float16 of sums of int8, which is cast then (`bitsandbytes/backends/cuda/ops.py`)."""
LEAST_CHANNELS_LAST = 4
"""Channels from which on nearest neighbours are found in an image whose channels lie last as it is."""


class Temporaries(NamedTuple):
    """Bytes that an operation takes beside its results, while it runs."""

    before: tuple[int, ...] = ()
    """Ahead of the results."""
    after: tuple[int, ...] = ()


def temporaries(func: Any, args: tuple[Any, ...], outputs: Sequence[torch.Tensor]) -> Temporaries:
    """What CUDA's kernels take for copies of operands that do not lie as they want them, and of results."""
    if func._opname == HALF_RESULT and outputs[0].dtype != torch.float16:
        return Temporaries(before=(outputs[0].numel() * torch.float16.itemsize,))
    find = _TEMPORARIES.get(func)
    return find(*args) if find is not None else Temporaries()


def convolution_copies(image: torch.Tensor, weight: torch.Tensor, *_: Any) -> Temporaries:
    """Of images that are neither contiguous nor channels last, and of weights that lie otherwise than the images.

    `cudnn_convolution_forward` in `ATen/native/cudnn/ConvShared.cpp`.
    """
    layout = torch.contiguous_format
    if image.ndim in CHANNELS_LAST and (lies_channels_last(image) or lies_channels_last(weight)):
        layout = CHANNELS_LAST[image.ndim]
    before, after = (
        () if tensor.is_contiguous(memory_format=layout) else (copy_bytes(tensor),) for tensor in (image, weight)
    )
    return Temporaries(before, after)


def comes_contiguous(image: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether cuDNN gets images in contiguous order: those that lie so, and copies of those that lie in neither order."""
    return image.is_contiguous() or not (lies_channels_last(image) or lies_channels_last(weight))


def lies_channels_last(image: torch.Tensor) -> bool:
    """By strides, those of dimensions of 1 included (`is_channels_last_strides_2d` in `c10/core/MemoryFormat.h`)."""
    if image.ndim not in CHANNELS_LAST:
        return False
    least = 0
    for dimension in (1, *range(image.ndim - 1, 1, -1), 0):
        size, step = image.shape[dimension], image.stride(dimension)
        if size == 0 or step < max(least, 1) or (dimension == 0 and least == image.stride(1)):
            return False
        least = step * size
    return True


def group_norm_sums(
    x: torch.Tensor, weight: Any, bias: Any, num_images: int, num_channels: int, area: int, num_groups: int, eps: float
) -> Temporaries:
    """Factors of each channel, and means of 16-bit numbers, in float32 (`group_norm_kernel.cu`)."""
    means = (num_images * num_groups * 4,) * 2 if x.dtype in HALF else ()
    return Temporaries(after=(*means, *(num_images * num_channels * 4,) * 2))


def layer_norm_copies(x: torch.Tensor, *_: Any) -> Temporaries:
    """Of an input that is not contiguous, made ahead of the results (`layer_norm_cuda` in
    `ATen/native/cuda/layer_norm_kernel.cu`): the order decides where in an arena a hole is left."""
    return Temporaries(before=() if x.is_contiguous() else (copy_bytes(x),))


def norm_parts(x: torch.Tensor, order: Any = 2, dims: Any = None, *_: Any) -> Temporaries:
    """Of blocks that share an output."""
    return Temporaries(after=staging_bytes(x, dims))


def sum_parts(x: torch.Tensor, dims: Any = None, *_: Any) -> Temporaries:
    """The same of a sum, a mean."""
    return Temporaries(after=staging_bytes(x, dims))


_TEMPORARIES: dict[Any, Callable[..., Temporaries]] = {
    aten.linalg_vector_norm.default: norm_parts,
    aten.mean.dim: sum_parts,
    aten.mean.default: sum_parts,
    aten.sum.dim_IntList: sum_parts,
    aten.sum.default: sum_parts,
    aten.convolution.default: convolution_copies,
    aten.native_layer_norm.default: layer_norm_copies,
    aten.native_group_norm.default: group_norm_sums,
}


class CudaKernels(TorchFunctionMode):
    """Replaces operations by what CUDA does; what is done with known values only stays as it is, and is followed."""

    def __init__(self, is_known: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self._is_known = is_known
        self._instead: dict[Any, Callable[..., torch.Tensor | None]] = {
            torch.rms_norm: rms_norm,
            functional.rms_norm: rms_norm,
            torch.group_norm: group_norm,
            functional.group_norm: functional_group_norm,
            functional.interpolate: interpolate,
            functional.linear: linear,
            functional.scaled_dot_product_attention: attention,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        instead = self._instead.get(func)
        if instead is not None and not all(map(self._is_known, tensors_of((args, kwargs)))):
            out = instead(*args, **kwargs)
            if out is not None:
                return out
        return func(*args, **kwargs)


def rms_norm(
    x: torch.Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> torch.Tensor | None:
    """One kernel (`_fused_rms_norm`) where the dtypes agree; the CPU takes it apart. Layer norm allocates the same."""
    if weight is not None and weight.dtype != x.dtype:
        return None
    out: torch.Tensor = aten.native_layer_norm.default(x, normalized_shape, weight, None, eps or 0.0)[0]
    return out


def group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> torch.Tensor:
    """Of a contiguous copy, made after the result's memory was taken (`ATen/native/group_norm.cpp`); the CPU keeps
    channels last."""
    if x.is_contiguous() or not is_dense(x):
        return torch.group_norm(x.contiguous(), num_groups, weight, bias, eps, cudnn_enabled)
    out = torch.group_norm(x.as_strided(x.shape, contiguous_strides(x)), num_groups, weight, bias, eps, cudnn_enabled)
    x.contiguous()
    return out


def contiguous_strides(x: torch.Tensor) -> tuple[int, ...]:
    """Those of a tensor of this shape without gaps, its last dimension first."""
    return tuple(prod(x.shape[dimension + 1 :]) for dimension in range(x.ndim))


def functional_group_norm(
    input: torch.Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> torch.Tensor:
    """The same by its Python name."""
    return group_norm(input, num_groups, weight, bias, eps)


def interpolate(
    input: torch.Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **options: Any
) -> torch.Tensor:
    """Nearest neighbours are found in a contiguous copy, which is made after the result's memory was taken.

    `upsample_nearest*_out_cuda_template` in `ATen/native/cuda/UpSampleNearest2d.cu` and `UpSampleNearest3d.cu`.
    """
    out = functional.interpolate(input, size, scale_factor, mode, **options)
    if mode in ("nearest", "nearest-exact") and not is_read_as_it_is(input):
        whole = None if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
        input = input.contiguous()
        if whole is not None:
            out.copy_(whole)
    return out


def is_read_as_it_is(image: torch.Tensor) -> bool:
    """Whether the kernels for nearest neighbours can read an image where it lies."""
    is_wide = image.ndim == 4 and image.shape[1] >= LEAST_CHANNELS_LAST
    return image.is_contiguous() or (is_wide and lies_channels_last(image))


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """Of what is not contiguous: rows are copied, the bias is added in place. Under a mode PyTorch adds it to a copy.

    `linear` in `ATen/native/Linear.cpp`, `should_fold` in `ATen/native/LinearAlgebra.cpp` for weights with gradients.
    """
    if input.ndim < 3 or input.is_contiguous():
        return None
    out = functional.linear(input.reshape(-1, input.shape[-1]), weight)
    out = out.view(*input.shape[:-1], -1)
    return out if bias is None else out.add_(bias)
