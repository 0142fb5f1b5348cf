"""Every tiny pipeline under its plan: the same bits, within the budget, as fast as predicted, faster than stock."""

import gc
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from tests import tiny_pipelines
from tests.offload.tuned_pipelines import planned, profiled, resident_bytes, weight_bytes
from tests.simgpu import load
from tests.simgpu.prediction import COUNTED_AS
from tests.simgpu.stock_modes import MODES, on_cpu
from vramtune.offload.install import install
from vramtune.schema import Measurement, Plan, Profile
from vramtune.tuner.budget import MARGIN_FRACTION
from vramtune.tuner.search import choose_plan
from vramtune.tuner.stock_modes import stock_modes

FRACTIONS = (1.0, 0.8, 0.6, 0.4)
"""Fractions of the used weights that have room."""
FAR = 1.25
"""Stock modes predicted to take longer than this many times the plan are run by `make proofs` alone.

Predictions of stock modes are within 5%.
"""
TOLERANCE = 0.02
"""Highest relative error of a plan's predicted seconds."""
SLOW = pytest.mark.slow
SMALL_ARGUMENTS_BYTES = 512
"""Highest bytes of arguments that a pipeline leaves on the host (LTX a mask), which hooks bring to the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A call that follows another one, as the device counted it; memory without what was there before."""

    output: torch.Tensor
    seconds: float
    peak_bytes: int
    moved_bytes: int
    moved_back_bytes: int


def counted(pipe: object, name: str, base_bytes: int) -> Counted:
    """The second of two calls, up to its last operation."""
    sim = load()
    tiny_pipelines.run(pipe, name)
    gc.collect()
    sim.synchronize()
    sim.reset()
    output = tiny_pipelines.run(pipe, name)
    sim.synchronize()
    seconds, counters, peak = sim.virtual_seconds(), sim.counters(), sim.max_memory_allocated()
    return Counted(
        output=output.cpu(),
        seconds=seconds,
        peak_bytes=peak - base_bytes,
        moved_bytes=counters.moved_bytes,
        moved_back_bytes=counters.moved_back_bytes,
    )


def stock(name: str, mode: str) -> Counted:
    """A stock mode, as much memory as it likes."""
    sim = load()
    pipe = tiny_pipelines.build(name)
    gc.collect()
    base = sim.memory_allocated()
    MODES[COUNTED_AS[mode]](pipe)
    return counted(pipe, name, base)


def tuned(name: str, plan: Plan, capacity_bytes: int) -> tuple[Counted, Measurement]:
    """The plan installed, on a device that holds no more than that."""
    sim = load()
    pipe = tiny_pipelines.build(name)
    gc.collect()
    base = sim.memory_allocated()
    sim.set_capacity(base + capacity_bytes)
    try:
        with install(pipe, plan, device="sim") as runtime:
            call = counted(pipe, name, base)
            measured = runtime.measured
            assert measured is not None
            at_rest = sim.memory_allocated()
        # the scheduler keeps a tensor of its own there
        assert at_rest - sim.memory_allocated() == resident_bytes(plan)
        assert call.peak_bytes <= capacity_bytes
    finally:
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
    return call, measured


@pytest.mark.parametrize("ratio", [0.5, *(pytest.param(ratio, marks=SLOW) for ratio in (1.0, 2.0, 5.0))])
@pytest.mark.parametrize("name", tiny_pipelines.CALL)
def test_a_tuned_pipeline_keeps_bits_budget_and_predicted_time_and_no_near_stock_mode_is_faster(
    sim, no_garbage, name, ratio
):
    """Prompts and latents are copied alike by every mode and are in no estimate."""
    profile = profiled(name, copy_to_compute=ratio)
    modes = predicted_modes(name, profile)
    resident = stock(name, "all resident")
    inputs_seconds = resident.seconds - modes["all resident"]
    rivals = {"all resident": resident}
    for budget in budgets(name, resident):
        plan = choose_plan(profile, budget, margin_fraction=MARGIN_FRACTION)
        call, measured = tuned(name, plan, budget)
        assert torch.equal(call.output, on_cpu(name))
        assert measured.num_out_of_memory == 0
        assert call.moved_back_bytes == 0
        assert measured.moved_bytes == plan.estimate.moved_bytes
        assert call.moved_bytes <= plan.estimate.moved_bytes + resident.moved_bytes + SMALL_ARGUMENTS_BYTES
        assert call.seconds - inputs_seconds == pytest.approx(plan.estimate.seconds, rel=TOLERANCE)
        near = [mode for mode, seconds in modes.items() if seconds < FAR * plan.estimate.seconds]
        rivals |= {mode: stock(name, mode) for mode in near if mode not in rivals}
        fitting = [rivals[mode].seconds for mode in near if rivals[mode].peak_bytes <= budget]
        assert call.seconds <= 1.01 * min(fitting, default=float("inf"))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("name", tiny_pipelines.CALL)
def test_no_far_stock_mode_is_faster_than_a_plan_takes_at_most(sim, no_garbage, name, ratio):
    """The near ones, and that a plan takes no longer, are the test above."""
    profile = profiled(name, copy_to_compute=ratio)
    modes = predicted_modes(name, profile)
    rivals = {mode: stock(name, mode) for mode in modes}
    inputs_seconds = rivals["all resident"].seconds - modes["all resident"]
    for budget in budgets(name, rivals["all resident"]):
        estimate = choose_plan(profile, budget, margin_fraction=MARGIN_FRACTION).estimate
        far = [mode for mode, seconds in modes.items() if seconds >= FAR * estimate.seconds]
        fitting = [rivals[mode].seconds for mode in far if rivals[mode].peak_bytes <= budget]
        most = (1 + TOLERANCE) * estimate.seconds + inputs_seconds
        assert most <= 1.01 * min(fitting, default=float("inf"))


def predicted_modes(name: str, profile: Profile) -> dict[str, float]:
    """Predicted seconds by stock mode, without those that fail (LTX at block level)."""
    return {m.mode: m.seconds for m in stock_modes(profile) if not (name == "ltx" and "block" in m.mode)}


def budgets(name: str, resident: Counted) -> list[int]:
    """Budgets that have room for everything else that a call needs and a fraction of the weights."""
    whole = int(resident.peak_bytes / (1 - MARGIN_FRACTION)) + 1
    return [whole - int((1 - fraction) * weight_bytes(name)) for fraction in FRACTIONS]


def test_other_hooks_see_the_weights_on_the_device(sim: ModuleType) -> None:
    plan, pipe, seen = planned("flux"), tiny_pipelines.build("flux"), []

    def look(module: torch.nn.Module, _: object) -> None:
        seen.extend(parameter.device.type for parameter in module.parameters())

    for placement in plan.placements:
        for group in placement.groups[1:]:
            for path in group.modules:
                pipe.components[placement.component].get_submodule(path).register_forward_pre_hook(look)
    with install(pipe, plan, device="sim"):
        tiny_pipelines.run(pipe, "flux")
    assert set(seen) == {"sim"}
