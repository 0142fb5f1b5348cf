"""A trace says what a call does; its price on a device is the profile that a trace for that device would give."""

from dataclasses import replace

import pytest

from tests import tiny_pipelines
from vramtune.catalog.shipped import shipped_trace
from vramtune.errors import FileError, UsageError
from vramtune.machine.gpus import find_gpu
from vramtune.predict import predict_profile
from vramtune.pricing.price import price
from vramtune.pricing.reserved import with_reserved
from vramtune.profiler.follow import follow
from vramtune.schema import Trace, TracedCall

GPU = find_gpu("RTX 4060")
STEPS = (1, 2, 5, 12, 30, 90)


def call_of(name, num_steps):
    return {"prompt": "a cat", **tiny_pipelines.CALL[name], "num_inference_steps": num_steps}


@pytest.fixture(scope="module", params=["sd15", "flux"])
def traced(request):
    """A pipeline, and the trace of its call of 8 steps that knows for which others it stands."""
    pipe = tiny_pipelines.build(request.param)
    return (
        request.param,
        pipe,
        follow(pipe, call_kwargs=call_of(request.param, 8), allow=["fp8_weights"], try_steps=STEPS),
    )


def test_it_is_the_same_trace_once_it_was_written_and_read(traced, tmp_path):
    _, _, trace = traced
    trace.save(tmp_path / "call.trace")
    assert Trace.load(tmp_path / "call.trace") == trace
    assert price(Trace.load(tmp_path / "call.trace"), GPU) == price(trace, GPU)


def test_for_the_steps_that_it_stands_for_it_has_the_price_of_a_trace_of_its_own(traced):
    name, pipe, trace = traced
    assert {8, 12, 30} <= {*trace.exact_steps}
    for num_steps in trace.exact_steps:
        call = call_of(name, num_steps)
        assert price(trace.with_steps(num_steps), GPU) == predict_profile(
            pipe, call_kwargs=call, device=GPU, allow=["fp8_weights"]
        )


def test_it_stands_for_no_steps_that_were_not_tried_or_are_another_call(traced):
    _, _, trace = traced
    assert 1 not in trace.exact_steps  # no loop at all
    for num_steps in (1, 7, 1000):
        with pytest.raises(ValueError, match=f"with {num_steps} steps it is another call"):
            trace.with_steps(num_steps)


def test_what_the_allocator_makes_of_it_is_found_once(traced, monkeypatch):
    _, _, trace = traced
    known = with_reserved(trace, [GPU.workspace_bytes, 0])
    expected = [price(trace, device) for device in (GPU, replace(GPU, workspace_bytes=0))]
    monkeypatch.setattr(TracedCall, "allocations", lambda *_, **__: pytest.fail("it was known"))
    assert [price(known, device) for device in (GPU, replace(GPU, workspace_bytes=0))] == expected


def test_a_permission_that_is_not_asked_about_is_as_if_the_call_had_not_been_followed_under_it(traced):
    name, pipe, trace = traced
    alone = predict_profile(pipe, call_kwargs=call_of(name, 8), device=GPU)
    assert price(trace, GPU, permissions=("vae_tiling",)) == alone


def test_a_device_with_other_kernels_is_refused(traced):
    _, _, trace = traced
    with pytest.raises(UsageError, match="is of cuda kernels; this one runs cpu kernels, which allocate otherwise"):
        price(trace, replace(GPU, name="this one", kernels="cpu"))


def test_a_file_that_is_none_is_refused(traced, tmp_path):
    _, _, trace = traced
    path = tmp_path / "call.trace"
    for content in (b"", b"{}", trace.to_bytes()[:-100], trace.to_bytes()[:100] + b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"Cannot load .*call\.trace"):
            Trace.load(path)


def test_parts_that_do_not_belong_together_are_refused(traced):
    _, _, trace = traced
    (run,), call = trace.runs, trace.calls[0]
    without_work, no_layer = trace.work[:1], call.segments[0]._replace(layer=10**6)
    for damaged in (
        replace(trace, work=without_work),
        replace(trace, runs=()),
        replace(trace, runs=(replace(run, turns=(run.turns[0]._replace(call=99),)),)),
        replace(trace, calls=(replace(call, segments=(no_layer,)), *trace.calls[1:])),
        replace(trace, calls=(replace(call, events=(512, -1, -1)), *trace.calls[1:])),
        replace(trace, calls=(replace(call, events=(512, -2)), *trace.calls[1:])),
    ):
        with pytest.raises(FileError, match="This Trace is damaged"):
            Trace.from_bytes(damaged.to_bytes())


@pytest.mark.parametrize("name", ["qwen-image", "qwen-image-edit-2511", "ltx-2.5", "wan2.2-i2v-a14b", "ideogram-4"])
def test_stages_have_as_many_calls_as_the_call_has(name):
    """Qwen-Image calls its transformer twice a step, for two prompts, and its very first call makes tables of its own."""
    trace = shipped_trace(name)
    stages = price(trace, GPU).stages
    num_calls = sum(stage.num_iterations * sum(activity.num_calls for activity in stage.activities) for stage in stages)
    assert num_calls == len(trace.runs[0].turns)
    if name == "qwen-image":
        assert {stage.name: stage.num_iterations for stage in stages}["transformer"] == 50
