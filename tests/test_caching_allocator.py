from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramtune.caching_allocator import Allocator, next_lower, peak_of_calls, reserved_peak_bytes, reserved_under_limits
from vramtune.layout import rounded_bytes
from vramtune.units import MIB

SIZES = st.one_of(st.integers(1, 4096), st.integers(1, 2 * MIB), st.integers(1, 64 * MIB))


@st.composite
def histories(draw):
    """Allocations in a drawn order, some freed again at drawn moments."""
    events, live = [], {}
    for key, num_bytes in enumerate(draw(st.lists(SIZES, min_size=1, max_size=40))):
        events.append((key, num_bytes))
        live[key] = num_bytes
        freed = draw(st.lists(st.sampled_from(sorted(live)), unique=True, max_size=3))
        events.extend((key, -live.pop(key)) for key in freed)
    return events


def freed_in_the_end(events):
    live = {}
    for key, num_bytes in events:
        live[key] = live.get(key, 0) + num_bytes
    return [*events, *((key, -num_bytes) for key, num_bytes in live.items() if num_bytes)]


def allocated_peak_bytes(events):
    live = peak = 0
    for _, num_bytes in events:
        live += rounded_bytes(num_bytes) if num_bytes > 0 else -rounded_bytes(-num_bytes)
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    ("num_bytes", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (11 * MIB, 12 * MIB),
    ],
)
def test_one_request_opens_the_segment_of_its_size(num_bytes, reserved):
    assert reserved_peak_bytes([(0, num_bytes)]) == reserved


def test_medium_requests_share_a_segment():
    assert reserved_peak_bytes([(0, 6 * MIB), (1, 6 * MIB), (2, 6 * MIB)]) == 20 * MIB
    assert reserved_peak_bytes([(n, 6 * MIB) for n in range(4)]) == 40 * MIB


def test_small_and_large_requests_never_share():
    assert reserved_peak_bytes([(0, 6 * MIB), (1, 512)]) == 22 * MIB


def test_a_large_remainder_of_a_block_is_split_off_and_a_small_one_wasted():
    freed_thirty = [(0, 30 * MIB), (0, -30 * MIB)]
    assert reserved_peak_bytes([*freed_thirty, (1, 28 * MIB), (2, 2 * MIB)]) == 30 * MIB
    assert reserved_peak_bytes([*freed_thirty, (1, 29 * MIB), (2, MIB + 1)]) == 50 * MIB


def test_best_fit_takes_the_smallest_block_that_holds_the_request():
    both_free = [(0, 40 * MIB), (1, 20 * MIB), (0, -40 * MIB), (1, -20 * MIB)]
    assert reserved_peak_bytes([*both_free, (2, 20 * MIB), (3, 40 * MIB)]) == 60 * MIB


def test_neighbours_join_when_freed_but_segments_do_not():
    halves = [(0, 10 * MIB), (1, 10 * MIB), (0, -10 * MIB), (1, -10 * MIB)]
    assert reserved_peak_bytes([*halves, (2, 20 * MIB)]) == 40 * MIB
    in_one_segment = [(0, 20 * MIB), (0, -20 * MIB), *halves]
    assert reserved_peak_bytes([*in_one_segment, (2, 20 * MIB)]) == 20 * MIB


@given(histories())
def test_reserved_memory_is_never_less_than_allocated_memory(events):
    assert reserved_peak_bytes(events) >= allocated_peak_bytes(events)


@given(histories())
def test_after_all_is_freed_the_largest_request_is_served_from_the_cache(events):
    everything_free = freed_in_the_end(events)
    largest = max(num_bytes for _, num_bytes in events)
    assert reserved_peak_bytes([*everything_free, (-1, largest)]) == reserved_peak_bytes(events)


@given(histories())
def test_reserved_memory_only_grows(events):
    reserved = [reserved_peak_bytes(events[:length]) for length in range(len(events) + 1)]
    assert reserved == sorted(reserved)


@given(histories())
def test_the_lowest_limit_lies_between_what_lives_and_what_an_unlimited_pool_reserves(events):
    steps = reserved_under_limits(events)
    least = steps[0]
    assert allocated_peak_bytes(events) <= least <= steps[-1] == reserved_peak_bytes(events)
    allocator = Allocator()
    assert allocator.replay(events, 0, limit_bytes=least) == len(events)
    assert allocator.peak_bytes == least


