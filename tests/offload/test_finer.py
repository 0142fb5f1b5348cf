"""A plan that moves finer groups, at work: the same bits, as much moved and as much memory as was planned."""

import torch

from tests import tiny_pipelines
from tests.offload.tuned_pipelines import planned, tuned, whole

NAME, FRACTION, COPY_TO_COMPUTE = "flux", 0.4, 4.0


def test_it_moves_what_was_planned_and_gives_the_same_bits(sim):
    wanted = tiny_pipelines.run(whole(NAME), NAME).cpu()
    plan = planned(NAME, FRACTION, copy_to_compute=COPY_TO_COMPUTE)
    assert plan.is_finer
    with tuned(NAME, FRACTION, copy_to_compute=COPY_TO_COMPUTE) as (pipe, runtime):
        for _ in range(2):
            assert torch.equal(tiny_pipelines.run(pipe, NAME).cpu(), wanted)
        measured = runtime.measured
        assert measured.moved_bytes == plan.estimate.moved_bytes
        assert measured.peak_bytes <= plan.budget_bytes
        assert abs(measured.seconds / plan.estimate.seconds - 1) < 0.02
