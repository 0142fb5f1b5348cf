import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reports import examples, plan_results
from tests.tuner.test_search import budget_between, with_or_without_exclusion
from vramtune.reports.rows import beside_rows, component_rows, mode_rows, placement_rows, point_rows, stock_rows
from vramtune.schema import FrontierPoint, ModeEstimate, Stage, Variant
from vramtune.tuner.comparison import compare_modes
from vramtune.tuner.problem import pose
from vramtune.units import GIB, MIB

CASES = [(examples.sdxl(), examples.sdxl_plan()), (examples.flux(), examples.flux_plan())]


@pytest.mark.parametrize("profile", [profile for profile, _ in CASES])
def test_component_seconds_and_the_pipelines_own_add_up_to_the_call(profile):
    total = sum(stage.num_iterations * stage.seconds for stage in profile.stages)
    own = sum(stage.num_iterations * stage.pipeline_seconds for stage in profile.stages)
    assert sum(row.compute_seconds for row in component_rows(profile)) + own == pytest.approx(total)


def test_component_row_counts_calls_over_all_iterations():
    unet = component_rows(examples.sdxl())[2]
    assert (unet.component, unet.num_calls, unet.dtype) == ("unet", 50, "bfloat16")
    assert unet.copy_seconds == unet.used_bytes / examples.DEVICE.pinned_copy_bytes_per_second
    assert unet.activation_bytes == 880 * MIB


def test_component_called_in_two_stages_takes_both():
    weights = examples.component("encoder", 100, 2)
    stages = (
        examples.stage("a", examples.activity(weights, 1.0, 10)),
        examples.stage("b", examples.activity(weights, 2.0, 30), num_iterations=3),
    )
    (row,) = component_rows(examples.profile("P", (weights,), stages))
    assert row.num_calls == 4
    assert row.compute_seconds == pytest.approx(7.0)
    assert row.activation_bytes == 30 * MIB


def test_component_that_is_never_called_has_no_activations():
    checker = component_rows(examples.sdxl())[-1]
    assert (checker.used_bytes, checker.num_calls, checker.activation_bytes) == (0, 0, None)


def test_component_rows_follow_the_stages_that_a_permission_brings():
    profile = examples.sdxl()
    vae = profile.component("vae")
    tiled: tuple[Stage, ...] = (*profile.stages[:-1], examples.stage("vae.decode", examples.activity(vae, 2.0, 600)))
    profile = dataclasses.replace(profile, variants=(Variant(permissions=("vae_tiling",), stages=tiled),))
    assert component_rows(profile, permissions=("vae_tiling",))[3].activation_bytes == 600 * MIB
    assert component_rows(profile)[3].activation_bytes == 3300 * MIB


def test_component_rows_stand_in_order_of_first_use():
    profile = examples.sdxl()
    shuffled = dataclasses.replace(profile, components=profile.components[::-1])
    assert component_rows(shuffled) == component_rows(profile)


@pytest.mark.parametrize("plan", [plan for _, plan in CASES])
def test_placement_rows_spell_out_the_whole_plan(plan):
    rows = placement_rows(plan)
    assert len(rows) == len(plan.placements) * len(plan.stages)
    for index, stage in enumerate(plan.estimate.stages):
        of_stage = rows[index :: len(plan.stages)]
        assert {row.stage for row in of_stage} == {stage.name}
        assert sum(row.kept_bytes for row in of_stage) == stage.kept_bytes
        assert sum(row.slot_bytes for row in of_stage) == stage.slot_bytes


def test_only_a_streamed_placement_has_slots():
    rows = placement_rows(examples.flux_plan())
    assert {row.role for row in rows} == {"resident", "offloaded", "streamed", "idle"}
    assert all((row.slot_bytes > 0) == (row.role == "streamed") for row in rows)


@settings(max_examples=30, deadline=None)
@given(with_or_without_exclusion(), st.floats(0, 1))
def test_mode_seconds_are_compute_and_exposed_copies(profile, fraction):
    budget = budget_between(pose(profile), fraction)
    for row in mode_rows(compare_modes(profile, budget)):
        assert row.compute_seconds + row.exposed_copy_seconds == pytest.approx(row.seconds)
        assert row.fits == (row.peak_bytes <= budget)


