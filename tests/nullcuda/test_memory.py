"""What a plan says that its pipeline takes of the card is what it takes, in the allocator's segments."""

import gc
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from tests.nullcuda.card import counters, reset
from tests.nullcuda.tuned_pipelines import Encoding, Layers, OfOneRow, context_bytes
from vramtune.errors import BudgetError
from vramtune.machine.live import live_device
from vramtune.offload.install import install
from vramtune.offload.memory_limit import others_bytes
from vramtune.offload.pieces import gaps_filled, new_piece
from vramtune.predict import predict_profile
from vramtune.schema import Plan, Profile
from vramtune.tuner.search import choose_plan
from vramtune.units import MIB

NUM_MIB = (0, 33, 50, 101, 160, 222, 270, 1000)
"""Budgets, above the smallest that works."""
MOST_MALLOCS = 5
"""Of `cudaMalloc`, in a steady call whose activations are small."""

MOST_OVER_BYTES = 2 * MIB
"""How far a prediction may be above what is taken: a segment of small tensors."""


def build() -> Encoding:
    torch.manual_seed(0)
    return OfOneRow(Layers(3).eval(), Layers(8).eval())


@cache
def profiled() -> Profile:
    return predict_profile(build(), call_kwargs={}, device=live_device(torch.device("cuda")))


def least_bytes() -> int:
    with pytest.raises(BudgetError) as raised:
        choose_plan(profiled(), 1)
    return raised.value.smallest_bytes


def planned(num_mib: float) -> Plan:
    """The plan for so much above the smallest budget, with no margin."""
    return choose_plan(profiled(), least_bytes() + int(num_mib * MIB))


@cache
def expected() -> torch.Tensor:
    return build().to("cuda")()


@pytest.mark.parametrize("num_mib", NUM_MIB)
def test_groups_just_above_whole_segments_take_what_the_plan_says(num_mib: int) -> None:
    wanted, plan, pipe = expected(), planned(num_mib), build()
    gc.collect()
    torch.cuda.empty_cache()
    with install(pipe, plan, device="cuda", context_bytes=context_bytes()) as runtime:
        for _ in range(2):
            reset()
            assert torch.equal(pipe(), wanted)
            assert 0 <= plan.estimate.peak_bytes - counters().used_peak_bytes <= MOST_OVER_BYTES
        assert counters().num_mallocs <= MOST_MALLOCS
        measured = runtime.measured
        assert measured is not None
        assert measured.num_out_of_memory == 0
        assert measured.moved_bytes == plan.estimate.moved_bytes  # nothing that is kept comes twice
        for stage, found in zip(plan.estimate.stages, measured.stages, strict=True):
            assert 0 <= stage.peak_bytes - context_bytes() - found.peak_bytes <= MOST_OVER_BYTES


def test_of_these_plans_some_keep_groups_for_a_stage_and_some_for_the_whole_call() -> None:
    placements = [placement for num_mib in NUM_MIB for placement in planned(num_mib).placements]
    assert any(max(placement.kept) > placement.num_resident for placement in placements)
    assert any(placement.num_resident for placement in placements)


@pytest.mark.parametrize("num_bytes", [10 * MIB + 1, 32 * MIB + MIB // 10, 64 * MIB, 5 * MIB])
def test_nothing_else_comes_to_lie_in_a_piece_of_memory(num_bytes: int) -> None:
    torch.cuda.empty_cache()
    before_bytes = torch.cuda.memory_reserved()
    held = new_piece(num_bytes, torch.device("cuda"))
    taken_bytes = torch.cuda.memory_reserved() - before_bytes
    assert taken_bytes % (2 * MIB) == 0
    assert taken_bytes - num_bytes < 2 * MIB or taken_bytes == 10 * MIB
    assert torch.cuda.memory_allocated() >= taken_bytes
    assert held.numel() == num_bytes


@pytest.fixture
def image() -> Iterator[torch.Tensor]:
    """12 MiB that live in a segment of 100, in which activations were before."""
    torch.cuda.empty_cache()
    activations = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
    del activations
    yield torch.empty(12 * MIB, dtype=torch.uint8, device="cuda")
    gc.collect()
    torch.cuda.empty_cache()


def test_a_piece_that_stays_takes_no_part_of_a_segment_in_which_something_lives(image: torch.Tensor) -> None:
    before = torch.cuda.memory_reserved()
    with gaps_filled(image.device):
        piece = new_piece(30 * MIB, image.device)
    assert torch.cuda.memory_reserved() == before + 30 * MIB
    assert not 0 <= piece.data_ptr() - image.data_ptr() < 100 * MIB
    assert torch.empty(80 * MIB, dtype=torch.uint8, device="cuda").data_ptr() == image.data_ptr() + image.nbytes


def test_what_a_piece_keeps_of_a_segment_is_no_others(image: torch.Tensor) -> None:
    def others(pieces: dict[int, int]) -> int:
        return others_bytes(image.device, pieces=pieces, left_bytes=0, workspace_bytes=0)

    before = others({})
    piece = new_piece(30 * MIB, image.device)
    assert piece.data_ptr() == image.data_ptr() + image.nbytes
    assert others({}) == before  # all 100 MiB were there before
    assert others({piece.data_ptr(): 30 * MIB}) == before - 30 * MIB - 58 * MIB
