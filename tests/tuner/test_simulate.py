import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.profiles import MIB, weights
from tests.tuner.test_search import budget_between, excluding, small, with_or_without_exclusion
from vramtune.errors import BudgetError, UsageError
from vramtune.schema import Profile
from vramtune.tuner.frontier import trace_frontier
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.problem import pose
from vramtune.tuner.search import choose_plan
from vramtune.tuner.simulate import recall, timeline


class TestTimeline:
    @settings(max_examples=30, deadline=None)
    @given(with_or_without_exclusion(), st.floats(0, 1))
    def test_covers_the_call_without_holes_and_peaks_where_the_estimate_says(
        self, given_profile: Profile, fraction: float
    ) -> None:
        plan = choose_plan(given_profile, budget_between(pose(given_profile), fraction))
        drawn = timeline(given_profile, plan)
        moments = [(level.start_seconds, level.end_seconds) for level in drawn.memory]
        assert moments[0][0] == 0
        assert all(before[1] == after[0] for before, after in itertools.pairwise(moments))
        assert moments[-1][1] == pytest.approx(plan.estimate.seconds, rel=1e-3)
        assert max(level.held_bytes for level in drawn.memory) == plan.estimate.peak_bytes

    def test_copies_are_those_that_the_estimate_counts(self) -> None:
        plan = choose_plan(small(), 250 * MIB)
        sizes = {(p.component, g.name): g.weight_bytes for p in plan.placements for g in p.groups}
        copied = [s for s in timeline(small(), plan).spans if s.engine == "copy"]
        assert sum(sizes[span.component, span.group] for span in copied) == plan.estimate.moved_bytes

    @settings(max_examples=30, deadline=None)
    @given(with_or_without_exclusion(), st.floats(0, 1))
    def test_spans_lie_in_their_stage_and_in_the_order_of_its_iterations(
        self, given_profile: Profile, fraction: float
    ) -> None:
        plan = choose_plan(given_profile, budget_between(pose(given_profile), fraction))
        drawn = timeline(given_profile, plan)
        for index, stage in enumerate(plan.stages):
            levels = [level for level in drawn.memory if level.stage == index]
            spans = [span for span in drawn.spans if span.stage == index]
            assert all(span.start_seconds >= levels[0].start_seconds for span in spans)
            assert all(span.end_seconds <= levels[-1].end_seconds + 1e-9 for span in spans)
            computed = [span.iteration for span in spans if span.engine == "compute"]
            assert computed == sorted(computed)
            assert set(computed) == set(range(stage.num_iterations))
            kept = {(p.component, g.name) for p in plan.placements for g in p.groups[: p.kept[index]]}
            assert all(span.is_kept == ((span.component, span.group) in kept) for span in spans)

    @settings(max_examples=30, deadline=None)
    @given(excluding(), st.floats(0, 1))
    def test_excluded_components_own_all_their_weights_all_the_time(
        self, given_profile: Profile, fraction: float
    ) -> None:
        plan = choose_plan(given_profile, budget_between(pose(given_profile), fraction))
        levels = timeline(given_profile, plan).memory
        for component in given_profile.components:
            if component.name in given_profile.excluded:
                held = {level.component_bytes[component.name] for level in levels}
                assert held == {component.weights.allocated_bytes}

    def test_a_first_call_waits_for_all_of_an_excluded_component(self) -> None:
        text, *others = small().components
        text = replace(text, parameters=weights(100 * MIB))
        given_profile = replace(small(), components=(text, *others), excluded=("text_encoder",))
        estimate = choose_plan(given_profile, 450 * MIB).estimate
        assert estimate.moved_bytes == 0
        loaded = (100 + 161 + 20) * MIB
        assert estimate.first_call_seconds - estimate.seconds == pytest.approx(loaded / 0.5e9)


class TestForeignPlans:
    def test_of_other_weights_are_refused(self) -> None:
        plan = choose_plan(small(), 250 * MIB)
        model = small().components[1]
        groups = (model.groups[0], *(replace(g, weight_bytes=g.weight_bytes + 1) for g in model.groups[1:]))
        other = replace(
            small(), components=(small().components[0], replace(model, groups=groups), small().components[2])
        )
        with pytest.raises(UsageError, match="other weights or stages"):
            recall(other, plan)

    def test_of_other_stages_are_refused(self) -> None:
        plan = choose_plan(small(), 250 * MIB)
        with pytest.raises(UsageError, match="other weights or stages"):
            recall(replace(small(), stages=tuple(reversed(small().stages))), plan)

    def test_that_move_what_is_excluded_by_now_are_refused(self) -> None:
        plan = choose_plan(small(), 250 * MIB)
        moved = next(p.component for p in plan.placements if p.num_resident < len(p.groups))
        with pytest.raises(UsageError, match=f"moves {moved}, which .* excludes from offload"):
            recall(replace(small(), excluded=(moved,)), plan)


class TestFrontier:
    def test_a_card_that_is_too_small_for_any_plan_says_what_would_do(self) -> None:
        tiny = replace(small(), device=replace(small().device, usable_bytes=50 * MIB))
        with pytest.raises(BudgetError, match="takes a larger GPU"):
            trace_frontier(tiny)

    @pytest.mark.slow
    @settings(max_examples=15, deadline=None)
    @given(with_or_without_exclusion())
    def test_more_memory_buys_time_at_every_point(self, given_profile: Profile) -> None:
        points = trace_frontier(given_profile).points
        assert points[0].budget_bytes == Candidate.least(pose(given_profile)).peak_bytes
        assert all(a.budget_bytes < b.budget_bytes for a, b in itertools.pairwise(points))
        assert all(a.seconds > b.seconds for a, b in itertools.pairwise(points))
        assert all(point.estimate.peak_bytes <= point.budget_bytes for point in points)

    def test_ends_where_everything_stays(self) -> None:
        last = trace_frontier(small()).points[-1]
        assert last.seconds == pytest.approx(last.estimate.bound_seconds)