def test_mode_rows_are_compared_with_the_plan_if_there_is_one():
    comparison = examples.comparison(examples.sdxl_plan())
    rows = {row.mode: row for row in mode_rows(comparison)}
    assert rows["vramtune"].plan_ratio == 1
    assert rows["group offload, block, stream"].plan_ratio == pytest.approx(9.5)
    assert all(row.plan_ratio is None for row in mode_rows(dataclasses.replace(comparison, plan=None)))


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.floats(0.1, 1e4)), max_size=8))
def test_modes_that_fit_come_first_and_the_fastest_of_them_on_top(drawn):
    stock = tuple(
        ModeEstimate(
            mode=str(i),
            fits=fits,
            peak_bytes=GIB,
            seconds=seconds,
            compute_seconds=seconds,
            moved_bytes=0,
            moved_back_bytes=0,
            host_bytes=0,
            **examples.likely(seconds, GIB),
        )
        for i, (fits, seconds) in enumerate(drawn)
    )
    comparison = examples.comparison(examples.sdxl_plan())
    rows = mode_rows(dataclasses.replace(comparison, plan=None, stock=stock))
    assert sorted(row.mode for row in rows) == sorted(mode.mode for mode in stock)
    assert [bool(row.fits) for row in rows] == sorted((bool(row.fits) for row in rows), reverse=True)
    fitting = [row.seconds for row in rows if row.fits]
    assert fitting == sorted(fitting)


def point(budget_bytes, seconds, *, bound=8.0, compute=8.0, permissions=()):
    return FrontierPoint(
        budget_bytes=budget_bytes,
        permissions=permissions,
        estimate=plan_results.estimate(seconds, peak_bytes=budget_bytes, bound_seconds=bound, compute_seconds=compute),
    )


def test_point_stands_beside_the_fastest_stock_mode_that_fits_it():
    plan = examples.sdxl_plan()
    needs = {mode.mode: mode.peak_bytes for mode in examples.comparison(plan).stock}
    budgets = (GIB, needs["group offload, block, stream"], needs["model offload"])
    rows = point_rows(plan_results.frontier(plan, *(point(budget, 10.0) for budget in budgets)))
    assert [row.stock_mode for row in rows] == [None, "group offload, block, stream", "model offload"]
    assert rows[0].stock_seconds is None
    assert rows[0].gap_fraction == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("seconds", "num_iterations", "slot_bytes", "limit"),
    [
        (10.0, 50, GIB, "compute"),
        (10.04, 50, GIB, "compute"),
        (11.0, 50, 0, "loads"),
        (11.0, 1, GIB, "loads"),
        (11.0, 50, GIB, "copy rate"),
    ],
)
def test_points_limit_follows_from_the_stage_that_waits_longest(seconds, num_iterations, slot_bytes, limit):
    given = point(GIB, seconds, compute=10.0, permissions=("vae_tiling",))
    stages = tuple(
        dataclasses.replace(stage, num_iterations=num_iterations, slot_bytes=slot_bytes)
        for stage in given.estimate.stages
    )
    given = dataclasses.replace(given, estimate=dataclasses.replace(given.estimate, stages=stages))
    (row,) = point_rows(plan_results.frontier(examples.sdxl_plan(), given))
    assert (row.limit, row.permissions) == (limit, "vae_tiling")


def test_stock_mode_that_needs_more_than_the_card_gives_does_not_fit():
    rows = stock_rows(plan_results.frontier(examples.sdxl_plan()))
    assert [row.peak_bytes for row in rows] == sorted(row.peak_bytes for row in rows)
    assert [row.fits for row in rows] == [True, True, False]
    assert [row.plan_ratio is None for row in rows] == [True, False, False]


def test_beside_rows_before_a_call_have_nothing_measured():
    plan = examples.sdxl_plan()
    rows = beside_rows(plan, None)
    assert [row.predicted.seconds for row in rows] == [stage.seconds for stage in plan.estimate.stages]
    assert {row.measured for row in rows} == {None}


def test_beside_rows_after_a_call_add_up_to_what_was_measured():
    plan = examples.sdxl_plan()
    measured = plan_results.measurement(plan)
    assert sum(row.measured.seconds for row in beside_rows(plan, measured)) == pytest.approx(measured.seconds)