@given(histories(), st.data())
def test_under_a_limit_the_largest_step_that_it_allows_is_reserved(events, data):
    allocated = [key for key, num_bytes in events if num_bytes > 0]
    dispensable_bytes = {key: MIB // 2 for key, num_bytes in events if key in allocated[::3] and num_bytes > MIB}
    steps = reserved_under_limits(events, dispensable_bytes)
    assert [*steps] == sorted({*steps})
    for step in steps:
        assert peak_of_calls(events, dispensable_bytes, limit_bytes=step)[0] == step
    for lower, upper in pairwise(steps):
        nearest = next_lower(upper, len(events))
        if nearest < lower or peak_of_calls(events, dispensable_bytes, limit_bytes=nearest)[0] is None:
            continue  # two steps that are near each other; or a limit that is not enough, though a lower one is
        between = data.draw(st.integers(lower, nearest))
        assert peak_of_calls(events, dispensable_bytes, limit_bytes=between)[0] == lower


@given(histories(), st.data())
def test_a_copy_goes_on_as_the_allocator_itself_would(events, data):
    start = data.draw(st.integers(0, len(events)))
    allocator = Allocator()
    allocator.replay(events[:start], 0, limit_bytes=None)
    allocator.copy().replay(events, start, limit_bytes=None)  # which changes nothing in this one
    twin = allocator.copy()
    twin.replay(events, start, limit_bytes=None)
    allocator.replay(events, start, limit_bytes=None)
    assert twin.peak_bytes == allocator.peak_bytes == reserved_peak_bytes(events)


def test_at_its_limit_the_allocator_gives_free_segments_back():
    events = [(0, 30 * MIB), (0, -30 * MIB), (1, 40 * MIB)]
    assert reserved_peak_bytes(events) == 70 * MIB
    assert reserved_under_limits(events)[0] == 40 * MIB
    held = [(0, 30 * MIB), (1, 4 * MIB), (0, -30 * MIB), (2, 40 * MIB)]  # the small one has a segment of its own
    assert reserved_under_limits(held)[0] == 60 * MIB


def test_what_an_allocation_can_do_without_is_asked_for_first_as_long_as_there_is_room():
    events = [(0, 30 * MIB), (1, 60 * MIB), (1, -60 * MIB), (2, 40 * MIB)]
    assert reserved_under_limits(events)[0] == 90 * MIB
    assert reserved_under_limits(events, {1: 20 * MIB})[0] == 70 * MIB
    allocator = Allocator({1: 20 * MIB})
    allocator.replay(events, 0, limit_bytes=None)
    assert allocator.peak_bytes == 90 * MIB  # for the last one lies where the second was


def test_where_the_whole_was_is_what_comes_next_and_that_may_take_more_than_without_it():
    # there is room for the whole of the second; then the third lies in its segment, which cannot be given back for the last
    events = [(0, 20 * MIB), (1, 40 * MIB), (1, -40 * MIB), (2, 11 * MIB), (0, -20 * MIB), (3, 44 * MIB)]
    without = [(key, num_bytes // 2 if key == 1 else num_bytes) for key, num_bytes in events]
    assert reserved_under_limits(without)[0] == 64 * MIB
    assert Allocator().replay(without, 0, limit_bytes=64 * MIB) == len(events)
    assert Allocator({1: 20 * MIB}).replay(events, 0, limit_bytes=64 * MIB) < len(events)
    assert reserved_under_limits(events, {1: 20 * MIB})[0] > 64 * MIB


def test_what_was_refused_once_is_not_asked_for_again_where_that_is_remembered():
    first = [(1, 30 * MIB), (2, 40 * MIB), (2, -40 * MIB), (1, -30 * MIB)]
    again = [*first, (3, 40 * MIB), (4, 30 * MIB)]  # both have room only if the third does without a half at once
    dispensable_bytes = {2: 20 * MIB, 3: 20 * MIB}
    assert Allocator(dispensable_bytes).replay(again, 0, limit_bytes=50 * MIB) == len(again) - 1
    refused = set()
    assert Allocator(dispensable_bytes, refused).replay(again, 0, limit_bytes=50 * MIB) == len(again)
    assert refused == {(40 * MIB, 20 * MIB)}
