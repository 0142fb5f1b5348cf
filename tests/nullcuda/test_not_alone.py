"""Other models of the same process on the card: a tuned pipeline's budget is its own."""

import gc
from typing import Any

import pytest
import torch

import vramtune
from tests import tiny_pipelines
from tests.nullcuda.card import card
from tests.nullcuda.tuned_pipelines import build, context_bytes, counted, planned, run, whole
from vramtune.errors import BudgetError
from vramtune.offload.install import install
from vramtune.offload.runtime import Runtime
from vramtune.schema import Plan
from vramtune.units import GIB, MIB

NAME = "larger flux"
SETTINGS = {"num_inference_steps": 2, "output_type": "pt", **tiny_pipelines.CALL["flux"]}


def tuned(name: str, plan: Plan) -> tuple[Any, Runtime]:
    pipe = build(name)
    return pipe, install(pipe, plan, device="cuda", context_bytes=context_bytes())


def bytes_copied(name: str, pipe: Any, runtime: Runtime) -> int:
    """Of a call that is right, and within the budget."""
    call, wanted = counted(pipe, name), whole(name)
    assert torch.equal(call.output, wanted.output)
    assert runtime.measured is not None
    assert runtime.measured.num_out_of_memory == 0
    assert runtime.measured.peak_bytes <= runtime.plan.budget_bytes
    assert not runtime.overrun_bytes
    return call.to_card_bytes


def alone(name: str, plan: Plan) -> int:
    pipe, runtime = tuned(name, plan)
    with runtime:
        run(pipe, name)
        return bytes_copied(name, pipe, runtime)


@pytest.mark.parametrize("fraction", [0, 0.5])
def test_two_tuned_pipelines_take_turns_within_their_budgets(fraction: float) -> None:
    plans = {name: planned(name, fraction) for name in (NAME, "sdxl")}
    expected = {name: alone(name, plan) for name, plan in plans.items()}
    both = {name: tuned(name, plan) for name, plan in plans.items()}
    for name, (pipe, _) in both.items():
        run(pipe, name)
    for _ in range(2):
        for name, (pipe, runtime) in both.items():
            assert bytes_copied(name, pipe, runtime) == expected[name]
    for _, runtime in both.values():
        runtime.remove()
    assert torch.cuda.get_per_process_memory_fraction() == 1


def test_an_untuned_pipeline_and_a_model_that_comes_between_two_calls_do_not_count() -> None:
    plan = planned(NAME, 0.5)
    expected, untuned = alone(NAME, plan), build("sdxl").to("cuda")
    pipe, runtime = tuned(NAME, plan)
    with runtime:
        run(pipe, NAME)
        run(untuned, "sdxl")
        assert bytes_copied(NAME, pipe, runtime) == expected
        model = torch.empty(300 * MIB, dtype=torch.uint8, device="cuda")
        assert bytes_copied(NAME, pipe, runtime) == expected
        del model
        assert bytes_copied(NAME, pipe, runtime) == expected


def test_a_pipeline_is_planned_for_what_other_models_leave_free() -> None:
    wanted, least_gib = whole(NAME).output, planned(NAME, 0).budget_bytes / GIB
    gc.collect()
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    left_bytes = planned(NAME, 0.5).budget_bytes - context_bytes()
    model = torch.empty(free_bytes - left_bytes, dtype=torch.uint8, device="cuda")
    with vramtune.autotune(build(NAME), call_kwargs=SETTINGS, device="cuda", progress=False) as handle:
        workspace_bytes = handle.profile.device.workspace_bytes  # which is there already
        assert abs(handle.plan.budget_bytes - left_bytes - context_bytes()) <= workspace_bytes + 2 * MIB
        assert torch.equal(run(handle._runtime._pipe, NAME), wanted)
        assert handle.measured.num_out_of_memory == 0
    del model
    torch.cuda.empty_cache()
    model = torch.empty(free_bytes - 8 * MIB, dtype=torch.uint8, device="cuda")
    with pytest.raises(BudgetError, match="usable on"):
        vramtune.autotune(build(NAME), least_gib, call_kwargs=SETTINGS, device="cuda", progress=False)
    del model


def test_a_pipeline_gives_way_where_another_model_took_the_memory_that_it_was_planned_for() -> None:
    plan = planned(NAME, 1)
    pipe, runtime = tuned(NAME, plan)
    with runtime:
        wanted = run(pipe, NAME)
        card().others_bytes = torch.cuda.mem_get_info()[0] - 120 * MIB
        model = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
        assert torch.equal(run(pipe, NAME), wanted)
        del model
