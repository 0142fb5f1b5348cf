"""Between what seconds and peaks are likely to be."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.profiles import MIB, activity, component, device, profile, stage
from tests.tuner.test_search import budget_between, with_or_without_exclusion
from vramtune.errors import BudgetError
from vramtune.schema import Profile, Spread, Spreads
from vramtune.tuner.problem import pose
from vramtune.tuner.search import choose_plan
from vramtune.tuner.stock_modes import stock_modes

SPREADS = Spreads(
    copies=Spread(low=0.9, high=1.4),
    pageable_copies=Spread(low=0.5, high=3.0),
    activations=Spread(low=0.9, high=1.2),
    context=Spread(low=0.5, high=1.5),
)
COMPUTE = Spread(low=0.8, high=1.3)


def unsure(certain: Profile) -> Profile:
    """The same call, of which nothing but the weights is certain."""
    stages = tuple(
        replace(each, activities=tuple(replace(activity, spread=COMPUTE) for activity in each.activities))
        for each in certain.stages
    )
    return replace(certain, stages=stages, device=replace(certain.device, spreads=SPREADS))


def resident() -> Profile:
    model = component("m", [10 * MIB, 20 * MIB])
    return profile(
        device(context_bytes=4 * MIB), [model], [stage("m", 4, activity(model, [0.5, 0.5], activation_bytes=10 * MIB))]
    )


@settings(max_examples=30)
@given(with_or_without_exclusion(), st.floats(0, 1))
def test_what_is_expected_lies_between_the_ends(certain: Profile, share: float) -> None:
    plan = choose_plan(unsure(certain), budget_between(pose(certain), share))
    for found in (plan.estimate, *stock_modes(unsure(certain))):
        assert found.low.seconds <= found.seconds * (1 + 1e-9)
        assert found.seconds <= found.high.seconds * (1 + 1e-9)
        assert found.low.peak_bytes <= found.peak_bytes <= found.high.peak_bytes


@settings(max_examples=30)
@given(with_or_without_exclusion(), st.floats(0, 1))
def test_where_all_is_certain_the_ends_are_what_is_expected(certain: Profile, share: float) -> None:
    plan = choose_plan(certain, budget_between(pose(certain), share))
    for found in (plan.estimate, *stock_modes(certain)):
        for end in (found.low, found.high):
            assert end.seconds == pytest.approx(found.seconds)
            assert end.peak_bytes == found.peak_bytes


@settings(max_examples=30)
@given(with_or_without_exclusion(), st.floats(0, 1))
def test_a_spread_changes_no_plan(certain: Profile, share: float) -> None:
    budget_bytes = budget_between(pose(certain), share)
    assert choose_plan(unsure(certain), budget_bytes).placements == choose_plan(certain, budget_bytes).placements


def test_only_what_is_unsure_differs() -> None:
    profiled = unsure(resident())
    whole = choose_plan(profiled, 200 * MIB).estimate
    assert (whole.low.seconds, whole.seconds, whole.high.seconds) == pytest.approx((1.6 * 2, 2.0 * 2, 2.6 * 2))
    context_bytes = profiled.device.context_bytes
    assert whole.high.peak_bytes - whole.peak_bytes == 2 * MIB + context_bytes // 2
    assert whole.peak_bytes - whole.low.peak_bytes == 1 * MIB + context_bytes // 2


def test_a_plan_is_narrow_where_none_would_fit_if_all_were_large() -> None:
    profiled = unsure(resident())
    with pytest.raises(BudgetError) as raised:
        choose_plan(profiled, 1)
    smallest_bytes = raised.value.smallest_bytes
    assert choose_plan(profiled, smallest_bytes).estimate.is_narrow
    assert not choose_plan(profiled, smallest_bytes + 2 * MIB + profiled.device.context_bytes).estimate.is_narrow
    assert not choose_plan(resident(), smallest_bytes).estimate.is_narrow


def test_a_mode_is_narrow_where_it_would_not_fit_if_all_were_large() -> None:
    profiled = unsure(resident())
    peak_bytes = stock_modes(profiled)[0].peak_bytes
    fits = [
        (mode.fits, mode.is_narrow) for b in (-1, 0, 100 * MIB) for mode in stock_modes(profiled, peak_bytes + b)[:1]
    ]
    assert fits == [(False, False), (True, True), (True, False)]
