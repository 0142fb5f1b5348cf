"""The budget on a device that has more."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch

import vramtune
from tests import tiny_pipelines
from tests.offload.tuned_pipelines import held_bytes, profiled, resident_bytes, tuned, weight_bytes, whole
from vramtune.layout import workspace_block_bytes
from vramtune.offload.memory_limit import MemoryLimit, let_go_of_workspaces
from vramtune.offload.runtime import Runtime
from vramtune.schema import Measurement
from vramtune.tuner.search import choose_plan
from vramtune.units import MIB

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


@pytest.mark.parametrize("is_first", [True, False])
def test_a_component_called_by_hand_stays_within_the_budget(
    sim: ModuleType, limits: list[float], is_first: bool
) -> None:
    with torch.no_grad():
        latents = torch.randn(1, 1, 32, 32)
        want = whole("flux").vae.decode(latents.to("sim")).sample.cpu()
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
        with tuned("flux", 0.8) as (pipe, runtime):
            budget_bytes = runtime.plan.budget_bytes
            if not is_first:
                tiny_pipelines.run(pipe, "flux")
            others = torch.empty(2**20, dtype=torch.uint8, device="sim")
            before_bytes = held_bytes() - resident_bytes(runtime.plan)
            sim.reset_peak_memory_stats()
            assert torch.equal(pipe.vae.decode(latents).sample.cpu(), want)
            assert sim.max_memory_reserved() - before_bytes <= budget_bytes
            assert limits[-2] == pytest.approx((budget_bytes + others.nbytes) / sim.DEFAULT_CAPACITY_BYTES, rel=0.01)
            assert limits[-1] == 1
            pipe.encode_prompt("a cat", "a cat", max_sequence_length=8)
            assert limits[-1] == 1


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


def test_workspaces_are_let_go_of_where_the_plan_is_not_on_the_current_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    current, asked = [0], []

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        current.append(device.index)
        yield
        current.pop()

    block = {"size": workspace_block_bytes(8 * MIB), "state": "active_allocated"}
    snapshot = [{"device": 1, "blocks": [block, block]}]
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "current_blas_handle", lambda: asked.append(current[-1]))
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: snapshot)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    assert let_go_of_workspaces(torch.device("cuda", 1), 8 * MIB)
    assert (asked, current) == ([1, 1], [0])


def reading(name: str, runtime: Runtime, pipe: Any) -> tuple[torch.Tensor, Measurement]:
    output = tiny_pipelines.run(pipe, name).cpu()
    assert runtime.measured.peak_bytes <= runtime.plan.budget_bytes
    assert runtime.measured.num_out_of_memory == 0
    return output, runtime.measured


def alone(name: str) -> tuple[torch.Tensor, Measurement]:
    """The second call with nothing else on the device, at the rates that the tests here have."""
    with tuned(name) as (pipe, runtime):
        profiled("flux")
        reading(name, runtime, pipe)
        return reading(name, runtime, pipe)


def is_like(one: tuple[torch.Tensor, Measurement], other: tuple[torch.Tensor, Measurement]) -> bool:
    """The same output, bytes and peak, and as fast."""
    (first, found), (second, expected) = one, other
    return (
        torch.equal(first, second)
        and found.moved_bytes == expected.moved_bytes
        and found.peak_bytes == pytest.approx(expected.peak_bytes, rel=0.003)
        and found.seconds == pytest.approx(expected.seconds, rel=0.02)
    )


@pytest.mark.usefixtures("limits")
def test_two_tuned_pipelines_do_not_count_against_each_others_budgets() -> None:
    expected = {name: alone(name) for name in ("sdxl", "flux")}
    with tuned("sdxl") as (first, its), tuned("flux") as (second, others):
        for _ in range(2):
            assert is_like(reading("sdxl", its, first), expected["sdxl"])
            assert is_like(reading("flux", others, second), expected["flux"])
        assert not its.overrun_bytes
        assert not others.overrun_bytes


@pytest.mark.usefixtures("limits")
def test_neither_an_untuned_pipeline_nor_a_model_that_comes_between_two_calls_counts() -> None:
    expected = alone("flux")
    untuned = whole("sd15")
    with tuned("flux") as (pipe, runtime):
        reading("flux", runtime, pipe)
        tiny_pipelines.run(untuned, "sd15")
        assert is_like(reading("flux", runtime, pipe), expected)
        model = torch.nn.Linear(1000, 1000, device="sim")
        assert is_like(reading("flux", runtime, pipe), expected)
        del model
        assert is_like(reading("flux", runtime, pipe), expected)


def test_a_pipeline_is_planned_for_what_other_models_leave_free(sim: ModuleType) -> None:
    settings = {**tiny_pipelines.CALL["flux"], "num_inference_steps": 2, "output_type": "pt"}
    costs = vramtune.profile(tiny_pipelines.build("flux"), call_kwargs=settings, progress=False)
    whole_bytes = choose_plan(costs, costs.device.usable_bytes).estimate.peak_bytes
    room_bytes = whole_bytes - weight_bytes("flux") // 3
    sim.set_capacity(held_bytes() + room_bytes + 5 * MIB)
    model = torch.empty(5 * MIB, dtype=torch.uint8, device="sim")
    with vramtune.autotune(tiny_pipelines.build("flux"), call_kwargs=settings, device="sim", progress=False) as handle:
        assert room_bytes - MIB / 10 <= handle.plan.budget_bytes <= room_bytes
    own = whole("flux")  # a pipeline's own weights are the plan's to place
    sim.set_capacity(held_bytes() + room_bytes - 5 * MIB)
    del model
    costs = vramtune.profile(own, call_kwargs=settings, progress=False)
    assert costs.device.usable_bytes >= room_bytes
