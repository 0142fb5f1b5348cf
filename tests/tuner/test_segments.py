from dataclasses import replace

from hypothesis import given, settings

from tests.profiles import MIB, device
from tests.tuner.test_search import fractions, small, with_or_without_exclusion
from vramtune.schema import Profile
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.problem import DEFAULT_SLOTS, pose
from vramtune.tuner.search import choose_plan
from vramtune.tuner.simulate import estimate, recall


class TestSegments:
    """On CUDA a plan counts whole segments of PyTorch's allocator."""

    @settings(max_examples=60, deadline=None)
    @given(with_or_without_exclusion(), fractions)
    def test_a_plan_stays_within_the_budget_and_its_parts_are_whole_segments(
        self, given_profile: Profile, fraction: float
    ) -> None:
        given_profile = replace(given_profile, device=device(kernels="cuda"))
        problem = pose(given_profile)
        low, high = Candidate.least(problem).peak_bytes, Candidate.whole(problem, DEFAULT_SLOTS).peak_bytes
        budget = round(low + fraction * max(high - low, 0))
        plan = choose_plan(given_profile, budget)
        assert plan.estimate.peak_bytes <= budget
        assert estimate(recall(given_profile, plan), budget) == plan.estimate
        for s, found in enumerate(plan.estimate.stages):
            assert found.kept_bytes == sum(p.kept_bytes(s) for p in plan.placements) + problem.unused_bytes
            assert found.slot_bytes == sum(p.slot_bytes(s) for p in plan.placements)
            assert (found.kept_bytes % (2 * MIB), found.slot_bytes % (2 * MIB)) == (0, 0)
            asked = sum(group.weight_bytes for p in plan.placements for group in p.groups[: p.kept[s]])
            assert asked <= found.kept_bytes

    def test_what_everything_takes_is_enough_that_nothing_moves(self) -> None:
        given_profile = replace(small(), device=device(kernels="cuda"))
        whole = Candidate.whole(pose(given_profile), DEFAULT_SLOTS)
        assert choose_plan(given_profile, whole.peak_bytes).estimate.moved_bytes == 0
        assert choose_plan(given_profile, whole.peak_bytes - 1).estimate.moved_bytes > 0
