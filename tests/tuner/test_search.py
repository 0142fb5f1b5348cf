from dataclasses import replace
from itertools import product

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.profiles import GIB, MIB, activity, component, device, profile, profiles, stage, weights
from vramtune.errors import BudgetError, UnknownNameError, UsageError
from vramtune.schema import Component, Plan, Profile, Reason, Variant, WeightGroup
from vramtune.tuner.bound import bound_seconds, lower_hull
from vramtune.tuner.linear_program import SLACK_FRACTION, solve
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.problem import DEFAULT_SLOTS, Problem, pose
from vramtune.tuner.schedule import stage_seconds
from vramtune.tuner.search import best_candidate, choose_plan
from vramtune.tuner.simulate import estimate, recall, timeline

fractions = st.floats(0, 1)


@st.composite
def excluding(draw: st.DrawFn, **limits: int) -> Profile:
    """Profiles with components excluded from offload, with weights that the call does not use, and one never run."""
    base = draw(profiles(**limits))
    unused = st.integers(0, 60).map(lambda n: n * MIB)
    components = [
        *(replace(c, parameters=weights(c.used_bytes + draw(unused))) for c in base.components),
        component("never_run", [MIB, 30 * MIB]),
    ]
    names = draw(st.sets(st.sampled_from([c.name for c in components]), min_size=1))
    return replace(base, components=tuple(components), excluded=(*sorted(names), "safety_checker"))


def with_or_without_exclusion(**limits: int) -> st.SearchStrategy[Profile]:
    return st.one_of(profiles(**limits), excluding(**limits))


def unused_bytes(given_profile: Profile) -> int:
    """What excluded components own beyond what the call uses of them."""
    run = {name for one in given_profile.stages for name in one.components}
    return sum(
        c.weights.allocated_bytes - (c.used_bytes if c.name in run else 0)
        for c in given_profile.components
        if c.name in given_profile.excluded
    )


def whole_bytes(problem: Problem) -> int:
    return sum(unit.total_bytes for unit in problem.units) + max(s.overhead_bytes for s in problem.stages)


def budget_between(problem: Problem, fraction: float) -> int:
    low, high = Candidate.least(problem).peak_bytes, whole_bytes(problem)
    return round(low + fraction * (high - low))


def all_candidates(problem: Problem, max_slots: int, excluded: tuple[str, ...]) -> list[Candidate]:
    """Every candidate that the rules allow, whether it fits or not."""
    rows = [
        [(len(unit.groups),) * len(problem.stages)] if unit.component in excluded else list(rows_of(problem, u))
        for u, unit in enumerate(problem.units)
    ]
    slots = product(range(1, max_slots + 1), repeat=len(problem.units))
    return [
        Candidate(problem, kept, tuple(map(min, kept)), num_slots) for num_slots, kept in product(slots, product(*rows))
    ]


def rows_of(problem: Problem, u: int):
    """A unit's counts by stage: at least the least while active, never brought in while idle."""
    most = len(problem.units[u].groups)
    ranges = [range(problem.units[u].least_kept if u in stage.active else 0, most + 1) for stage in problem.stages]
    for row in product(*ranges):
        before = (min(row), *row)
        if all(u in stage.active or row[s] <= before[s] for s, stage in enumerate(problem.stages)):
            yield row


def seconds_of(candidate: Candidate, seen: dict) -> float:
    total = 0.0
    problem = candidate.problem
    for s, one in enumerate(problem.stages):
        active = candidate.residencies(s)
        key = (s, tuple(active.items()))
        if key not in seen:
            seen[key] = stage_seconds(problem, one, active)
        total += seen[key]
    return total


class TestAgainstBruteForce:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(with_or_without_exclusion(max_components=2, max_groups=3, max_stages=3), fractions)
    def test_within_one_percent(self, given_profile: Profile, fraction: float) -> None:
        """The exclusion is put to brute force as a choice of candidates and as room taken, not by the problem."""
        budget = budget_between(pose(given_profile), fraction)
        free = pose(replace(given_profile, excluded=()))
        room = budget - unused_bytes(given_profile)
        seen: dict = {}
        best = min(
            seconds_of(candidate, seen)
            for candidate in all_candidates(free, 3, given_profile.excluded)
            if candidate.peak_bytes <= room
        )
        found = choose_plan(given_profile, budget).estimate
        assert found.seconds <= best * 1.01


