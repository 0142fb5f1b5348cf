from collections.abc import Iterator
from types import ModuleType

import pytest

from vramtune.machine import live

# Slow, so that few operations of the host are enough to measure; every figure is another.
TRUTH = {
    "flops_per_second": 40e9,
    "memory_bytes_per_second": 600e6,
    "launch_seconds": 4e-6,
    "pinned_copy_bytes_per_second": 25e6,
    "pageable_copy_bytes_per_second": 6e6,
    "readback_bytes_per_second": 3e6,
    "copy_latency_seconds": 12e-6,
}


@pytest.fixture
def slow(sim: ModuleType) -> Iterator[ModuleType]:
    """The simulated accelerator at the rates of `TRUTH`, not measured yet."""
    sim.set_rates(**TRUTH)
    live.probe.cache_clear()
    yield sim
    live.probe.cache_clear()
