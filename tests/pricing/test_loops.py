from hypothesis import given
from hypothesis import strategies as st

from vramtune.schema import Loop, find_loops

TOKENS = st.lists(st.sampled_from("abc"), max_size=40)


def loops(tokens):
    return [(tokens[loop.start : loop.start + loop.period], loop.num_iterations) for loop in find_loops(tokens)]


def test_a_denoising_loop_between_single_calls_is_one_loop():
    assert loops("t" + "u" * 50 + "v") == [("t", 1), ("u", 50), ("v", 1)]


def test_two_components_that_alternate_are_one_loop():
    assert loops("t" + "cu" * 20 + "v") == [("t", 1), ("cu", 20), ("v", 1)]


def test_two_transformers_one_after_the_other_are_two_loops():
    assert loops("h" * 12 + "l" * 28) == [("h", 12), ("l", 28)]


def test_calls_repeated_twice_are_unrolled():
    assert loops("abcabc") == [(token, 1) for token in "abcabc"]


def test_of_periods_that_cover_as_much_the_shortest_is_taken():
    assert find_loops("u" * 6) == [Loop(start=0, period=1, num_iterations=6)]


def test_equal_calls_within_an_iteration_stay_in_one_loop():
    assert loops("cuu" * 5) == [("cuu", 5)]


@given(TOKENS)
def test_loops_cover_the_calls_in_order(tokens):
    covered = [
        token
        for loop in find_loops(tokens)
        for _ in range(loop.num_iterations)
        for token in tokens[loop.start : loop.start + loop.period]
    ]
    assert covered == tokens


@given(TOKENS)
def test_a_loop_repeats_at_least_three_times_or_is_a_single_call(tokens):
    assert all(loop.num_iterations >= 3 or (loop.period, loop.num_iterations) == (1, 1) for loop in find_loops(tokens))
