"""Linear layers as quantization libraries have them: what they store, and what they do on a GPU. They have no values.

Each is held against the library's own by `tests/quantized/test_described.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class DescribedLinear(nn.Linear):
    """A layer whose weight is several plain tensors, which have names as parameters here."""

    def __init__(self, layer: nn.Linear) -> None:
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, bias=False)
        self.bias = layer.bias
        self.compute_dtype = layer.weight.dtype

    def hold(self, name: str, *shape: int, dtype: torch.dtype) -> None:
        """Have a tensor among the parameters."""
        setattr(self, name, nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False))


class FourBitLinear(DescribedLinear):
    """`Linear4bit` in `bitsandbytes/nn/modules.py`, with the defaults of `BitsAndBytesConfig`: statistics in float32."""

    BLOCK_SIZE = 64
    TABLE_SIZE = 16

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        numel = layer.weight.numel()
        self.hold("weight", (numel + 1) // 2, 1, dtype=torch.uint8)
        self.hold("absmax", -(-numel // self.BLOCK_SIZE), dtype=torch.float32)
        self.hold("code", self.TABLE_SIZE, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`gemm_4bit` in `bitsandbytes/backends/default/ops.py`."""
        shape = [self.out_features, self.in_features]
        weight = torch.ops.vramtune.dequantize_4bit(self.weight, self.absmax, shape, self.compute_dtype)
        out: torch.Tensor = nn.functional.linear(x.to(self.compute_dtype), weight, self.bias)
        return out.to(x.dtype)


class EightBitLinear(DescribedLinear):
    """`Linear8bitLt` in `bitsandbytes/nn/modules.py`; no column of its input has outliers, as is the rule."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.hold("weight", *layer.weight.shape, dtype=torch.int8)
        self.hold("SCB", layer.out_features, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`MatMul8bitLt` in `bitsandbytes/autograd/_functions.py`."""
        shape = (*x.shape[:-1], self.out_features)
        if x.ndim == 3:
            x = x.reshape(-1, x.shape[-1])
        rows, row_stats = torch.ops.vramtune.int8_vectorwise_quant(x.to(torch.float16))
        product = torch._int_mm(rows, self.weight.t())
        out: torch.Tensor = torch.ops.vramtune.int8_mm_dequant(product, row_stats, self.SCB, x.dtype, self.bias)
        return out.reshape(shape) if len(shape) == 3 else out


class WrappedLinear(DescribedLinear):
    """A layer whose weight is one tensor to those who look, with the dtype that it had before; and a scale for each row."""

    STORED: torch.dtype
    SCALE: torch.dtype | None = torch.float32
    """The scales' dtype; None: the one that the weight had."""
    data: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        del self.weight
        self.weight = torch.empty((), dtype=self.compute_dtype, device="meta").expand(
            self.out_features, self.in_features
        )
        self.hold("data", *layer.weight.shape, dtype=self.STORED)
        self.hold("scale", layer.out_features, 1, dtype=self.SCALE or layer.weight.dtype)


class TorchaoInt8Linear(WrappedLinear):
    """`Int8Tensor` of `Int8WeightOnlyConfig` (`torchao/quantization/quantize_/workflows/int8/int8_tensor.py`)."""

    STORED = torch.int8

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.hold("zero_point", layer.out_features, 1, dtype=torch.int8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiplies by a copy of the weight in the input's dtype, and scales the product."""
        product = torch.mm(x.reshape(-1, self.in_features), self.data.t().to(x.dtype))
        out = product * self.scale.to(product.dtype).flatten()
        out = out.reshape(*x.shape[:-1], self.out_features)
        if self.bias is not None:
            out += self.bias
        return out


class TorchaoFloat8Linear(WrappedLinear):
    """`Float8Tensor` of `Float8WeightOnlyConfig` (`torchao/quantization/quantize_/workflows/float8/float8_tensor.py`)."""

    STORED = torch.float8_e4m3fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiplies by a copy of the weight that was scaled in float32."""
        out = torch.matmul(x, _dequantized(self.data.t(), self.scale.t(), self.compute_dtype))
        return _plus(out, self.bias)


def _dequantized(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`_dequantize_affine_float8` in `torchao/quantization/quant_primitives.py`: all three are there at its end."""
    unscaled = weight.to(torch.float32)
    scaled = unscaled * scale
    return scaled.to(dtype)


def _plus(out: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return out if bias is None else out + bias


class QuantoLinear(WrappedLinear):
    """`QLinear` in `optimum/quanto/nn/qlinear.py`, with weights of a byte each."""

    SCALE = None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        for name in ("input_scale", "output_scale"):  # of activations, which are not quantized here
            self.register_buffer(name, torch.ones((), device="meta"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`WeightQBytesLinearFunction` in `optimum/quanto/tensor/weights/qbytes.py`."""
        out = self._product(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)
        return _plus(out, self.bias)

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        """`qbytes_mm` in `optimum/quanto/library/qbytes_mm.py`."""
        rows, weight = rows.to(self.scale.dtype), self.data
        if weight.dtype.is_floating_point:
            weight = weight.to(self.scale.dtype)
        weight = self.scale * weight
        return torch.matmul(rows, weight.t())


class QuantoInt8Linear(QuantoLinear):
    """With `qint8`."""

    STORED = torch.int8


class QuantoFloat8Linear(QuantoLinear):
    """With `qfloat8`."""

    STORED = torch.float8_e4m3fn


LAYERS: dict[str, type[DescribedLinear]] = {
    "nf4": FourBitLinear,
    "fp4": FourBitLinear,
    "int8": EightBitLinear,
    "torchao-int8": TorchaoInt8Linear,
    "torchao-float8": TorchaoFloat8Linear,
    "quanto-int8": QuantoInt8Linear,
    "quanto-float8": QuantoFloat8Linear,
}
"""By the name of the way (`quantizations.py`)."""


def _define(schema: str, result: Callable[..., Any]) -> None:
    """Tell PyTorch of a kernel of bitsandbytes' what its results look like."""
    name = f"vramtune::{schema.partition('(')[0]}"
    torch.library.define(name, schema[schema.index("(") :])
    torch.library.register_fake(name, result)


_define(
    "dequantize_4bit(Tensor weight, Tensor absmax, int[] shape, ScalarType dtype) -> Tensor",
    lambda weight, absmax, shape, dtype: torch.empty(shape, dtype=dtype, device=weight.device),
)
_define(
    "int8_vectorwise_quant(Tensor x) -> (Tensor, Tensor)",
    lambda x: (torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)),
)
torch.library.impl("vramtune::int8_vectorwise_quant", "CPU", lambda x: _int8_rows(x))
_define(
    "int8_mm_dequant(Tensor x, Tensor row_stats, Tensor col_stats, ScalarType dtype, Tensor? bias) -> Tensor",
    lambda x, row_stats, col_stats, dtype, bias: torch.empty_like(x, dtype=dtype),
)


def _int8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The one that has no weight among its arguments, so that its values may be known while a call is followed."""
    largest = x.abs().amax(dim=-1).float()
    return torch.round(x * (127.0 / largest.unsqueeze(-1))).to(torch.int8), largest
