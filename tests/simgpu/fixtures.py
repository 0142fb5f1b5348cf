"""The simulated accelerator as a pytest fixture; a folder's `conftest.py` imports what it needs from here."""

import gc
from collections.abc import Iterator
from dataclasses import asdict
from types import ModuleType

import pytest

from tests.simgpu import SimBuildError, load


def load_or_fail() -> ModuleType:
    """`torch.sim`; a test on a machine that cannot build it fails with one line, not with a compiler's log."""
    try:
        return load()
    except SimBuildError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def built_sim() -> ModuleType:
    """`torch.sim` as it is; a build that fails is tried once."""
    return load_or_fail()


@pytest.fixture
def sim(built_sim: ModuleType) -> Iterator[ModuleType]:
    """`torch.sim` at its default rates and capacities, on device 0, with clock and counters at zero."""
    restore(built_sim)
    yield built_sim
    restore(built_sim)


@pytest.fixture
def no_garbage() -> None:
    """Nothing of earlier tests, such as a raised error's frames, frees device memory in the middle of this one."""
    gc.collect()


def restore(sim: ModuleType) -> None:
    """The state a fresh process starts in, but for the memory that is still held."""
    sim.set_rates(**asdict(sim.Rates()))
    for index in range(sim.device_count()):
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES, index)
    sim.set_pinned_capacity(2**62)
    sim.set_device(0)
    sim.reset()
