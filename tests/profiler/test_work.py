from dataclasses import replace

import pytest
import torch

from vramtune.pricing.roofline import HEAVY_OPERATIONS, host_seconds, work_seconds
from vramtune.profiler.operations import attention_flops, attention_kind
from vramtune.profiler.tracker import Tracker
from vramtune.schema import Work


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
    assert (work.kind, work.flops) == ("attention", attention_flops(query, key, key))
    assert work.flops == 2 * 3 * (2 * 10 * 6 * 8) * 2


def test_the_kind_of_16_bit_attention_is_by_its_mask_and_the_width_of_its_heads():
    assert attention_kind(64, "bfloat16", is_masked=False) == "narrow_attention"
    assert attention_kind(128, "bfloat16", is_masked=False) == "attention"
    assert attention_kind(512, "float16", is_masked=False) == "wide_attention"
    assert attention_kind(64, "float16", is_masked=True) == "masked_attention"
    assert attention_kind(512, "float32", is_masked=True) == "attention"


def test_a_kind_of_attention_without_a_share_of_its_own_takes_attentions(device):
    narrow = Work("narrow_attention", "float16", flops=10**12, num_bytes=0)
    assert work_seconds(narrow, device) == work_seconds(narrow._replace(kind="attention"), device)


def test_a_mask_makes_attention_masked():
    query, mask = torch.ones(1, 2, 8, 64, dtype=torch.bfloat16), torch.ones(8, 8, dtype=torch.bool)
    (*_, work) = work_of(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask))
    assert work.kind == "masked_attention"


def test_a_float32_convolution_is_one_in_tensorfloat32_where_pytorch_lets_it(monkeypatch):
    image, kernel = torch.ones(1, 2, 8, 8), torch.ones(4, 2, 3, 3)
    convolve = lambda: torch.nn.functional.conv2d(image, kernel)  # noqa: E731
    assert work_of(convolve)[0].dtype == "tensorfloat32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert work_of(convolve)[0].dtype == "float32"
    assert work_of(lambda: torch.ones(2, 2) @ torch.ones(2, 2))[-1].dtype == "float32"  # PyTorch's default


def test_float32_attention_is_three_products_in_tensorfloat32_where_that_is_faster(device):
    work = Work("attention", "float32", flops=10**12, num_bytes=0)
    slow = work_seconds(work, device)
    rates = device.flops_per_second
    fast = replace(device, flops_per_second=rates | {"tensorfloat32": 6 * rates["float32"]})
    assert work_seconds(work, fast) - device.launch_seconds == pytest.approx((slow - device.launch_seconds) / 2)
    none = replace(device, flops_per_second=rates | {"tensorfloat32": 2 * rates["float32"]})
    assert work_seconds(work, none) == slow


def test_a_convolution_adds_the_passes_that_bring_its_images_into_another_order(device):
    image, kernel = torch.ones(1, 2, 8, 8, dtype=torch.float16), torch.ones(4, 2, 3, 3, dtype=torch.float16)
    (work,) = work_of(lambda: torch.nn.functional.conv2d(image, kernel, padding=1))
    assert (work.layout_in_bytes, work.layout_out_bytes) == (2 * 64 * 2, 2 * 64 * 4)
    passes = 2 * (2 * 64 * 6) / (250e9 * 0.8)
    assert work_seconds(work, device) == pytest.approx(work_seconds(work, replace(device, kernels="cpu")) + passes)
    last = image.to(memory_format=torch.channels_last)
    assert work_of(lambda: torch.nn.functional.conv2d(last, kernel, padding=1))[0].layout_in_bytes == 0


def test_group_norm_goes_through_the_elements_of_a_group_one_by_one(device):
    image = torch.ones(2, 8, 4, 4)
    (work,) = work_of(lambda: torch.nn.functional.group_norm(image, 4))
    assert (work.kind, work.num_elements, work.num_blocks) == ("group_norm", 256, 8)
    slow = replace(device, multiprocessors=20, elements_per_second={"group_norm": 1e6})
    traffic = work_seconds(work, device)
    assert work_seconds(work, slow) == pytest.approx(traffic + 256 / 8 / 1e6)
    few = replace(slow, multiprocessors=2)
    assert work_seconds(work, few) == pytest.approx(traffic + 256 / 2 / 1e6)


def test_pointwise_on_broadcast_or_strided_operands_goes_element_by_element(device):
    square, row = torch.ones(4, 4), torch.ones(4)
    kinds = [
        work.kind
        for run in (lambda: square * square, lambda: square * row, lambda: square.t() + square, lambda: square * 2)
        for work in work_of(run)
    ]
    assert kinds == ["pointwise", "strided", "strided", "pointwise"]
    work = Work("strided", "float16", flops=0, num_bytes=1000, num_elements=10**6)
    slow = replace(device, multiprocessors=10, elements_per_second={"strided": 1e6})
    assert work_seconds(work, slow) == pytest.approx(0.1 + device.launch_seconds)


def test_the_host_takes_longer_for_heavy_operations(device):
    host = replace(device, operation_seconds=1e-5)
    light, heavy = (Work(kind, "float16", 0, 0) for kind in ("pointwise", "narrow_attention"))
    assert host_seconds(light, host) == 1e-5
    assert host_seconds(heavy, host) == HEAVY_OPERATIONS * 1e-5
    assert host_seconds(heavy, device) == 0


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
