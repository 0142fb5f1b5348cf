"""Where CUDA's kernels allocate otherwise than the CPU's, the trace follows the device's."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vramtune.profiler.roofline import Work
from vramtune.profiler.trace import ComponentMethod, trace_call
from vramtune.profiler.tracker import Allocation

MODE = FakeTensorMode(allow_non_fake_inputs=True)


def traced(make, x, kernels):
    with MODE:
        module = make()
    target = ComponentMethod(component="part", method="forward", module=module, run=module.forward, called="")
    return trace_call(target, ((x,), {}), MODE, is_known=lambda tensor: False, kernels=kernels)


def kernels_of(trace):
    return [entry for entry in trace.tape if isinstance(entry, Work)]


def born_bytes(trace):
    return sum(entry.num_bytes for entry in trace.tape if isinstance(entry, Allocation) and entry.num_bytes > 0)


def test_rms_norm_is_one_kernel_on_cuda_and_many_on_the_cpu() -> None:
    x = torch.zeros(4, 64)
    cuda, cpu = (traced(lambda: nn.RMSNorm(64), x, kernels) for kernels in ("cuda", "cpu"))
    assert len(kernels_of(cuda)) == 1
    assert len(kernels_of(cpu)) > 3
    assert cuda.outputs.shape == cpu.outputs.shape
    assert born_bytes(cuda) < born_bytes(cpu)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # PyTorch says the same
def test_rms_norm_in_another_dtype_than_its_weight_is_taken_apart_on_cuda_too() -> None:
    traces = [traced(lambda: nn.RMSNorm(64), torch.zeros(4, 64, dtype=torch.bfloat16), k) for k in ("cuda", "cpu")]
    assert traces[0].tape == traces[1].tape


@pytest.mark.parametrize(("kernels", "is_copied"), [("cuda", True), ("cpu", False)])
def test_group_norm_makes_its_input_contiguous_on_cuda(kernels, is_copied) -> None:
    x = torch.zeros(1, 8, 32, 32).to(memory_format=torch.channels_last)
    trace = traced(lambda: nn.GroupNorm(2, 8), x, kernels)
    assert trace.outputs.is_contiguous() == is_copied
    assert (len(kernels_of(trace)) == 2) == is_copied
    assert (born_bytes(trace) >= 2 * x.nbytes) == is_copied


def test_what_is_contiguous_is_not_copied() -> None:
    x = torch.zeros(1, 8, 32, 32)
    traces = [traced(lambda: nn.GroupNorm(2, 8), x, kernels) for kernels in ("cuda", "cpu")]
    assert traces[0].tape == traces[1].tape
