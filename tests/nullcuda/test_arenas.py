"""A stage's activations lie in segments that are there before them, where these take less than what they would ask for."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.nullcuda.card import card, counters, reset
from tests.nullcuda.tuned_pipelines import Encoding, Layers, OfOneRow, context_bytes
from vramtune.errors import BudgetError
from vramtune.machine.live import live_device
from vramtune.offload.install import install
from vramtune.predict import predict_profile
from vramtune.schema import Plan, Profile
from vramtune.tuner.search import choose_plan
from vramtune.units import MIB

ROOM_BYTES = 100 * MIB
"""Above the smallest budget."""


class Growing(Layers):
    """Each layer makes a larger tensor than the one before, which is freed after."""

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        rows = row
        for number, layer in enumerate(self.layers, 1):
            rows = layer(rows[:1]).expand(1000 * number, -1).contiguous()
        return rows[:1].clone()


def build() -> Encoding:
    torch.manual_seed(0)
    return OfOneRow(Growing(3).eval(), Growing(8).eval())


@cache
def profiled() -> Profile:
    return predict_profile(build(), call_kwargs={}, device=live_device(torch.device("cuda")))


@cache
def planned() -> Plan:
    with pytest.raises(BudgetError) as raised:
        choose_plan(profiled(), 1)
    return choose_plan(profiled(), raised.value.smallest_bytes + ROOM_BYTES)


@cache
def expected() -> torch.Tensor:
    return build().to("cuda")()


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    gc.collect()
    torch.cuda.empty_cache()
    yield
    card().others_bytes = 0
    gc.collect()
    torch.cuda.empty_cache()


def taken_bytes(plan: Plan) -> int:
    """By the second call of the pipeline under a plan that may take more."""
    wanted, pipe = expected(), build()
    gc.collect()
    torch.cuda.empty_cache()
    roomy = replace(plan, budget_bytes=plan.budget_bytes + 1000 * MIB)
    with install(pipe, roomy, device="cuda", context_bytes=context_bytes()):
        for _ in range(2):
            reset()
            assert torch.equal(pipe(), wanted)
        return counters().used_peak_bytes


def test_what_is_planned_is_taken_and_without_the_arenas_much_more() -> None:
    plan, stage = planned(), profiled().stages[-1]
    assert plan.stages[-1].arenas
    saved_bytes = stage.activation_bytes - stage.planned_activation_bytes
    assert saved_bytes > 50 * MIB
    taken = taken_bytes(plan)
    assert 0 <= plan.estimate.peak_bytes - taken <= 2 * MIB
    without = replace(plan, stages=tuple(replace(each, arenas=()) for each in plan.stages))
    assert taken_bytes(without) - taken > saved_bytes - 2 * MIB


def test_where_the_card_has_no_room_for_them_the_call_does_without(caplog: pytest.LogCaptureFixture) -> None:
    wanted, pipe = expected(), build()
    gc.collect()
    torch.cuda.empty_cache()
    with install(pipe, planned(), device="cuda", context_bytes=context_bytes()), caplog.at_level("DEBUG", "vramtune"):
        assert torch.equal(pipe(), wanted)
        assert "no arenas of" not in caplog.text
        torch.cuda.empty_cache()
        free_bytes = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        card().others_bytes = free_bytes - (planned().budget_bytes - context_bytes()) + 30 * MIB
        assert torch.equal(pipe(), wanted)
        assert f"no arenas of {planned().stages[-1].arenas} bytes: out of memory" in caplog.text