class TestBudget:
    @settings(max_examples=50, deadline=None)
    @given(with_or_without_exclusion(), fractions)
    def test_a_plan_never_exceeds_it(self, given_profile: Profile, fraction: float) -> None:
        budget = budget_between(pose(given_profile), fraction)
        plan = choose_plan(given_profile, budget)
        assert estimate(recall(given_profile, plan), plan.budget_bytes) == plan.estimate
        assert plan.estimate.peak_bytes <= budget
        held = [level.held_bytes for level in timeline(given_profile, plan).memory]
        assert max(held) <= budget

    @pytest.mark.slow
    @settings(max_examples=50, deadline=None)
    @given(with_or_without_exclusion(), fractions, fractions)
    def test_more_is_never_slower(self, given_profile: Profile, one: float, other: float) -> None:
        problem = pose(given_profile)
        less, more = (
            choose_plan(given_profile, budget_between(problem, fraction)).estimate for fraction in sorted([one, other])
        )
        # a plan may give up SLACK_FRACTION of its speed to move fewer bytes; the search is within 1% of the best
        assert more.seconds <= less.seconds * (1 + SLACK_FRACTION + 0.01)

    @settings(max_examples=40, deadline=None)
    @given(with_or_without_exclusion())
    def test_the_smallest_one_works_and_a_byte_less_does_not(self, given_profile: Profile) -> None:
        smallest = Candidate.least(pose(given_profile)).peak_bytes
        assert choose_plan(given_profile, smallest).estimate.peak_bytes <= smallest
        with pytest.raises(BudgetError) as raised:
            choose_plan(given_profile, smallest - 1)
        assert raised.value.smallest_bytes == smallest

    @settings(max_examples=40, deadline=None)
    @given(with_or_without_exclusion(), st.floats(0.001, 0.2))
    def test_the_smallest_one_counts_the_margin(self, given_profile: Profile, margin: float) -> None:
        with pytest.raises(BudgetError) as raised:
            choose_plan(given_profile, Candidate.least(pose(given_profile)).peak_bytes, margin_fraction=margin)
        smallest = raised.value.smallest_bytes
        assert choose_plan(given_profile, smallest, margin_fraction=margin).budget_bytes == smallest

    @settings(max_examples=40, deadline=None)
    @given(with_or_without_exclusion())
    def test_a_model_that_fits_whole_moves_nothing(self, given_profile: Profile) -> None:
        plan = choose_plan(given_profile, whole_bytes(pose(given_profile)))
        assert plan.estimate.moved_bytes == 0
        assert {placement.role(0) for placement in plan.placements} == {"resident"}
        assert plan.estimate.seconds == pytest.approx(plan.estimate.bound_seconds)

    def test_above_the_card_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"Test GPU has 24\.00 GiB"):
            choose_plan(small(), 25 * GIB)

    def test_is_capped_at_what_is_usable(self) -> None:
        crowded = replace(small(), device=device(usable_bytes=200 * MIB))
        plan = choose_plan(crowded, GIB)
        assert (plan.asked_bytes, plan.budget_bytes) == (GIB, 200 * MIB)
        assert plan.estimate.peak_bytes <= 200 * MIB


