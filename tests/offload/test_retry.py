"""Less memory than planned, or less than there would be."""

import contextlib
from dataclasses import replace
from functools import partial
from types import ModuleType

import pytest
import torch
from transformers import DynamicCache

from tests import tiny_pipelines
from tests.offload.tuned_pipelines import NUM_ENCODERS, held_bytes, planned, resident_bytes, tuned, weight_bytes, whole
from vramtune.offload.component_calls import ComponentCalls
from vramtune.offload.fit import held_bytes as held_bytes_in
from vramtune.offload.fit import planned_bytes
from vramtune.offload.install import install
from vramtune.offload.retry import NO_MORE_ROOM, is_out_of_memory, remember_draws, remember_inputs, with_room

pytestmark = pytest.mark.usefixtures("no_garbage")


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "wan"])
@pytest.mark.parametrize("fraction", [0.6, 1.0])
@pytest.mark.parametrize("less", [0.03, 0.15])
def test_a_call_with_less_memory_than_planned_is_right_and_the_next_one_needs_no_retry(
    sim: ModuleType, name: str, fraction: float, less: float
) -> None:
    want = tiny_pipelines.run(whole(name), name).cpu()
    before_bytes = held_bytes()
    with tuned(name, fraction) as (pipe, runtime):
        planned_bytes = runtime.plan.estimate.peak_bytes
        capacity = before_bytes + planned_bytes - int(less * weight_bytes(name))
        tiny_pipelines.run(pipe, name)  # leaves timesteps behind, with which every later call begins
        sim.set_capacity(capacity)
        first, peak_bytes = measured_call(pipe, name, runtime, want)
        assert first.num_out_of_memory > 0
        assert peak_bytes <= capacity
        assert sum(runtime.overrun_bytes.values()) > 0
        assert set(runtime.overrun_bytes) <= {stage.name for stage in runtime.plan.stages}
        second, peak_bytes = measured_call(pipe, name, runtime, want)
        assert second.num_out_of_memory == 0
        assert peak_bytes <= capacity


def measured_call(pipe, name, runtime, want):  # type: ignore[no-untyped-def]
    held_bytes()
    torch.accelerator.reset_peak_memory_stats()
    output = tiny_pipelines.run(pipe, name).cpu()
    assert torch.equal(output, want)
    return runtime.measured, runtime.measured.peak_bytes


def test_a_call_that_cannot_fit_raises_and_leaves_the_pipeline_usable(sim: ModuleType) -> None:
    want = tiny_pipelines.run(whole("flux"), "flux").cpu()
    with tuned("flux", 0.5) as (pipe, runtime):
        at_rest_bytes = held_bytes()
        sim.set_capacity(at_rest_bytes + 2**17)  # enough for what the pipeline itself makes
        with pytest.raises(torch.OutOfMemoryError) as raised:
            tiny_pipelines.run(pipe, "flux", height=128, width=128)
        assert any("vramtune" in note for note in raised.value.__notes__)
        del raised
        assert runtime.overrun_bytes
        assert runtime.measured is None
        assert held_bytes() <= at_rest_bytes
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), want)
        assert runtime.measured.num_out_of_memory == 0


def test_out_of_memory_for_a_components_inputs_counts_for_its_own_stage(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = tiny_pipelines.run(whole("flux"), "flux").cpu()
    with tuned("flux", 0.6) as (pipe, runtime):
        num_attempts = 0

        def bring(self: ComponentCalls, *inputs: object) -> object:
            nonlocal num_attempts
            num_attempts += 1
            if num_attempts == NUM_ENCODERS + 1:  # the first of the transformer
                raise torch.OutOfMemoryError("for the test")
            return brought(self, *inputs)

        brought = ComponentCalls._to_device
        monkeypatch.setattr(ComponentCalls, "_to_device", bring)
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), want)
        assert list(runtime.overrun_bytes) == ["transformer"]
        assert runtime.measured.num_out_of_memory == 1


@pytest.mark.parametrize(
    ("message", "lost_bytes"),
    [("sim out of memory. Tried to allocate 2.00 KiB.", 2048), ("CUDA out of memory. Tried to allocate 3 bytes", 3)],
)
def test_the_weights_give_up_what_was_asked_for_in_vain(sim: ModuleType, message: str, lost_bytes: int) -> None:
    failures = [torch.OutOfMemoryError(message)]

    def fail(*_: object) -> None:
        if failures:
            raise failures.pop()

    with tuned("flux", 0.6) as (pipe, runtime):
        stage = [each.name for each in runtime.plan.stages].index("transformer")
        slack_bytes = planned_bytes(runtime.plan, stage) - held_bytes_in(runtime._binding.placements, stage)
        handle = pipe.transformer.transformer_blocks[1].register_forward_hook(fail)
        tiny_pipelines.run(pipe, "flux")
        handle.remove()
        assert runtime.overrun_bytes == {"transformer": slack_bytes + lost_bytes}
        assert runtime.measured.num_out_of_memory == 1


