"""What CUDA does otherwise than the CPU, on which fakes claim to be, where it shows in memory or time.

Seen by comparing traces with the events of PyTorch's allocator on an H100 (`benchmarks/calls_on_gpu.py`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class CudaKernels(TorchFunctionMode):
    """Replaces operations by what CUDA does; `is_known` tells tensors whose values are followed, which stay as they are."""

    def __init__(self, is_known: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self._is_known = is_known
        self._instead: dict[Any, Callable[..., torch.Tensor | None]] = {
            torch.rms_norm: rms_norm,
            functional.rms_norm: rms_norm,
            torch.group_norm: group_norm,
            functional.group_norm: functional_group_norm,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        instead = self._instead.get(func)
        if instead is not None and args and not self._is_known(args[0]):
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
    """Of a contiguous copy (`ATen/native/group_norm.cpp`); the CPU keeps channels last."""
    return torch.group_norm(x.contiguous(), num_groups, weight, bias, eps, cudnn_enabled)


def functional_group_norm(
    input: torch.Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> torch.Tensor:
    """The same by its Python name."""
    return group_norm(input, num_groups, weight, bias, eps)
