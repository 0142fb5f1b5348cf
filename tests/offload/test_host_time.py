"""A host that takes its time: what it takes to issue operations and copies is in a plan's seconds."""

from dataclasses import replace
from types import ModuleType

import pytest

from tests.offload.test_contract import TOLERANCE, budgets, predicted_modes, stock, tuned
from tests.offload.tuned_pipelines import at_link_ratio, weight_bytes
from tests.simgpu.prediction import RATES, predicted_profile, sim_device
from vramtune.pricing import roofline
from vramtune.schema import Profile
from vramtune.tuner.budget import MARGIN_FRACTION
from vramtune.tuner.search import choose_plan


def profiled(sim: ModuleType, name: str, operation_seconds: float) -> Profile:
    """The named pipeline's profile, and the simulated device with such a host and a link to match."""
    weight_bytes(name)  # traces once, at rates of its own
    sim.set_rates(**RATES, enqueue_seconds=operation_seconds)
    profile = at_link_ratio(predicted_profile(name), 1.0)
    sim.set_rates(enqueue_seconds=operation_seconds)
    return replace(profile, device=sim_device())


@pytest.mark.parametrize(
    ("name", "operation_seconds", "reason"),
    [
        ("flux", 20e-6, "copy_bound"),  # the host is ahead of the GPU
        ("flux", 60e-6, "host_bound"),  # it is not
        pytest.param("sdxl", 200e-6, "host_bound", marks=pytest.mark.slow),
    ],
)
def test_a_plan_takes_as_long_as_predicted_where_the_host_has_a_speed(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch, name: str, operation_seconds: float, reason: str
) -> None:
    """The simulated host takes as long for every operation; of ours, those of a group's copy and of a call count too."""
    monkeypatch.setattr(roofline, "HEAVY_OPERATIONS", 1.0)
    profile = profiled(sim, name, operation_seconds)
    resident = stock(name, "all resident")
    inputs_seconds = resident.seconds - predicted_modes(name, profile)["all resident"]
    reasons = set()
    for budget in budgets(name, resident):
        plan = choose_plan(profile, budget, margin_fraction=MARGIN_FRACTION)
        call, _ = tuned(name, plan, budget)
        assert call.seconds - inputs_seconds == pytest.approx(plan.estimate.seconds, rel=TOLERANCE)
        reasons |= {found.kind for found in plan.reasons}
    assert reason in reasons