class TestBound:
    @settings(max_examples=50, deadline=None)
    @given(with_or_without_exclusion(max_components=2, max_groups=3), fractions, st.randoms(use_true_random=False))
    def test_no_plan_beats_it(self, given_profile: Profile, fraction: float, random) -> None:
        problem = pose(given_profile)
        budget = budget_between(problem, fraction)
        candidates = all_candidates(problem, 2, given_profile.excluded)
        fitting = [candidate for candidate in candidates if candidate.peak_bytes <= budget]
        assume(fitting)
        found = estimate(random.choice(fitting), budget)
        assert found.bound_seconds <= found.seconds * (1 + 1e-9)
        assert found.bound_seconds == bound_seconds(problem, budget)

    def test_by_hand_beside_an_excluded_component(self) -> None:
        """80 MiB excluded, 10 MiB of root: of 40 MiB that are visited twice a step, 40 / 3 find room, beside 2 / 3 of a slot."""
        text, model = component("text", [80 * MIB]), component("model", [10 * MIB] * 4, root_bytes=10 * MIB)
        twice = activity(model, [0.0] * 8, layers=[*range(4)] * 2)
        stages = [stage("text", 1, activity(text, [0.1])), stage("model", 5, twice)]
        problem = pose(profile(device(), [text, model], stages, excluded=("text",)))
        assert bound_seconds(problem, 110 * MIB) == pytest.approx(0.1 + 5 * 2 * (80 / 3) * MIB / 1e9, rel=1e-5)

    def test_by_hand_where_two_models_find_no_room_beside_each_other(self) -> None:
        """r MiB of each stay, beside a slot of 5 MiB for the share 1 - r / 50 of the other: 2 r + 5 - r / 10 = 70."""
        one, other = component("one", [5 * MIB] * 10), component("other", [5 * MIB] * 10)
        stages = [stage(c.name, 1, activity(c, [0.001] * 10)) for c in (one, other)]
        problem = pose(profile(device(), [one, other], stages))
        assert bound_seconds(problem, 100 * MIB) == pytest.approx(2 * 0.01)
        assert bound_seconds(problem, 70 * MIB) == pytest.approx(2 * (50 - 65 / 1.9) * MIB / 1e9, rel=1e-5)

    def test_the_lower_hull_has_no_corner_above_another_line(self) -> None:
        assert lower_hull([(0, 10), (1, 10), (2, 4), (3, 4), (4, 0)]) == [(0, 10), (2, 4), (4, 0)]


class TestExclusion:
    @settings(max_examples=50, deadline=None)
    @given(excluding(), fractions)
    def test_is_honoured_in_every_stage(self, given_profile: Profile, fraction: float) -> None:
        plan = choose_plan(given_profile, budget_between(pose(given_profile), fraction))
        for placement in plan.placements:
            if placement.component in given_profile.excluded:
                assert set(placement.kept) == {len(placement.groups)}

    @settings(max_examples=50, deadline=None)
    @given(excluding(), fractions)
    def test_every_byte_of_the_components_counts(self, given_profile: Profile, fraction: float) -> None:
        plan = choose_plan(given_profile, budget_between(pose(given_profile), fraction))
        for s, (one, found) in enumerate(zip(given_profile.stages, plan.estimate.stages, strict=True)):
            planned = sum(p.kept_bytes(s) + p.slot_bytes(s) for p in plan.placements)
            assert found.peak_bytes == planned + one.activation_bytes + unused_bytes(given_profile)

    @settings(max_examples=40, deadline=None)
    @given(excluding(), fractions)
    def test_leaves_the_program_no_choice(self, given_profile: Profile, fraction: float) -> None:
        problem = pose(given_profile)
        solution = solve(problem, budget_between(problem, fraction), 1)
        assert solution is not None
        for unit, row in zip(problem.units, solution, strict=True):
            if unit.component in given_profile.excluded:
                assert row == pytest.approx([unit.total_bytes] * len(problem.stages))

    @pytest.mark.parametrize("budget_bytes", [170 * MIB, 250 * MIB, GIB])
    def test_of_what_the_pipeline_does_not_have_changes_nothing(self, budget_bytes: int) -> None:
        plan = choose_plan(replace(small(), excluded=("safety_checker",)), budget_bytes)
        assert plan == choose_plan(small(), budget_bytes)

    def test_the_error_names_what_it_costs(self) -> None:
        """All 100 MiB of the text encoder, 20 of them unused, stay beside the decoder's 150 MiB of activations."""
        text, *others = small().components
        components = (replace(text, parameters=weights(100 * MIB)), *others)
        given_profile = replace(small(), components=components, excluded=("text_encoder", "safety_checker"))
        enough = Candidate.least(pose(small())).peak_bytes
        with pytest.raises(BudgetError, match="'text_encoder' is excluded from offload") as raised:
            choose_plan(given_profile, 200 * MIB)
        assert enough < 200 * MIB < raised.value.smallest_bytes == enough + 100 * MIB
        assert "stage 'vae.decode' alone needs 0.25 GiB, 0.15 GiB of it besides weights" in str(raised.value)
        assert "without that 0.15 GiB would do" in str(raised.value)

    def test_the_error_names_all_that_are_excluded(self) -> None:
        with pytest.raises(BudgetError, match="'text_encoder' and 'vae' are excluded"):
            choose_plan(replace(small(), excluded=("vae", "text_encoder")), 200 * MIB)

    def test_the_error_is_silent_where_the_budget_fails_without_it_too(self) -> None:
        with pytest.raises(BudgetError) as raised:
            choose_plan(replace(small(), excluded=("text_encoder",)), Candidate.least(pose(small())).peak_bytes - 1)
        assert "excluded" not in str(raised.value)


