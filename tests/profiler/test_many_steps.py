"""A call of very many steps is not followed step by step, and costs what it would if it were."""

import time
from dataclasses import replace

import pytest
from diffusers import DDIMScheduler, HeunDiscreteScheduler

from tests import tiny_pipelines
from vramtune.errors import UsageError
from vramtune.predict import predict_profile
from vramtune.profiler import many_steps
from vramtune.profiler.follow import follow
from vramtune.tuner.comparison import compare_plan
from vramtune.tuner.search import choose_plan
from vramtune.tuner.simulate import DRAWN, timeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of Heun's scheduler


def predict(pipe, device, num_steps):
    call = {"prompt": "a cat", **tiny_pipelines.CALL["sd15"], "num_inference_steps": num_steps}
    return predict_profile(pipe, call_kwargs=call, device=device)


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipelines.build("sd15")
    pipe.scheduler = HeunDiscreteScheduler()
    return pipe


def test_it_costs_what_it_would_if_every_step_were_followed(pipe, device, monkeypatch):
    drawn_out = predict(pipe, device, 110)
    monkeypatch.setattr(many_steps, "MANY", 1000)
    followed = predict(pipe, device, 110)
    assert [stage.num_iterations for stage in followed.stages] == [2, 219, 1]  # Heun's: two a step but the last
    for ours, whole in zip(drawn_out.stages, followed.stages, strict=True):
        assert (ours.name, ours.num_iterations, ours.activities) == (whole.name, whole.num_iterations, whole.activities)
        assert abs(ours.pipeline_bytes - whole.pipeline_bytes) <= 2048
        assert ours.pipeline_seconds == pytest.approx(whole.pipeline_seconds, rel=0.05)
    assert drawn_out.workload == followed.workload


def test_a_million_steps_are_answered_as_fast_as_fifty(pipe, device):
    began = time.process_time()
    predict(pipe, device, 50)
    fifty = time.process_time() - began
    profile = predict(pipe, device, 10**6)
    plan = choose_plan(profile, 6 * 2**30)
    compare_plan(profile, plan)
    drawn = timeline(profile, plan)
    assert time.process_time() - began - fifty < 2 * fifty + 1
    assert profile.stages[1].num_iterations == 2 * 10**6 - 1
    assert max(span.iteration for span in drawn.spans) < DRAWN
    assert drawn.memory[-1].end_seconds == pytest.approx(plan.estimate.seconds, rel=1e-6)


def test_runs_that_are_not_alike_are_not_drawn_out(pipe):
    call = {"prompt": "a cat", **tiny_pipelines.CALL["sd15"], "num_inference_steps": 10}
    trace = follow(pipe, call_kwargs=call)
    (run,) = trace.runs
    assert many_steps.are_alike(run, run.with_steps(40), trace.calls)
    assert not many_steps.are_alike(run, replace(run, turns=run.turns[:-1]), trace.calls)  # nothing is decoded
    assert not many_steps.are_alike(run, replace(run, turns=run.turns[1:]), trace.calls)


def test_what_the_scheduler_refuses_is_refused(pipe, device, monkeypatch):
    monkeypatch.setattr(pipe, "scheduler", DDIMScheduler())
    with pytest.raises(UsageError, match=r"DDIMScheduler refuses num_inference_steps=2000\. .*cannot be larger"):
        predict(pipe, device, 2000)


def test_more_steps_than_anybody_waits_for_are_refused(pipe, device):
    with pytest.raises(UsageError, match="too many: at most 1000000"):
        predict(pipe, device, 10**6 + 1)
