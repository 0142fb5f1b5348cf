"""In arenas a call's activations take what is planned for them, whichever call of its stage comes."""

from dataclasses import replace
from itertools import chain, groupby

import pytest
from hypothesis import given

from tests.test_caching_allocator import allocated_peak_bytes, histories
from vramtune.caching_allocator import Allocator, reserved_peak_bytes, reserved_under_limits
from vramtune.catalog.shipped import shipped_trace
from vramtune.layout import round_up, workspace_block_bytes
from vramtune.machine.gpus import find_gpu
from vramtune.pricing.arenas import arena_events, best_arenas, repeated
from vramtune.pricing.price import price
from vramtune.pricing.reserved import WORKSPACE
from vramtune.schema import LEAST_REPEATS
from vramtune.units import MIB

DEVICE = find_gpu("RTX 4060")
NAMES = ["chroma1-hd", "flux.1-dev", "hunyuanvideo", "krea-2", "ltx-2.3", "qwen-image-2.1", "sdxl", "wan2.1-14b"]


def in_turn(calls):
    """One call after the other, each freed but for what it returns, which goes after the next one."""
    start, before = 0, []
    for call in calls:
        events = [(start + key, num_bytes) for key, num_bytes in call.allocations()]
        live = {key: num_bytes for key, num_bytes in events if num_bytes > 0}
        for key, num_bytes in events:
            if num_bytes < 0:
                del live[key]
        yield from chain(events, before)
        before = [(key, -num_bytes) for key, num_bytes in live.items()]
        start = max(key for key, _ in events) + 1


def followed(name):
    """The trace of the last call that was followed, instead of one that is drawn out of two."""
    trace = shipped_trace(name)
    return replace(trace, runs=trace.runs[-1:], num_steps=None)


@pytest.mark.parametrize("name", NAMES)
def test_a_loop_takes_no_more_than_is_planned_of_all_its_calls(name):
    trace = followed(name)
    turns = iter(trace.runs[0].turns)
    num_with_arenas = 0
    for stage in price(trace, DEVICE).stages:
        num_turns = stage.num_iterations * sum(activity.num_calls for activity in stage.activities)
        indices = [next(turns).call for _ in range(num_turns)]
        if stage.in_arenas is None or num_turns == 1:
            continue
        num_with_arenas += 1
        kinds = [trace.calls[index] for index, _ in groupby(indices)][:12]
        kinds += kinds * (stage.num_iterations >= LEAST_REPEATS)
        workspace = [(WORKSPACE, workspace_block_bytes(DEVICE.workspace_bytes))]
        events = [
            *workspace,
            *arena_events(stage.in_arenas.arenas),
            *((key + 1, num_bytes) for key, num_bytes in in_turn(kinds)),
        ]
        planned_bytes = stage.planned_activation_bytes + round_up(stage.pipeline_bytes, 2 * MIB)
        limit_bytes = planned_bytes + DEVICE.workspace_bytes
        may_give_back = stage.num_iterations < LEAST_REPEATS  # which in a loop would cost time at every iteration
        assert Allocator().replay(events, 0, limit_bytes=limit_bytes, gives_back=may_give_back) == len(events)
    assert num_with_arenas


def test_a_large_denoiser_takes_little_more_than_half():
    (stage,) = (stage for stage in price(shipped_trace("flux.1-dev"), DEVICE).stages if stage.name == "transformer")
    assert stage.planned_activation_bytes < 0.6 * stage.activation_bytes


def test_there_are_none_where_a_library_chooses_kernels_by_the_card():
    trace = followed("flux.1-dev")
    calls = tuple(replace(call, depends_on_card=call.component == "transformer") for call in trace.calls)
    stages = {stage.name: stage for stage in price(replace(trace, calls=calls), DEVICE).stages}
    assert stages["transformer"].in_arenas is None
    assert stages["vae.decode"].in_arenas is not None


def test_several_calls_share_the_arenas_of_the_largest_if_the_others_fit_into_one():
    (stage,) = (stage for stage in price(followed("ltx-2.3"), DEVICE).stages if len(stage.activities) == 3)
    largest, *others = sorted(stage.activities, key=lambda activity: -activity.activation_bytes)
    assert stage.in_arenas == largest.in_arenas is not None
    for activity in others:
        assert stage.planned_bytes_of(activity) <= activity.activation_bytes <= max(stage.in_arenas.arenas)
    too_large = replace(others[0], activation_bytes=max(stage.in_arenas.arenas) + 1)
    stage = replace(stage, activities=(largest, too_large))
    assert (stage.in_arenas, stage.planned_activation_bytes) == (None, largest.activation_bytes)


GROWING = [
    event
    for key, num_bytes in enumerate(range(20 * MIB, 120 * MIB, 20 * MIB))
    for event in [(key, num_bytes), *([(key - 1, 20 * MIB - num_bytes)] if key else [])]
]
"""Each tensor is larger than the one before, which is freed after: none fits where another was."""


def with_arenas(before, arenas, events):
    return [*before, *arena_events(arenas), *events]


def test_tensors_that_grow_take_a_segment_each_and_with_arenas_little_more_than_is_in_use():
    assert reserved_peak_bytes(GROWING) == (20 + 40 + 60 + 80 + 100) * MIB
    assert allocated_peak_bytes(GROWING) == (80 + 100) * MIB
    arenas, reserved_bytes = best_arenas((), tuple(GROWING), 300 * MIB, gives_back=False)
    assert reserved_peak_bytes(with_arenas([], arenas, GROWING)) == reserved_bytes <= 190 * MIB


@given(histories(), histories())
def test_arenas_make_what_is_reserved_less_or_there_are_none(before, events):
    before = [(-2 - key, num_bytes) for key, num_bytes in before]
    most_bytes = reserved_peak_bytes([*before, *events])
    found = best_arenas(tuple(before), tuple(events), most_bytes, gives_back=False)
    if found is not None:
        arenas, reserved_bytes = found
        assert reserved_bytes < most_bytes
        assert reserved_bytes == reserved_peak_bytes(with_arenas(before, arenas, events))


@given(histories())
def test_the_same_of_the_lowest_limit(events):
    most_bytes = reserved_under_limits(events)[0]
    found = best_arenas((), tuple(events), most_bytes, gives_back=True)
    if found is not None:
        arenas, reserved_bytes = found
        tried, allocator = with_arenas([], arenas, events), Allocator()
        assert reserved_bytes < most_bytes
        assert allocator.replay(tried, 0, limit_bytes=reserved_bytes) == len(tried)


def test_what_a_repeated_call_does_not_free_is_there_until_the_next_one_has_ended():
    call = [(1, 5), (2, 7), (1, -5)]
    again, and_again = [(4, 5), (5, 7), (4, -5), (2, -7)], [(7, 5), (8, 7), (7, -5), (5, -7)]
    assert [*repeated(call, 3)] == [*call, *again, *and_again]
