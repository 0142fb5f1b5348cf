"""Compiled pipelines under a plan: hooks are around what is compiled, and nothing is compiled again from call to call."""

import gc
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch._dynamo.utils import counters

import vramtune
from tests import tiny_pipelines
from tests.offload.state import output
from tests.offload.test_adapters import DENOISER, loads
from tests.offload.tuned_pipelines import held_bytes, planned, profiled
from tests.simgpu.prediction import predicted_call
from vramtune.contract import modules_of
from vramtune.schema import Plan, Profile
from vramtune.tuner.budget import MARGIN_FRACTION
from vramtune.tuner.search import choose_plan

pytestmark = pytest.mark.usefixtures("no_garbage", "compiler")
BLOCKS_FRACTION, WHOLE_FRACTION = 0.4, 0.9
"""Shares of the weights that have room: where blocks are compiled, and where the whole denoiser is."""


@pytest.fixture
def compiler() -> Iterator[None]:
    """`torch.compile` with nothing compiled yet."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def blocks(pipe: Any, name: str) -> None:
    getattr(pipe, DENOISER[name]).compile_repeated_blocks(backend="eager", fullgraph=True)


def in_place(pipe: Any, name: str) -> None:
    getattr(pipe, DENOISER[name]).compile(backend="eager")


def wrapped(pipe: Any, name: str) -> None:
    setattr(pipe, DENOISER[name], torch.compile(getattr(pipe, DENOISER[name]), backend="eager"))


def one_wrapped_block(pipe: Any, name: str) -> None:
    """As those do it who compile by hand."""
    transformer_blocks = getattr(pipe, DENOISER[name]).transformer_blocks
    transformer_blocks[0] = torch.compile(transformer_blocks[0], backend="eager", fullgraph=True)


class Way(NamedTuple):
    """A way to compile a pipeline's denoiser."""

    name: str
    compile: Callable[[Any, str], None]
    fraction: float


WAYS = {
    "flux, blocks": Way("flux", blocks, BLOCKS_FRACTION),
    "flux, one block wrapped": Way("flux", one_wrapped_block, BLOCKS_FRACTION),
    "flux, in place": Way("flux", in_place, WHOLE_FRACTION),
    "flux, wrapped": Way("flux", wrapped, WHOLE_FRACTION),
    "sdxl, blocks": Way("sdxl", blocks, BLOCKS_FRACTION),
    "sdxl, wrapped": Way("sdxl", wrapped, WHOLE_FRACTION),
}
QUICK = ("flux, blocks",)
ways = pytest.mark.parametrize(
    "way", [pytest.param(way, id=what, marks=() if what in QUICK else pytest.mark.slow) for what, way in WAYS.items()]
)


def untuned(way: Way) -> torch.Tensor:
    """The output of the compiled pipeline all on the device, with which it is forgotten what was compiled."""
    pipe = tiny_pipelines.build(way.name).to("sim")
    way.compile(pipe, way.name)
    result = output(pipe, way.name)
    torch._dynamo.reset()
    counters.clear()
    return result


def plan_for(pipe: Any, name: str, budget_bytes: int) -> tuple[Plan, Profile]:
    call_kwargs = {"prompt": "a photo of a cat", "num_inference_steps": 2, "output_type": "pt"}
    profile = predicted_call(pipe, call_kwargs | tiny_pipelines.CALL[name])
    return choose_plan(profile, budget_bytes, margin_fraction=MARGIN_FRACTION), profile


def check(sim: ModuleType, pipe: Any, way: Way, tuned: vramtune.Tuned, expected: torch.Tensor, start: int) -> None:
    """Three calls: right, within the budget, as planned, and compiled once."""
    assert torch.equal(output(pipe, way.name), expected)
    num_graphs = counters["stats"]["unique_graphs"]
    assert num_graphs > 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            sim.reset()
            assert torch.equal(output(pipe, way.name), expected)
            assert tuned.measured.num_out_of_memory == 0
            assert tuned.measured.peak_bytes - start <= tuned.plan.budget_bytes
            assert tuned.measured.moved_bytes == tuned.plan.estimate.moved_bytes
    assert counters["stats"]["unique_graphs"] == num_graphs
    assert not counters["graph_break"]


