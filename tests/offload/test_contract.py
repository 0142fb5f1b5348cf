"""Every tiny pipeline under its plan: the same bits, within the budget, as fast as predicted, faster than stock."""

import gc
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from tests import tiny_pipelines
from tests.offload.plans import planned, profiled, resident_bytes, weight_bytes
from tests.simgpu import load
from tests.simgpu.prediction import COUNTED_AS
from tests.simgpu.stock_modes import MODES, on_cpu
from vramtune.api import MARGIN_FRACTION
from vramtune.offload.install import install
from vramtune.schema import Measurement, Plan
from vramtune.tuner.search import choose_plan
from vramtune.tuner.stock_modes import stock_modes

FRACTIONS = (1.0, 0.8, 0.6, 0.4)
"""Of the used weights, that have room beside everything else a call needs."""
RATIOS = (0.5, 1.0, 2.0, 5.0)
"""Seconds to copy the weights of the longest stage, to seconds of computing one of its iterations."""
FAR = 1.25
"""Stock modes predicted to take longer than this many times the plan are run by `pytest -m slow` alone.

Predictions are within 5%.
"""
SMALL_ARGUMENTS_BYTES = 512
"""Of arguments that a pipeline leaves on the host (LTX a mask), which hooks bring to the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A call that follows another one, as the device counted it; memory without what was there before."""

    output: torch.Tensor
    seconds: float
    peak_bytes: int
    copied_in_bytes: int
    copied_out_bytes: int


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
        copied_in_bytes=counters.copied_in_bytes,
        copied_out_bytes=counters.copied_out_bytes,
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
        with install(pipe, plan, device="sim") as installation:
            found = counted(pipe, name, base)
            measured = installation.measured
            assert measured is not None
            at_rest = sim.memory_allocated()
        # the scheduler keeps a tensor of its own there
        assert at_rest - sim.memory_allocated() == resident_bytes(plan)
        assert found.peak_bytes <= capacity_bytes
    finally:
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
    return found, measured


@pytest.mark.parametrize("far", [FAR, pytest.param(float("inf"), marks=pytest.mark.slow)])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", tiny_pipelines.CALL)
def test_a_tuned_pipeline_keeps_every_promise(sim, no_garbage, name, ratio, far):
    """Bits, budget, copies, time; prompts and latents are copied alike by every mode and are in no estimate."""
    profile = profiled(name, copy_to_compute=ratio)
    modes = {m.mode: m for m in stock_modes(profile) if not (name == "ltx" and "block" in m.mode)}
    resident = stock(name, "all resident")
    inputs_seconds = resident.seconds - modes["all resident"].seconds
    inputs_bytes = resident.copied_in_bytes
    rivals = {"all resident": resident}
    for fraction in FRACTIONS:
        budget = (
            int(resident.peak_bytes / (1 - MARGIN_FRACTION)) + 1 - int((1 - fraction) * weight_bytes(name))
        )
        plan = choose_plan(profile, budget, margin_fraction=MARGIN_FRACTION)
        found, measured = tuned(name, plan, budget)
        assert torch.equal(found.output, on_cpu(name))
        assert measured.num_out_of_memory == 0
        assert found.copied_out_bytes == 0
        assert measured.moved_bytes == plan.estimate.moved_bytes
        assert found.copied_in_bytes <= plan.estimate.moved_bytes + inputs_bytes + SMALL_ARGUMENTS_BYTES
        assert found.seconds - inputs_seconds == pytest.approx(plan.estimate.seconds, rel=0.02)
        near = [m for m in modes if modes[m].seconds < far * plan.estimate.seconds]
        rivals |= {mode: stock(name, mode) for mode in near if mode not in rivals}
        fitting = [rivals[mode].seconds for mode in near if rivals[mode].peak_bytes <= budget]
        assert found.seconds <= 1.01 * min(fitting, default=float("inf"))


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
