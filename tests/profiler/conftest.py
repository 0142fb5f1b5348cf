import pytest

from vramtune.schema import Device
from vramtune.units import GIB, MIB


@pytest.fixture(scope="session")
def device() -> Device:
    """Round figures near a small gaming card's."""
    return Device(
        name="test card",
        total_bytes=8 * GIB,
        usable_bytes=7 * GIB,
        context_bytes=300 * MIB,
        workspace_bytes=8 * MIB,
        pinned_copy_bytes_per_second=12e9,
        pageable_copy_bytes_per_second=6e9,
        readback_bytes_per_second=6e9,
        overlap_fraction=0.9,
        copy_latency_seconds=1e-5,
        flops_per_second={"float32": 10e12, "float16": 20e12},
        memory_bytes_per_second=250e9,
        efficiency_fraction={"matmul": 0.7, "convolution": 0.5, "attention": 0.6, "pointwise": 0.5, "memory": 0.8},
        launch_seconds=4e-6,
    )