def test_what_a_larger_call_took_is_given_back_when_the_next_call_leaves_it(sim: ModuleType) -> None:
    want = tiny_pipelines.run(whole("flux"), "flux").cpu()
    with tuned("flux", 0.6) as (pipe, runtime):
        sim.set_capacity(held_bytes() + runtime.plan.budget_bytes - resident_bytes(runtime.plan))
        tiny_pipelines.run(pipe, "flux")
        planned_moves = runtime.measured.moved_bytes
        tiny_pipelines.run(pipe, "flux", height=40, width=40)
        lost_bytes = runtime.overrun_bytes
        assert lost_bytes
        for is_given_back in (False, True):
            assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), want)
            assert runtime.measured.num_out_of_memory == 0
            assert (runtime.overrun_bytes, runtime.measured.moved_bytes == planned_moves) == (
                ({}, True) if is_given_back else (lost_bytes, False)
            )
        tiny_pipelines.run(pipe, "flux", height=40, width=40)
        for _ in range(3):  # it happens again and again: the weights keep away from then on
            tiny_pipelines.run(pipe, "flux")
            assert runtime.overrun_bytes


def test_weights_that_found_no_place_as_the_plan_was_installed_get_it_once_it_is_free(sim: ModuleType) -> None:
    plan = planned("flux", 1.0)
    plan = replace(plan, budget_bytes=plan.budget_bytes + 4096)  # another order of allocations may take a little more
    sim.set_capacity(held_bytes() + int(0.8 * resident_bytes(plan)))
    before_bytes, pipe = held_bytes(), tiny_pipelines.build("flux")
    with install(pipe, plan, device="sim") as runtime:
        assert held_bytes() - before_bytes < resident_bytes(plan)
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
        tiny_pipelines.run(pipe, "flux")
        assert runtime.measured.moved_bytes > plan.estimate.moved_bytes
        tiny_pipelines.run(pipe, "flux")
        assert runtime.measured.moved_bytes == plan.estimate.moved_bytes


def test_what_another_process_took_is_given_back_once_it_is_free(sim: ModuleType) -> None:
    with tuned("flux", 0.6) as (pipe, runtime):
        roomy = held_bytes() + runtime.plan.budget_bytes - resident_bytes(runtime.plan)
        sim.set_capacity(roomy - int(0.1 * weight_bytes("flux")))
        for _ in range(4):
            tiny_pipelines.run(pipe, "flux")
            assert runtime.overrun_bytes
        assert runtime.measured.num_out_of_memory == 0
        sim.set_capacity(roomy)
        tiny_pipelines.run(pipe, "flux")
        assert not runtime.overrun_bytes
        assert runtime.measured.num_out_of_memory == 0


