"""What the package asks of PyTorch is in the oldest version it allows; the tests run on a newer one."""

import re
from pathlib import Path

import torch

import vramtune

IN_2_11 = {
    "current_accelerator",
    "current_device_index",
    "current_stream",
    "device_count",
    "device_index",
    "empty_cache",
    "get_device_capability",
    "get_memory_info",
    "is_available",
    "max_memory_allocated",
    "max_memory_reserved",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
    "set_device_index",
    "set_stream",
    "synchronize",
}
"""Names of `torch.accelerator`, which grows with each release."""


def test_torch_accelerator_is_used_as_of_2_11() -> None:
    assert all(hasattr(torch.accelerator, name) for name in IN_2_11)
    sources = Path(vramtune.__file__).parent.rglob("*.py")
    used = {name for path in sources for name in re.findall(r"torch\.accelerator\.(\w+)\(", path.read_text())}
    assert used
    assert used <= IN_2_11