class TestInvariance:
    @settings(max_examples=40, deadline=None)
    @given(with_or_without_exclusion(), fractions, st.sampled_from([2, 3, 7]))
    def test_names_and_scale_of_bytes_change_nothing(
        self, given_profile: Profile, fraction: float, factor: int
    ) -> None:
        budget = budget_between(pose(given_profile), fraction)
        plan = choose_plan(given_profile, budget)
        other = choose_plan(scaled(given_profile, factor), budget * factor)
        assert kept(other) == kept(plan)
        assert other.estimate.seconds == pytest.approx(plan.estimate.seconds)


def kept(plan: Plan) -> list[tuple[int, ...]]:
    return [placement.kept for placement in plan.placements]


def scaled(given_profile: Profile, factor: int) -> Profile:
    """The same profile with other names, all bytes and copy rates times a factor."""
    on = given_profile.device
    names = {c.name: f"part{len(given_profile.components) - i}" for i, c in enumerate(given_profile.components)}

    def rescale(of: Component) -> Component:
        return replace(
            of,
            name=names[of.name],
            parameters=weights(of.parameters.num_bytes * factor),
            groups=tuple(
                WeightGroup(name=g.name[::-1], weight_bytes=g.weight_bytes * factor, modules=()) for g in of.groups
            ),
            layers=tuple(replace(one, parameters=weights(one.parameters.num_bytes * factor)) for one in of.layers),
        )

    return replace(
        given_profile,
        device=replace(
            on,
            total_bytes=on.total_bytes * factor,
            usable_bytes=on.usable_bytes * factor,
            pinned_copy_bytes_per_second=on.pinned_copy_bytes_per_second * factor,
            pageable_copy_bytes_per_second=on.pageable_copy_bytes_per_second * factor,
        ),
        components=tuple(map(rescale, given_profile.components)),
        excluded=tuple(names.get(name, name) for name in given_profile.excluded),
        stages=tuple(
            replace(
                one,
                name=one.name[::-1],
                activities=tuple(
                    replace(a, component=names[a.component], activation_bytes=a.activation_bytes * factor)
                    for a in one.activities
                ),
            )
            for one in given_profile.stages
        ),
    )


def small(**more: object) -> Profile:
    text = component("text_encoder", [20 * MIB] * 4)
    model = component("transformer", [10 * MIB] * 16, root_bytes=MIB)
    vae = component("vae", [5 * MIB] * 4)
    return profile(
        device(),
        [text, model, vae],
        [
            stage("text_encoder", 1, activity(text, [0.01] * 4, activation_bytes=MIB)),
            stage("transformer", 20, activity(model, [0.01] * 16, activation_bytes=4 * MIB)),
            stage("vae.decode", 1, activity(vae, [0.05] * 4, method="decode", activation_bytes=150 * MIB)),
        ],
        **more,
    )