@ways
def test_compiled_before_the_plan_is_made(sim: ModuleType, way: Way) -> None:
    expected = untuned(way)
    gc.collect()
    start, budget_bytes = held_bytes(), planned(way.name, way.fraction).budget_bytes
    profiled(way.name)  # at the rates of which
    pipe = tiny_pipelines.build(way.name)
    way.compile(pipe, way.name)
    plan, profile = plan_for(pipe, way.name, budget_bytes)
    with vramtune.install(pipe, plan, profile=profile, device="sim") as tuned:
        check(sim, pipe, way, tuned, expected, start)
        assert tuned.plan is plan
    assert_given_back(pipe, start)


@pytest.mark.slow
@ways
def test_compiled_while_the_plan_is_at_work(sim: ModuleType, way: Way) -> None:
    expected = untuned(way)
    gc.collect()
    start, plan, profile = held_bytes(), planned(way.name, way.fraction), profiled(way.name)
    pipe = tiny_pipelines.build(way.name)
    with vramtune.install(pipe, plan, profile=profile, device="sim") as tuned:
        output(pipe, way.name)
        way.compile(pipe, way.name)
        check(sim, pipe, way, tuned, expected, start)
        assert tuned.plan is not plan
    assert_given_back(pipe, start)


def assert_given_back(pipe: Any, start: int) -> None:
    assert held_bytes() == start
    modules = [each for module in modules_of(pipe).values() for each in module.modules()]
    assert {p.device.type for module in modules for p in module.parameters()} == {"cpu"}
    assert not any(hasattr(module, "_hf_hook") or module._forward_pre_hooks for module in modules)
    assert not any("vramtune" in type(vars(module).get("_compiled_call_impl")).__module__ for module in modules)


@pytest.mark.slow
def test_compiled_anew_while_the_plan_is_at_work(sim: ModuleType) -> None:
    way = WAYS["flux, blocks"]
    expected, start = untuned(way), held_bytes()
    pipe = tiny_pipelines.build("flux")
    with vramtune.install(pipe, planned("flux"), profile=profiled("flux"), device="sim") as tuned:
        for _ in range(2):
            blocks(pipe, "flux")
            check(sim, pipe, way, tuned, expected, start)


@pytest.mark.slow
def test_an_adapter_comes_into_compiled_blocks(sim: ModuleType) -> None:
    plain = tiny_pipelines.build("flux")
    loads("flux", "a")(plain)
    blocks(plain, "flux")
    expected = output(plain.to("sim"), "flux")
    del plain
    gc.collect()
    start, pipe = held_bytes(), tiny_pipelines.build("flux")
    blocks(pipe, "flux")
    with vramtune.install(pipe, planned("flux", 0.7), profile=profiled("flux"), device="sim") as tuned:
        output(pipe, "flux")
        loads("flux", "a")(pipe)
        for _ in range(2):
            assert torch.equal(output(pipe, "flux"), expected)
            assert tuned.measured.peak_bytes - start <= tuned.plan.budget_bytes
    assert_given_back(pipe, start)


def test_a_whole_denoiser_that_has_no_room_is_refused_with_what_would_do(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    wrapped(pipe, "flux")
    budget_bytes = planned("flux", BLOCKS_FRACTION).budget_bytes
    with pytest.raises(vramtune.BudgetError, match="Give it at least"):
        plan_for(pipe, "flux", budget_bytes)
    plain = tiny_pipelines.build("flux")
    blocks(plain, "flux")
    plan_for(plain, "flux", budget_bytes)


def test_the_profile_of_a_compiled_pipeline_is_that_of_the_pipeline_in_larger_groups(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    blocks(pipe, "flux")
    _, profile = plan_for(pipe, "flux", planned("flux", 1.0).budget_bytes)
    plain = profiled("flux")
    assert [s.activation_bytes for s in profile.stages] == [s.activation_bytes for s in plain.stages]
    assert profile.component("transformer").used_bytes == plain.component("transformer").used_bytes
    names = [path for group in profile.component("transformer").groups for path in group.modules]
    assert {"transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.1"} <= set(names)
    assert not any(name.startswith("transformer_blocks.0.") for name in names)
    assert pipe.transformer.transformer_blocks[0]._compiled_call_impl is not None
