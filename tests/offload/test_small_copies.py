"""What pipelines copy to the device in every step beside the weights: it neither waits for them nor makes them wait."""

import functools
import gc
from types import ModuleType

import pytest
import torch

from tests.classes.families import FAMILIES
from tests.offload.tuned_pipelines import at_link_ratio
from tests.simgpu import load
from tests.simgpu.prediction import RATES, predicted_call
from vramtune.offload.inputs import SMALL_BYTES, Brought, to_device
from vramtune.offload.install import install
from vramtune.schema import Profile
from vramtune.tuner.budget import MARGIN_FRACTION
from vramtune.tuner.search import choose_plan
from vramtune.tuner.stock_modes import stock_modes

NUM_STEPS = 4


@functools.cache
def traced(name: str) -> Profile:
    load().set_rates(**RATES)
    family = FAMILIES[name]
    return predicted_call(family.pipe(), family.inputs() | {"num_inference_steps": NUM_STEPS})


def seconds_and_peak(name: str, pipe: object) -> tuple[float, int]:
    """Virtual seconds and peak bytes of a call that follows another one."""
    sim, family = load(), FAMILIES[name]
    for _ in range(2):
        gc.collect()
        sim.synchronize()
        sim.reset()
        pipe(**family.inputs() | {"num_inference_steps": NUM_STEPS})  # type: ignore[operator]
        sim.synchronize()
    return sim.virtual_seconds(), sim.max_memory_allocated()


@pytest.mark.filterwarnings("ignore")  # diffusers' own, of its own code
@pytest.mark.parametrize(
    "ratio", [pytest.param(0.3, marks=pytest.mark.slow), 1.0, pytest.param(4.0, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["aura_flow", "hunyuan_dit", "stable_audio"])
def test_a_pipeline_that_waits_for_small_copies_in_every_step_is_as_fast_as_predicted(
    sim: ModuleType, no_garbage: None, name: str, ratio: float
) -> None:
    """The first two make timesteps on the host, the third has rotary tables there."""
    profile = at_link_ratio(traced(name), ratio)
    resident_seconds, peak = seconds_and_peak(name, FAMILIES[name].pipe().to("sim"))
    (predicted,) = [m.seconds for m in stock_modes(profile) if m.mode == "all resident"]
    whole = peak / (1 - MARGIN_FRACTION)
    for fraction in (0.8, 0.4):
        budget = int(whole - (1 - fraction) * sum(component.used_bytes for component in profile.components))
        plan = choose_plan(profile, budget, margin_fraction=MARGIN_FRACTION)
        with install(pipe := FAMILIES[name].pipe(), plan, device="sim"):
            seconds, peak = seconds_and_peak(name, pipe)
        assert peak <= budget
        assert seconds - (resident_seconds - predicted) == pytest.approx(plan.estimate.seconds, rel=0.02)


# ---------------------------------------------------------------------------------------------------
# Inputs that are known again


def bring(inputs: object, known: list[Brought] | None = None) -> tuple[object, list[Brought]]:
    return to_device(inputs, torch.device("sim", 0), known or [])


def test_an_input_that_is_the_same_is_copied_once(sim: ModuleType) -> None:
    table, kept = torch.rand(4, 4), torch.rand(2, device="sim")
    first, known = bring(((kept, table), {"pair": (table[1], 3)}))
    num_copies = sim.counters().num_copies_in
    again, known = bring(((kept, table.clone()), {"pair": (table[1].clone(), 3)}), known)
    assert sim.counters().num_copies_in == num_copies
    assert again[0][0] is kept
    assert again[0][1] is first[0][1]
    assert again[1]["pair"][0] is first[1]["pair"][0]
    assert torch.equal(again[0][1].cpu(), table)
    other, known = bring(((kept, table.T), {}), known)
    assert torch.equal(other[0][1].cpu(), table.T)
    assert len(known) == 1


def test_an_input_whose_bits_changed_is_copied_again(sim: ModuleType) -> None:
    table = torch.zeros(3)
    _, known = bring(table)
    table.numpy()[1] = -0.0
    there, known = bring(table, known)
    assert there.cpu().signbit().tolist() == [False, True, False]


def test_a_copy_that_a_component_wrote_to_is_not_used_again(sim: ModuleType) -> None:
    there, known = bring(torch.zeros(3))
    there.add_(1)
    again, _ = bring(torch.zeros(3), known)
    assert again.cpu().tolist() == [0, 0, 0]


def test_two_inputs_that_are_the_same_have_a_copy_each(sim: ModuleType) -> None:
    _, known = bring(torch.zeros(3))
    (one, other), _ = bring((torch.zeros(3), torch.zeros(3)), known)
    assert one.data_ptr() != other.data_ptr()


@pytest.mark.parametrize(
    "unknown",
    [
        torch.zeros(3, requires_grad=True),
        torch.zeros(SMALL_BYTES + 1, dtype=torch.uint8),
        torch.nn.Parameter(torch.zeros(3), requires_grad=False),
    ],
)
def test_what_is_large_or_more_than_a_tensor_is_copied_every_time(sim: ModuleType, unknown: torch.Tensor) -> None:
    there, known = bring(unknown)
    assert there.device.type == "sim"
    assert known == []


def test_what_was_copied_under_inference_mode_is_copied_every_time(sim: ModuleType) -> None:
    with torch.inference_mode():
        there, known = bring(torch.zeros(3))
    assert there.device.type == "sim"
    assert known == []
