"""An error at any line of install, call and remove: the next call is right or the pipeline is as it was.

A few lines of each; `VRAMTUNE_SOAK_CALLS` set: all of them.
"""

import os
import random
from types import ModuleType
from typing import Any

import pytest
import torch

from tests import tiny_pipelines
from tests.offload.interrupts import Point, interrupt, points_of
from tests.offload.state import output, same, state_of, values
from tests.offload.test_habits import by_hand
from tests.offload.tuned_pipelines import held_bytes, planned, profiled, resident_bytes
from vramtune.offload.install import install
from vramtune.offload.runtime import Runtime
from vramtune.schema import Plan

IS_COMPLETE = "VRAMTUNE_SOAK_CALLS" in os.environ
NUM_SAMPLED = 12
NAME = "flux"

pytestmark = [pytest.mark.usefixtures("no_garbage"), pytest.mark.timeout(7200 if IS_COMPLETE else 120)]


def chosen(points: list[Point]) -> list[tuple[Point, BaseException]]:
    rng = random.Random(0)
    some = points if IS_COMPLETE else rng.sample(points, min(NUM_SAMPLED, len(points)))
    return [(point, rng.choice((KeyboardInterrupt, MemoryError))()) for point in some]


@pytest.fixture(params=[None, 0.2], ids=["page-locked", "staged"])
def plan(sim: ModuleType, request: pytest.FixtureRequest) -> Plan:
    profiled(NAME)
    return planned(NAME, 0.5, lockable_fraction=request.param)


def installed(pipe: Any, plan: Plan) -> Runtime:
    return install(pipe, plan, device="sim")


@pytest.fixture
def pipe(sim: ModuleType) -> Any:
    return tiny_pipelines.build(NAME)


def test_an_interrupted_install_leaves_the_pipeline_as_it_was(sim: ModuleType, pipe: Any, plan: Plan) -> None:
    pipe.enable_model_cpu_offload(device="sim")
    seen: list[Point] = []

    def go_in_and_out() -> None:
        runtime: list[Runtime] = []
        seen.extend(points_of(lambda: runtime.append(installed(pipe, plan))))
        runtime[0].remove()

    go_in_and_out()
    state, weights, held, pinned = state_of(pipe), values(pipe), held_bytes(), sim.pinned_memory_allocated()
    for point, error in chosen(seen):
        came = interrupt(lambda: installed(pipe, plan).remove(), point, error)
        assert came, point
        assert without_hooks(state_of(pipe)) == without_hooks(state), point
        assert same(values(pipe), weights), point
        assert (held_bytes(), sim.pinned_memory_allocated()) == (held, pinned), point


def without_hooks(state: dict[str, Any]) -> dict[str, Any]:
    """Stock offloading is switched off and on again: the same, by other objects."""
    return {"class": state["class"], "weights": state["weights"], "modules": state["modules"]}


def test_an_interrupted_remove_is_finished_by_the_next(sim: ModuleType, pipe: Any, plan: Plan) -> None:
    state, weights, held, pinned = state_of(pipe), values(pipe), held_bytes(), sim.pinned_memory_allocated()
    runtime = installed(pipe, plan)
    points = points_of(runtime.remove)
    for point, error in chosen(points):
        runtime = installed(pipe, plan)
        assert interrupt(runtime.remove, point, error), point
        runtime.remove()
        assert state_of(pipe) == state, point
        assert same(values(pipe), weights), point
        assert (held_bytes(), sim.pinned_memory_allocated()) == (held, pinned), point


@pytest.mark.parametrize("then", ["call", "remove"])
def test_after_an_interrupted_call_the_next_is_right_or_the_pipeline_as_it_was(
    sim: ModuleType, pipe: Any, plan: Plan, expected: dict[str, torch.Tensor], then: str
) -> None:
    state, weights, held = state_of(pipe), values(pipe), held_bytes()
    stream = torch.accelerator.current_stream()
    runtime = installed(pipe, plan)
    if then == "call":
        output(pipe, NAME)  # so that the points are those of a call after another
    for point, error in chosen(points_of(lambda: output(pipe, NAME))):
        if not runtime.is_installed:
            runtime = installed(pipe, plan)
        assert interrupt(lambda: output(pipe, NAME), point, error), point
        if then == "call":
            assert torch.equal(output(pipe, NAME), expected[NAME]), point
            assert held_bytes() - held == resident_bytes(runtime.plan), point
        else:
            runtime.remove()
        assert torch.is_autocast_cache_enabled(), point
        assert torch.accelerator.current_stream() == stream, point
        if then == "remove":
            assert state_of(pipe) == state, point
            assert same(values(pipe), weights), point
            assert held_bytes() == held, point
    runtime.remove()


def test_after_an_interrupted_call_of_components_by_hand_the_next_is_right(
    sim: ModuleType, pipe: Any, plan: Plan, expected: dict[str, torch.Tensor]
) -> None:
    @torch.no_grad()
    def call() -> None:
        for each in by_hand(pipe).values():
            each()

    held = held_bytes()
    runtime = installed(pipe, plan)
    call()
    for point, error in chosen(points_of(call)):
        assert interrupt(call, point, error), point
        assert torch.equal(output(pipe, NAME), expected[NAME]), point
        assert torch.is_autocast_cache_enabled(), point
        assert held_bytes() - held == resident_bytes(runtime.plan), point
