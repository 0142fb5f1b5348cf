"""Where CUDA's kernels allocate otherwise than the CPU's, the trace follows the device's."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vramtune.profiler.execution import ComponentMethod, trace_call
from vramtune.profiler.tracker import Allocation
from vramtune.schema import Work

MODE = FakeTensorMode(allow_non_fake_inputs=True)


def traced(make, x, kernels, is_known=lambda tensor: False):
    with MODE:
        module = make()
    target = ComponentMethod(component="part", method="forward", module=module, run=module.forward, called="")
    return trace_call(target, ((x,), {}), MODE, is_known=is_known, kernels=kernels)


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


def test_group_norm_takes_float32_sums_of_each_channel_and_group_on_cuda() -> None:
    x = torch.zeros(4, 256, 8, 8, dtype=torch.float16)
    cuda, cpu = (traced(lambda: nn.GroupNorm(128, 256, dtype=torch.float16), x, kernels) for kernels in ("cuda", "cpu"))
    assert born_bytes(cuda) - born_bytes(cpu) == 2 * 4 * 256 * 4 + 2 * 4 * 128 * 4


def taken(make, x):
    """Sizes that a module takes on CUDA, in KiB, 512-byte odds and ends left out; as seen on the null card."""
    sizes = [entry.num_bytes for entry in traced(make, x, "cuda").tape if isinstance(entry, Allocation)]
    return [int(size / 1024) for size in sizes if abs(size) >= 1024]


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize(
    ("image", "sizes"),
    [
        (torch.zeros(1, 8, 16, 16), [32]),
        (torch.zeros(1, 8, 16, 16).to(memory_format=torch.channels_last), [32]),
        (torch.zeros(1, 16, 8, 16).transpose(1, 2), [32, 8, -8]),
        (torch.zeros(1, 256, 8).transpose(1, 2).reshape(1, 8, 16, 16), [32, 8, -8]),  # channels last but for its batch
        (torch.zeros(1, 2, 16, 16).to(memory_format=torch.channels_last), [8, 8, 2, -2, -8]),
    ],
)
def test_nearest_neighbours_are_found_in_a_contiguous_copy_on_cuda(mode, image, sizes) -> None:
    assert taken(lambda: nn.Upsample(scale_factor=2, mode=mode), image) == sizes


@pytest.mark.parametrize(
    ("image", "sizes"),
    [
        (torch.zeros(1, 8, 16, 16), [16]),
        (torch.zeros(1, 16, 8, 16).transpose(1, 2), [8, 16, -8]),
        (torch.zeros(1, 8, 16, 16).to(memory_format=torch.channels_last), [16, 4, -4]),  # of the weights too
    ],
)
def test_a_convolution_copies_what_lies_otherwise_on_cuda(image, sizes) -> None:
    assert taken(lambda: nn.Conv2d(8, 16, 3, padding=1), image) == sizes


def test_layer_norm_copies_what_is_not_contiguous_on_cuda() -> None:
    assert taken(lambda: nn.LayerNorm(64), torch.zeros(1, 32, 64)) == [8]
    assert taken(lambda: nn.LayerNorm(64), torch.zeros(1, 64, 32).transpose(1, 2)) == [8, 8, -8]


def test_a_linear_layer_copies_rows_that_do_not_follow_one_another_and_adds_its_bias_in_place() -> None:
    assert taken(lambda: nn.Linear(64, 64), torch.zeros(2, 32, 64)) == [16]
    assert taken(lambda: nn.Linear(64, 64), torch.zeros(2, 48, 64)[:, :32]) == [16, 16, -16]
    assert taken(lambda: nn.Linear(64, 64), torch.zeros(1, 64, 32).transpose(1, 2)) == [8]


def test_of_what_is_known_too_unless_the_result_is() -> None:
    x = torch.zeros(1, 64, 32).transpose(1, 2)
    trace = traced(lambda: nn.Linear(64, 64), x, "cuda", is_known=lambda tensor: True)
    assert [kernel.kind for kernel in kernels_of(trace)] == ["matmul", "strided"]
    assert born_bytes(trace) == 32 * 64 * 4  # the bias is added in place


class Attention(nn.Module):
    def __init__(self, mask=None, **options) -> None:
        super().__init__()
        self.mask, self.options = mask, options

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=self.mask, **self.options)


def heads(width, dtype=torch.float16, length=64):
    return torch.zeros(1, length, 8, width, dtype=dtype).transpose(1, 2)


@pytest.mark.parametrize(
    ("x", "mask", "sizes"),
    [
        (heads(64), None, [64, 2]),  # flash, with the logarithms of sums
        (heads(60), None, [64, 64, 64, 64, 2]),  # padded to a multiple of 8
        (heads(512), None, [512, 1024, -1024]),  # too wide for flash: added up in float32
        (heads(64, torch.float32), None, [128]),
        (heads(64), torch.zeros(1, 1, 64, 64, dtype=torch.float16), [64]),
        (heads(64), torch.ones(1, 1, 64, 64, dtype=torch.bool), [8, 64, -8]),
        (heads(64, length=77), torch.zeros(1, 1, 77, 77, dtype=torch.float16), [12, 77, -12]),
        (heads(64), torch.zeros(1, 1, 64, 68, dtype=torch.float16)[..., :64], [9, 64, -9]),
    ],
)
def test_attention_takes_what_cudas_kernel_for_it_takes(x, mask, sizes) -> None:
    found = taken(lambda: Attention(mask), x)
    assert sorted(found[: len(sizes)]) == sorted(sizes)


def test_heads_that_no_fused_kernel_takes_go_through_scores_in_float32() -> None:
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.float16)
    assert 8 * 64 * 64 * 4 // 1024 in taken(lambda: Attention(mask), heads(60))
    assert 8 * 64 * 64 * 4 // 1024 not in taken(lambda: Attention(mask), heads(64))


def test_what_is_contiguous_is_not_copied() -> None:
    x = torch.zeros(1, 8, 32, 32)
    cuda, cpu = (traced(lambda: nn.GroupNorm(2, 8), x, kernels) for kernels in ("cuda", "cpu"))
    assert kernels_of(cuda) == kernels_of(cpu)
