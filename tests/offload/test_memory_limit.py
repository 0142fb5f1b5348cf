"""The budget on a device that has more."""

from types import ModuleType

import pytest
import torch

from tests import tiny_pipelines
from tests.offload.tuned_pipelines import held_bytes, tuned, whole
from vramtune.offload.memory_limit import MemoryLimit

pytestmark = pytest.mark.usefixtures("no_garbage")


@pytest.fixture
def limits(sim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """PyTorch's limit on a process, as CUDA has it; the fractions that were set."""
    held_before, fractions = held_bytes(), [1.0]

    def set_fraction(fraction: float, device: torch.device) -> None:
        fractions.append(fraction)
        total_bytes = sim.DEFAULT_CAPACITY_BYTES
        sim.set_capacity(total_bytes if fraction == 1 else held_before + int(fraction * total_bytes))

    monkeypatch.setattr(sim, "get_per_process_memory_fraction", lambda device: fractions[-1], raising=False)
    monkeypatch.setattr(sim, "set_per_process_memory_fraction", set_fraction, raising=False)
    return fractions


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_larger_call_than_planned_stays_within_the_budget(sim: ModuleType, limits: list[float], name: str) -> None:
    larger = {"height": 48, "width": 48}
    want = tiny_pipelines.run(whole(name), name, **larger).cpu()
    sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
    with tuned(name, 0.8) as (pipe, runtime):
        budget_bytes = runtime.plan.budget_bytes
        for num_out_of_memory in (True, False):
            assert torch.equal(tiny_pipelines.run(pipe, name, **larger).cpu(), want)
            assert runtime.measured.peak_bytes <= budget_bytes
            assert bool(runtime.measured.num_out_of_memory) == num_out_of_memory
    assert limits == [1.0, budget_bytes / sim.DEFAULT_CAPACITY_BYTES, 1.0, *limits[-2:]]


def test_a_memory_limit_that_is_lower_already_stays(sim: ModuleType, limits: list[float]) -> None:
    limits.append(0.25)
    with MemoryLimit(torch.device("sim", 0), sim.DEFAULT_CAPACITY_BYTES // 2):
        assert limits[-1] == 0.25
    assert limits[-1] == 0.25


def test_a_memory_limit_above_the_device_is_none_and_is_put_back_as_none(sim: ModuleType, limits: list[float]) -> None:
    limits.append(2.25e9)  # what `cudaMallocAsync` tells where there is no limit; it takes no more than 1
    with MemoryLimit(torch.device("sim", 0), sim.DEFAULT_CAPACITY_BYTES // 2):
        assert limits[-1] == 0.5
    assert limits[-1] == 1
