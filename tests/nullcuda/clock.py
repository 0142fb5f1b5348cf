"""Time on the null card: what PyTorch's operations take there, and the process's own clocks put forward with it.

The card's clocks (`csrc/clock.cpp`) know launches, copies, waits and memory, but not what a kernel computes. `Cost` says so.
"""

import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from tests.nullcuda.card import host_seconds, runtime

FOUR_BIT_PRODUCT = "gemm_4bit"
"""Of bitsandbytes, which brings no formula: for more than a few rows it writes the weights in 16 bits and multiplies by those."""
EFFICIENCIES = {"attention": 0.6, "convolution": 0.5, "matrix product": 0.8}
"""Shares of the card's arithmetic rate."""
FLOAT32_SLOWER = 4
"""Than half precision."""
ON_HOST = {"copy_", "_to_copy", "clone", "cat", "_pin_memory", "fill_", "zero_"}
"""Operations that take the host time by the byte where all is in its memory; they are how weights move there."""
SMALL_BYTES = 1 << 16
"""Below, no time is taken for them."""


def replace_time() -> None:
    """From now on Python's clocks tell the host's virtual time, to all who look them up in `time`; but `monotonic`, which
    threads wait by.
    """
    time.perf_counter = time.time = host_seconds
    time.perf_counter_ns = time.time_ns = lambda: int(host_seconds() * 1e9)


class Cost(TorchDispatchMode):
    """While entered, kernels take what a card of these rates takes at best: a roofline of PyTorch's own formulas."""

    def __init__(
        self,
        *,
        flops_per_second: float = 4e13,
        memory_bytes_per_second: float = 2.5e11,
        host_bytes_per_second: float = 1e10,
        host_operation_seconds: float = 2e-6,
    ) -> None:
        super().__init__()
        self.flops_per_second, self.memory_bytes_per_second = flops_per_second, memory_bytes_per_second
        self.host_bytes_per_second = host_bytes_per_second
        self.host_operation_seconds = host_operation_seconds
        """What PyTorch takes of the host beyond each launch, whatever the number of launches."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = runtime().nullcuda_num_launches()
        runtime().nullcuda_kernels_are_told(True)
        try:
            out = func(*args, **kwargs)
        finally:
            runtime().nullcuda_kernels_are_told(False)
        if runtime().nullcuda_num_launches() != before:
            runtime().nullcuda_host_work(self.host_operation_seconds)
            stream = torch.cuda.current_stream().cuda_stream
            runtime().nullcuda_busy(stream, self.kernel_seconds(func, args, kwargs, out))
        elif func.overloadpacket.__name__ in ON_HOST:
            runtime().nullcuda_host_work(_host_bytes(args, out) / self.host_bytes_per_second)
        return out

    def kernel_seconds(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> float:
        """What the kernels of an operation take together."""
        tensors = {id(t): t for t in tree_iter((args, kwargs, out)) if isinstance(t, torch.Tensor) and t.is_cuda}
        moving_seconds = sum(map(_touched_bytes, tensors.values())) / self.memory_bytes_per_second
        packet = func.overloadpacket
        if packet.__name__ == FOUR_BIT_PRODUCT:
            return self._four_bit_seconds(*args[:2], out)
        if packet not in flop_registry:
            return moving_seconds
        flops = flop_registry[packet](*args, **kwargs, out_val=out)
        rate = self.flops_per_second * EFFICIENCIES[_kind(packet.__name__)]
        result = out if isinstance(out, torch.Tensor) else out[0]  # the rest is statistics
        if result.dtype == torch.float32:
            rate /= FLOAT32_SLOWER
        return max(moving_seconds, flops / rate)

    def _four_bit_seconds(self, rows: torch.Tensor, packed: torch.Tensor, out: torch.Tensor) -> float:
        """Of rows [..., in] by weights [out, in], two of which are packed in a byte: written as the rows are, then read."""
        weight_bytes = 2 * packed.numel() * rows.element_size()
        moved_bytes = rows.nbytes + out.nbytes + weight_bytes
        flops_seconds = 2 * rows.numel() * out.shape[-1] / (self.flops_per_second * EFFICIENCIES["matrix product"])
        return (packed.nbytes + weight_bytes) / self.memory_bytes_per_second + max(
            moved_bytes / self.memory_bytes_per_second, flops_seconds
        )


def _kind(name: str) -> str:
    return "attention" if "attention" in name else "convolution" if "conv" in name else "matrix product"


def _touched_bytes(tensor: torch.Tensor) -> int:
    """What a kernel has to see of a tensor: less than its elements, where it is expanded."""
    touched_bytes = tensor.element_size()
    for size, step in zip(tensor.shape, tensor.stride(), strict=True):
        touched_bytes *= size if step else 1
    return touched_bytes


def _host_bytes(args: Any, out: Any) -> int:
    """The bytes that an operation writes in the host's memory; 0 where it is small, has to do with the card or with fakes."""
    if type(out) not in (torch.Tensor, torch.nn.Parameter) or out.device.type != "cpu" or out.nbytes <= SMALL_BYTES:
        return 0
    return 0 if any(t.is_cuda for t in tree_iter(args) if isinstance(t, torch.Tensor)) else out.nbytes