def with_tiling() -> Profile:
    base = small()
    decode = base.stages[-1]
    call = replace(decode.activities[0], activation_bytes=30 * MIB)
    tiled = replace(decode, activities=(call,), pipeline_seconds=0.5)
    return replace(base, variants=(Variant(permissions=("vae_tiling",), stages=(*base.stages[:-1], tiled)),))


class TestPermissions:
    def test_one_is_not_used_where_it_brings_nothing(self) -> None:
        assert choose_plan(with_tiling(), GIB, allow=("vae_tiling",)).permissions == ()

    def test_one_is_used_where_nothing_fits_without_it_and_the_reasons_say_so(self) -> None:
        plan = choose_plan(with_tiling(), 100 * MIB, allow=("vae_tiling",))
        assert plan.permissions == ("vae_tiling",)
        with pytest.raises(BudgetError) as raised:
            choose_plan(with_tiling(), 100 * MIB)
        num_bytes = {"smallest": raised.value.smallest_bytes}
        assert plan.reasons[0] == Reason(kind="permission_used", permission="vae_tiling", num_bytes=num_bytes)
        assert estimate(recall(with_tiling(), plan), plan.budget_bytes) == plan.estimate

    def test_the_error_names_the_one_that_would_help(self) -> None:
        with pytest.raises(BudgetError, match="vae_tiling") as raised:
            choose_plan(with_tiling(), 100 * MIB)
        error = raised.value
        assert error.permission == "vae_tiling"
        assert error.permitted_bytes < 100 * MIB < error.smallest_bytes
        assert choose_plan(with_tiling(), error.permitted_bytes, allow=("vae_tiling",)).permissions

    def test_an_unknown_one_is_refused(self) -> None:
        with pytest.raises(UnknownNameError, match="vae_tiling"):
            choose_plan(small(), GIB, allow=("vae_tilling",))


@st.composite
def long_components(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    """Bytes and seconds of 16 to 160 groups, some of which compute next to nothing."""
    num_groups = draw(st.integers(16, 160))
    pattern = draw(st.lists(st.integers(5, 15), min_size=1, max_size=6))
    weights = draw(st.lists(st.sampled_from([0.01, 1.0, 1.0, 2.0]), min_size=1, max_size=6))
    sizes = [pattern[i * len(pattern) // num_groups] * MIB for i in range(num_groups)]
    return sizes, [weights[i % len(weights)] for i in range(num_groups)]


@pytest.mark.slow
class TestStreamingQuality:
    @pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 5.0])
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
    @given(long_components(), st.floats(0.2, 0.6), st.integers(4, 30))
    def test_a_steady_call_is_near_the_bound(self, ratio: float, made, fraction: float, num_steps: int) -> None:
        sizes, weights = made
        compute_seconds = sum(sizes) / 1e9 / ratio
        model = component("transformer", sizes)
        call = activity(model, [weight * compute_seconds / sum(weights) for weight in weights])
        plan = choose_plan(
            profile(device(), [model], [stage("transformer", num_steps, call)]), round(fraction * sum(sizes))
        )
        streamed = sum(sizes) - plan.placements[0].kept_bytes(0)
        assume(DEFAULT_SLOTS * max(sizes) <= 0.05 * streamed)  # fewer slots than that wait for long visits
        assert plan.estimate.gap_fraction <= 0.10

    def test_what_is_not_kept_is_spread_evenly(self) -> None:
        model = component("transformer", [10 * MIB] * 48)
        problem = pose(profile(device(), [model], [stage("t", 4, activity(model, [0.01] * 48))]))
        names = [group.name for group in problem.units[0].groups]
        positions = sorted(int(name.split(".")[1]) for name in names[1 + 36 :])
        gaps = [b - a for a, b in zip(positions, [*positions[1:], positions[0] + 48], strict=True)]
        assert max(gaps) <= 2 * 48 / 12
        assert min(gaps) >= 2


def test_there_is_no_best_candidate_where_nothing_fits() -> None:
    assert best_candidate(pose(small()), 10 * MIB) is None
