"""What needs a CUDA GPU: run with `make gpu`; fails without one."""

import time
from dataclasses import astuple

import pytest
import torch

from vramtune.profiler.device import this_gpu
from vramtune.profiler.live import holders, live_device
from vramtune.units import GIB


@pytest.mark.gpu
def test_this_machines_gpu_is_known_and_its_memory_is_the_drivers() -> None:
    device = this_gpu()
    free, total = torch.cuda.mem_get_info()
    assert device.usable_bytes <= total
    assert device.usable_bytes <= free + GIB  # NVML was asked before mem_get_info made its context
    assert device.total_bytes == pytest.approx(total, rel=0.1)


@pytest.mark.gpu
def test_live_facts_are_plausible_and_soon_there() -> None:
    began = time.perf_counter()
    device = live_device(torch.device("cuda"))
    seconds = time.perf_counter() - began
    assert all(fact > 0 for fact in astuple(device) if isinstance(fact, int | float))
    assert all(rate > 0 for rate in device.flops_per_second.values())
    assert device.flops_per_second["float16"] > device.flops_per_second["float32"]
    assert all(0.1 < share < 1.2 for share in device.efficiency_fraction.values())
    assert device.pinned_copy_bytes_per_second > device.pageable_copy_bytes_per_second
    assert device.pinned_copy_bytes_per_second < device.memory_bytes_per_second
    assert device.overlap_fraction <= 1
    assert device.copy_latency_seconds < 1e-4
    assert device.launch_seconds < 1e-4
    assert device.usable_bytes <= device.total_bytes
    assert device.context_bytes < 2 * GIB
    assert device.source == "measured"
    assert seconds < 3


@pytest.mark.gpu
def test_the_others_hold_no_more_than_is_not_usable() -> None:
    device = live_device(torch.device("cuda"))
    others = holders(torch.device("cuda"))
    assert sum(holder.num_bytes or 0 for holder in others) <= device.total_bytes - device.usable_bytes + GIB


@pytest.mark.gpu
def test_probing_leaves_only_the_workspaces() -> None:
    device = live_device(torch.device("cuda"))
    assert torch.cuda.memory_reserved() <= device.workspace_bytes
