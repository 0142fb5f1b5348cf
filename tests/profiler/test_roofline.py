import pytest
import torch

from vramtune.profiler.roofline import Work, attention_flops, work_seconds
from vramtune.profiler.tracker import Tracker


def work_of(run):
    tracker = Tracker({})
    with torch.no_grad(), tracker:
        run()
    return [entry for entry in tracker.tape if isinstance(entry, Work)]


def test_a_large_product_takes_its_flops_at_the_rate_of_its_dtype(device):
    work = Work("matmul", "float16", flops=10**12, num_bytes=1000)
    expected = 1e12 / (20e12 * 0.7)
    assert work_seconds(work, device) == pytest.approx(expected + device.launch_seconds)


def test_a_dtype_without_a_rate_is_computed_as_float32(device):
    slow = Work("matmul", "bfloat16", flops=10**12, num_bytes=0)
    assert work_seconds(slow, device) == work_seconds(slow._replace(dtype="float32"), device)


def test_pointwise_work_takes_its_bytes_at_the_bandwidth(device):
    work = Work("pointwise", "float16", flops=0, num_bytes=10**9)
    expected = 1e9 / (250e9 * 0.8)
    assert work_seconds(work, device) == pytest.approx(expected + device.launch_seconds)


def test_a_product_counts_its_flops_and_all_its_bytes():
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert work_of(lambda: left @ right) == [
        Work("matmul", "float32", flops=2 * 3 * 5 * 7, num_bytes=4 * (15 + 35 + 21))
    ]


def test_a_convolution_counts_every_output_element():
    image, kernel = torch.ones(1, 2, 8, 8), torch.ones(4, 2, 3, 3)
    (work,) = work_of(lambda: torch.nn.functional.conv2d(image, kernel, padding=1))
    assert (work.kind, work.flops) == ("convolution", 2 * 8 * 8 * 4 * 2 * 3 * 3)


def test_fused_attention_counts_both_of_its_products():
    query, key = torch.ones(2, 3, 10, 8), torch.ones(2, 3, 6, 8)
    (work,) = work_of(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key))
    assert (work.kind, work.flops) == ("narrow_attention", attention_flops(query, key, key))
    assert work.flops == 2 * 3 * (2 * 10 * 6 * 8) * 2


def test_views_and_empty_memory_start_no_kernel():
    tensor = torch.ones(4, 4)
    assert work_of(lambda: (tensor.t(), tensor[1:], tensor.view(16), torch.empty(100))) == []


def test_a_lookup_reads_as_much_as_it_writes_not_the_whole_table():
    table, index = torch.ones(1000, 4), torch.tensor([1, 2])
    (work,) = work_of(lambda: torch.nn.functional.embedding(index, table))
    assert work.num_bytes == 2 * (2 * 4 * 4)


def test_an_expanded_operand_counts_the_bytes_that_exist():
    row, square = torch.ones(1, 4), torch.ones(4, 4)
    (work,) = work_of(lambda: row.expand(4, 4) * square)
    assert work.num_bytes == 4 * (4 + 16 + 16)