def test_a_call_that_is_run_again_draws_the_same_random_numbers(sim: ModuleType) -> None:
    drawn = []

    def draw(*_: object) -> None:
        drawn.append(torch.rand(3))
        if len(drawn) == 1:
            raise torch.OutOfMemoryError("for the test")

    with tuned("flux", 0.6) as (pipe, runtime):
        handle = pipe.transformer.transformer_blocks[1].register_forward_hook(draw)
        tiny_pipelines.run(pipe, "flux")
        handle.remove()
        assert runtime.measured.num_out_of_memory == 1
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_generators_among_the_inputs_are_put_back(sim: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    go_back = remember_draws(torch.device("sim"), ((), {"generator": [generator]}))
    first = torch.rand(3, generator=generator)
    go_back()
    assert torch.equal(torch.rand(3, generator=generator), first)


@pytest.mark.parametrize(
    ("message", "is_memory"),
    [
        ("CUDA error: out of memory", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`", False),
        ("GET was unable to find an engine to execute this computation", False),
    ],
)
def test_out_of_memory_is_known_by_the_messages_of_libraries(message: str, is_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) == is_memory


@pytest.mark.parametrize("lacks_memory", [True, False])
def test_a_convolution_without_an_engine_is_run_again_if_memory_was_refused(
    sim: ModuleType, lacks_memory: bool
) -> None:
    num_calls = 0

    def call() -> str:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 1:
            return "done"
        if lacks_memory:
            sim.set_capacity(0)
            with contextlib.suppress(torch.OutOfMemoryError):  # as PyTorch does, to try cuDNN's next engine
                torch.empty(1, device="sim")
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    def run() -> object:
        return with_room(call, lambda _: True, device=torch.device("sim"))

    if lacks_memory:
        assert run() == "done"
    else:
        with pytest.raises(RuntimeError, match="unable to find an engine"):
            run()


def test_autocast_keeps_no_cast_copies_of_weights(sim: ModuleType) -> None:
    enabled = []
    with tuned("flux") as (pipe, _):
        pipe.vae.decoder.conv_in.register_forward_hook(lambda *_: enabled.append(torch.is_autocast_cache_enabled()))
        tiny_pipelines.run(pipe, "flux")
    assert enabled == [False]
    assert torch.is_autocast_cache_enabled()


def test_without_out_of_memory_there_is_no_overrun(sim: ModuleType) -> None:
    with tuned("sd15") as (pipe, runtime):
        tiny_pipelines.run(pipe, "sd15")
        assert runtime.overrun_bytes == {}
        assert runtime.measured.num_out_of_memory == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("for the test"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory"),
    ],
    ids=str,
)
def test_a_call_that_runs_out_of_memory_is_run_again_while_room_can_be_made(error: RuntimeError) -> None:
    made: list[int] = []

    def call() -> str:
        if len(made) < 2:
            raise error
        return "done"

    def make_room(_: int | None) -> bool:
        made.append(1)
        return True

    assert with_room(call, make_room, device=torch.device("cpu")) == "done"
    made.clear()
    with pytest.raises(type(error)) as raised:
        with_room(call, lambda _: False, device=torch.device("cpu"))
    assert raised.value is error


def test_room_that_cannot_be_made_for_lack_of_memory_is_made_by_giving_up_more() -> None:
    attempts: list[str] = []

    def call() -> str:
        attempts.append("call")
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("for the test")
        return "done"

    def make_room(_: int | None) -> bool:
        attempts.append("room")
        if attempts.count("room") < 3:
            raise torch.OutOfMemoryError("what stays finds no place")
        return True

    assert with_room(call, make_room, device=torch.device("cpu")) == "done"
    assert attempts == ["call", "room", "room", "room", "call"]


@pytest.mark.parametrize(
    ("failure", "seen"),
    [
        (torch.OutOfMemoryError("what stays finds no place"), "for the test"),
        (RuntimeError("shapes differ"), "shapes differ"),
    ],
    ids=str,
)
def test_room_that_can_never_be_made_ends_with_the_calls_own_error_any_other_at_once(
    failure: RuntimeError, seen: str
) -> None:
    def call() -> None:
        raise torch.OutOfMemoryError("for the test")

    def make_room(_: int | None) -> bool:
        raise failure

    with pytest.raises(RuntimeError, match=seen) as raised:
        with_room(call, make_room, device=torch.device("cpu"))
    assert getattr(raised.value, "__notes__", []) == ([NO_MORE_ROOM] if seen == "for the test" else [])


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory")], ids=str)
def test_an_error_that_is_not_out_of_memory_is_raised_at_once(error: Exception) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        with_room(call, lambda: pytest.fail("there was nothing to make room for"), device=torch.device("cpu"))
    assert raised.value is error


def test_kept_weights_are_evicted_before_a_failed_call_is_run_again(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tuned("flux", 0.6) as (pipe, _):
        kept: list[int] = []

        def bring(self: ComponentCalls, *inputs: object) -> object:
            kept.append(len(self._conductor._copies))
            if len(kept) == NUM_ENCODERS + 1:
                raise torch.OutOfMemoryError("for the test")
            return brought(self, *inputs)

        brought = ComponentCalls._to_device
        monkeypatch.setattr(ComponentCalls, "_to_device", bring)
        tiny_pipelines.run(pipe, "flux")
        assert kept[NUM_ENCODERS] > 0
        assert kept[NUM_ENCODERS + 1] == 0


def test_room_that_was_made_for_a_call_inside_is_not_made_again() -> None:
    made, went_back = [], []
    inner_is_repeatable = [False, True]

    def make_room(_: int | None) -> bool:
        made.append(1)
        return True

    def call() -> str:
        return with_room(inner, make_room, device=torch.device("cpu"), is_repeatable=lambda: False)

    def inner() -> str:
        if not inner_is_repeatable.pop():
            return "done"
        raise torch.OutOfMemoryError("for the test")

    go_back = partial(went_back.append, 1)
    assert with_room(call, make_room, device=torch.device("cpu"), go_back=go_back) == "done"
    assert (made, went_back) == ([1], [1])


def test_only_plain_inputs_that_nobody_changed_may_be_used_again() -> None:
    tensor, rows = torch.zeros(2), [1, 2]
    assert remember_inputs(((tensor, "text"), {"rows": rows, "none": None}))()
    assert not remember_inputs(DynamicCache())()
    assert not remember_inputs([print])()
    is_repeatable = remember_inputs({"rows": rows})
    rows.append(3)
    assert not is_repeatable()
    is_repeatable = remember_inputs([tensor])
    tensor.add_(1)
    assert not is_repeatable()
