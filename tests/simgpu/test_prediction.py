"""What vramtune predicts of a call, beside what the simulated accelerator counts."""

import statistics

import pytest

from tests import tiny_pipelines
from tests.simgpu.prediction import RATES, both, counted_activation_bytes, deviation, predicted_activation_bytes

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", tiny_pipelines.CALL)
def test_stock_modes_take_what_the_predictor_says(sim, name):
    """Seconds within 5% of virtual time, peak within 2% of the counters.

    What is left: the copies of prompts and latents to the device, and small work on the way.
    """
    sim.set_rates(**RATES)
    for predicted, counted in both(name):
        assert abs(deviation(predicted.seconds, counted.seconds)) <= 0.05, predicted.mode
        assert abs(deviation(predicted.peak_bytes, counted.peak_bytes)) <= 0.02, predicted.mode
        assert predicted.moved_bytes == pytest.approx(counted.moved_bytes, rel=0.05, abs=12_000)


def test_activation_peaks_are_what_the_counters_say(sim):
    """Per component over all seven: median error 0, worst 2%."""
    errors = []
    for name in tiny_pipelines.CALL:
        predicted, counted = predicted_activation_bytes(name), counted_activation_bytes(name)
        assert predicted.keys() == counted.keys()
        errors += [abs(deviation(predicted[called], counted[called])) for called in counted]
    assert statistics.median(errors) == 0
    assert max(errors) <= 0.02
