"""What needs a CUDA GPU: run with `make gpu`; fails without one."""

import pytest
import torch

from vramtune.profiler.device import this_gpu
from vramtune.units import GIB


@pytest.mark.gpu
def test_this_machines_gpu_is_known_and_its_memory_is_the_drivers() -> None:
    device = this_gpu()
    free, total = torch.cuda.mem_get_info()
    assert device.usable_bytes <= total
    assert device.usable_bytes <= free + GIB  # NVML was asked before mem_get_info made its context
    assert device.total_bytes == pytest.approx(total, rel=0.1)
