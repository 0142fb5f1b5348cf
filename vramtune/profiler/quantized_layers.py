"""Layers of quantization libraries in a trace: their weights' state, and their operations as a GPU runs them.

Fakes claim to be on the CPU, where these libraries take other ways than on a GPU; and to a fake none of the methods of a
parameter's class comes with it.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch._C import DispatchKey, DispatchKeySet
from torch._ops import OpOverload

from vramtune.plain_tensors import KIND, is_wrapper

TAKEN_APART = {"quanto": None, "bitsandbytes": ("gemm_4bit", "int8_scaled_mm")}
"""Operations that dequantize a weight and multiply by the result, by namespace; None: all of it.

On a GPU they do so by other operations (`optimum/quanto/library`, `bitsandbytes/backends/default/ops.py`), whose results
take memory. Of bitsandbytes' own kernels a few rows may be multiplied without; what a call waits for are many.
"""
INT8_PRODUCT = "int8_linear_matmul"
"""bitsandbytes' product of matrices of int8 into int32, by cuBLAS; so is PyTorch's own."""
OF_NO_BACKEND = DispatchKeySet(DispatchKey.PrivateUse2)
"""A backend for which no library has a kernel of its own: it gets the one for all."""


def has_state(weight: torch.Tensor) -> bool:
    """Whether a weight is of a class of parameters that has more than bytes."""
    return type(weight) not in (torch.Tensor, nn.Parameter) and not is_wrapper(weight)


def add_state(fake: torch.Tensor, kind: type, attributes: Mapping[str, Any]) -> None:
    """Give a fake of such a weight its class, attributes, and what GGUF's layers ask of it: itself as a plain tensor."""
    vars(fake).update({KIND: kind, "as_tensor": lambda: fake}, **attributes)


def compute_as_on_gpu(module: nn.Module) -> None:
    """Have a copied layer do what it does on a GPU: bitsandbytes packs 4-bit weights where the CPU has a product for them.

    Where it computes columns of outliers apart, values of its input decide which; here none are, as is the rule.
    `Linear4bit` and `Linear8bitLt` in `bitsandbytes/nn/modules.py`.
    """
    own = vars(module)
    if "support_avx512bf16_for_cpu" in own:
        own["support_avx512bf16_for_cpu"] = False
    if type(module).__name__ == "Linear8bitLt":
        module.state.threshold = 0.0  # type: ignore[union-attr]


@cache
def of_library(func: Any) -> Callable[..., Any] | None:
    """What does a library's operation by others; None where it is one itself."""
    if func.namespace not in TAKEN_APART:
        return None
    if func._opname == INT8_PRODUCT:
        return _int8_product
    names = TAKEN_APART[func.namespace]
    return partial(func.redispatch, OF_NO_BACKEND) if names is None or func._opname in names else None


@cache
def is_chosen_by_card(func: Any) -> bool:
    """Whether an operation is what a library does on some cards, and on others something that allocates less.

    bitsandbytes multiplies up to 1536 rows by weights of 4 bits without a copy in 16, where its table for the card's
    architecture says so (`_gemm_4bit_use_custom_cuda` in `bitsandbytes/backends/cuda/ops.py`).
    """
    return isinstance(func, OpOverload) and func._opname == "dequantize_4bit"


def _int8_product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows: [n k] int8, weight: [m k] int8; returns [n m] int32."""
    return torch._int_mm(rows, weight.t())
