"""Where groups that move live on the host: within the limits, what is copied most often page-locked."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.profiles import GIB, MIB, activity, component, device, profile, profiles, stage
from vramtune.errors import BudgetError
from vramtune.schema import Component, Profile
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.problem import pose
from vramtune.tuner.schedule import stage_seconds
from vramtune.tuner.search import choose_plan, leanest
from vramtune.tuner.simulate import recall

STAGING = {"staging_bytes_per_second": 0.5e9, "storage_bytes_per_second": 0.25e9}
fractions = st.floats(0, 1)


def on_host(of: Profile, **facts: object) -> Profile:
    return replace(of, device=replace(of.device, **{**STAGING, **facts}))


def in_files(of: Profile) -> Profile:
    """The same with all weights in files."""

    def filed(component: Component) -> Component:
        groups = tuple(replace(group, file_bytes=group.weight_bytes) for group in component.groups)
        return replace(component, groups=groups, file_bytes=component.weights.allocated_bytes)

    return replace(of, components=tuple(map(filed, of.components)))


def least_bytes(of: Profile) -> int:
    return Candidate.least(pose(of)).peak_bytes


def total_bytes(of: Profile) -> int:
    return sum(component.used_bytes for component in of.components)


@settings(max_examples=20)
@given(profiles(), fractions, fractions)
def test_no_more_is_page_locked_than_may_be_and_no_plan_beats_its_bound(given_profile, room, locked) -> None:
    budget = least_bytes(given_profile) + int(room * total_bytes(given_profile))
    limited = on_host(given_profile, lockable_bytes=int(locked * total_bytes(given_profile)))
    plan = choose_plan(limited, budget)
    estimate = plan.estimate
    assert estimate.locked_bytes <= max(plan.lockable_bytes, 4 * 512)
    assert estimate.seconds >= estimate.bound_seconds * (1 - 1e-9)
    assert recall(limited, plan).locked_bytes == estimate.locked_bytes
    assert estimate.host_bytes >= sum(p.locked_bytes + p.staged_bytes for p in plan.placements)
    unlimited = choose_plan(on_host(given_profile), budget)
    assert estimate.seconds >= unlimited.estimate.bound_seconds * (1 - 1e-9)


@settings(max_examples=20)
@given(profiles(), fractions, fractions)
def test_what_stays_in_files_takes_no_memory_and_makes_any_ram_enough(given_profile, room, ram) -> None:
    budget = least_bytes(given_profile) + int(room * total_bytes(given_profile))
    ram_bytes = MIB + int(ram * total_bytes(given_profile))
    plan = choose_plan(in_files(on_host(given_profile)), budget, ram_bytes=ram_bytes)
    assert plan.estimate.host_bytes <= ram_bytes
    moving = sum(p.locked_bytes + p.staged_bytes for p in plan.placements)
    assert plan.estimate.file_bytes == sum(p.staged_bytes for p in plan.placements) <= moving


@settings(max_examples=20)
@given(profiles(), fractions)
def test_where_weights_in_memory_exceed_the_ram_the_error_says_what_would_do(given_profile, room) -> None:
    budget = least_bytes(given_profile) + int(room * total_bytes(given_profile))
    limited = on_host(given_profile)
    least = leanest(pose(limited), budget)
    assert least is not None
    assume(least.host_bytes > 1)
    with pytest.raises(BudgetError) as raised:
        choose_plan(limited, budget, ram_bytes=1)
    error = raised.value
    assert (error.resource, error.budget_bytes) == ("ram", 1)
    assert choose_plan(limited, budget, ram_bytes=error.smallest_bytes).estimate.host_bytes <= error.smallest_bytes


def two_speeds() -> Profile:
    """A component that runs once, and one that runs 20 times; 100 MiB each in 10 groups."""
    once, often = component("once", [10 * MIB] * 10), component("often", [10 * MIB] * 10)
    return profile(
        device(**STAGING),
        [once, often],
        [stage("once", 1, activity(once, [0.01] * 10)), stage("often", 20, activity(often, [0.01] * 10))],
    )


def test_what_is_copied_most_often_is_page_locked_first() -> None:
    limited = on_host(two_speeds(), lockable_bytes=120 * MIB)
    plan = choose_plan(limited, 50 * MIB)
    once, often = plan.placements
    assert often.staged_bytes == 0
    assert once.staged_bytes > 0
    assert plan.estimate.locked_bytes == once.locked_bytes + often.locked_bytes + 4 * 5 * MIB <= 120 * MIB


def test_more_to_stage_than_the_host_can_sets_the_pace_and_the_reason_says_so() -> None:
    limited = on_host(two_speeds(), lockable_bytes=20 * MIB)
    plan = choose_plan(limited, 50 * MIB)
    (reason,) = (reason for reason in plan.reasons if reason.kind == "staging_bound")
    assert reason.stage == "often"
    assert plan.estimate.seconds > choose_plan(two_speeds(), 50 * MIB).estimate.seconds
    assert reason.seconds["staging"] == pytest.approx(reason.num_bytes["staged"] / 0.5e9)


def test_where_files_are_read_at_each_visit_the_disk_sets_the_pace_and_the_plan_says_how_fast_it_is_taken_to_be() -> (
    None
):
    filed = on_host(in_files(two_speeds()), staging_bytes_per_second=8e9, storage_source="given")
    plan = choose_plan(filed, 50 * MIB, ram_bytes=60 * MIB)
    (reason,) = (reason for reason in plan.reasons if reason.kind == "disk_bound")
    assert reason.seconds["reading"] == pytest.approx(reason.num_bytes["read"] / 0.25e9)
    assert (plan.storage_bytes_per_second, plan.storage_source) == (0.25e9, "given")
    in_memory = choose_plan(on_host(filed, ram_bytes=GIB, lockable_bytes=60 * MIB), 50 * MIB)
    assert in_memory.storage_bytes_per_second is None
    assert not any(reason.kind == "disk_bound" for reason in in_memory.reasons)


def test_what_lies_in_files_and_in_memory_too_is_mapped_in_once_a_stage_as_fast_as_page_cache_is() -> None:
    filed = on_host(in_files(two_speeds()), ram_bytes=GIB, lockable_bytes=20 * MIB)
    slower = pose(on_host(filed, page_cache_bytes_per_second=0.1e9))
    size = slower.units[0].sizes[1]
    assert pose(filed).reading_seconds(0, 1, is_first=True) == 0
    assert slower.reading_seconds(0, 1, is_first=True) == pytest.approx(size / 0.1e9)
    assert slower.reading_seconds(0, 1) == 0
    in_memory = pose(on_host(two_speeds(), page_cache_bytes_per_second=0.1e9))
    assert in_memory.reading_seconds(0, 1, is_first=True) == 0
    from_storage = replace(slower, ram_bytes=20 * MIB, device=replace(slower.device, ram_bytes=None))
    assert from_storage.reading_seconds(0, 1) == pytest.approx(size / 0.25e9)
    assert {each.staging_seconds(0, 1) for each in (slower, in_memory, from_storage)} == {size / 0.5e9}


def test_a_stage_of_many_iterations_waits_for_page_cache_in_the_first_one() -> None:
    filed = on_host(in_files(two_speeds()), ram_bytes=GIB, lockable_bytes=20 * MIB)
    plan = choose_plan(filed, 50 * MIB)
    slower = recall(on_host(filed, page_cache_bytes_per_second=0.1e9), plan)
    often = plan.placements[1]
    more_seconds = often.staged_bytes / 0.1e9 - often.staged_bytes / 0.5e9  # what is read is staged meanwhile
    found = [stage_seconds(c.problem, c.problem.stages[1], c.residencies(1)) for c in (recall(filed, plan), slower)]
    assert often.staged_bytes > 0
    assert 0.5 * more_seconds < found[1] - found[0] < 1.01 * more_seconds


def test_files_that_do_not_fit_the_memory_are_read_from_storage_at_each_visit() -> None:
    filed = in_files(two_speeds())
    cold = choose_plan(filed, 50 * MIB, ram_bytes=60 * MIB).estimate
    warm = choose_plan(on_host(filed, ram_bytes=GIB, lockable_bytes=60 * MIB), 50 * MIB).estimate
    assert cold.seconds > 1.2 * warm.seconds
    assert cold.file_bytes > 0


def test_a_host_with_room_for_all_changes_nothing() -> None:
    plain = choose_plan(two_speeds(), 50 * MIB)
    roomy = choose_plan(on_host(two_speeds(), ram_bytes=GIB, lockable_bytes=GIB), 50 * MIB)
    assert roomy.placements == plain.placements
    assert roomy.estimate == plain.estimate
