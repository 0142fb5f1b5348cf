import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reports import examples, seen
from tests.tuner.test_search import budget_between, with_or_without_exclusion
from vramtune.reports.rows import (
    beside_rows,
    component_rows,
    mode_rows,
    placement_rows,
    point_rows,
    stage_rows,
)
from vramtune.schema import Comparison, Frontier, FrontierPoint, ModeEstimate, Stage, Variant
from vramtune.tuner.problem import pose
from vramtune.tuner.search import choose_plan
from vramtune.tuner.simulate import timeline
from vramtune.tuner.stock_modes import compare_modes
from vramtune.units import GIB, MIB

CASES = [(examples.sdxl(), examples.sdxl_plan()), (examples.flux(), examples.flux_plan())]


@pytest.mark.parametrize(("profile", "plan"), CASES)
def test_component_seconds_and_glue_add_up_to_the_call(profile, plan):
    total = sum(stage.num_iterations * stage.seconds for stage in profile.stages)
    glue = sum(stage.num_iterations * stage.glue_seconds for stage in profile.stages)
    assert sum(row.compute_seconds for row in component_rows(profile)) + glue == pytest.approx(total)


def test_a_component_row_counts_calls_over_all_iterations():
    unet = component_rows(examples.sdxl())[2]
    assert (unet.component, unet.num_calls, unet.dtype) == ("unet", 50, "bfloat16")
    assert unet.copy_seconds == unet.used_bytes / examples.DEVICE.pinned_copy_bytes_per_second
    assert unet.activation_bytes == 880 * MIB


def test_a_component_called_in_two_stages_takes_both():
    weights = examples.component("encoder", 100, 2)
    stages = (
        examples.stage("a", examples.activity(weights, 1.0, 10)),
        examples.stage("b", examples.activity(weights, 2.0, 30), num_iterations=3),
    )
    (row,) = component_rows(examples.profile("P", (weights,), stages))
    assert row.num_calls == 4
    assert row.compute_seconds == pytest.approx(7.0)
    assert row.activation_bytes == 30 * MIB


def test_a_component_that_is_never_called_has_no_activations():
    checker = component_rows(examples.sdxl())[-1]
    assert (checker.used_bytes, checker.num_calls, checker.activation_bytes) == (0, 0, None)


def test_rows_follow_the_stages_that_a_permission_brings():
    profile = examples.sdxl()
    vae = profile.component("vae")
    tiled: tuple[Stage, ...] = (
        *profile.stages[:-1],
        examples.stage("vae.decode", examples.activity(vae, 2.0, 600)),
    )
    profile = dataclasses.replace(profile, variants=(Variant(permission="vae_tiling", stages=tiled),))
    plan = dataclasses.replace(examples.sdxl_plan(), permissions=("vae_tiling",))
    assert component_rows(profile, permissions=("vae_tiling",))[3].activation_bytes == 600 * MIB
    assert stage_rows(profile, plan)[-1].activation_bytes == 604 * MIB
    assert stage_rows(profile, examples.sdxl_plan())[-1].activation_bytes == 3304 * MIB


@pytest.mark.parametrize(("profile", "plan"), CASES)
def test_placement_rows_spell_out_the_whole_plan(profile, plan):
    rows = placement_rows(plan)
    assert len(rows) == len(plan.placements) * len(plan.stages)
    for index, stage in enumerate(stage_rows(profile, plan)):
        of_stage = rows[index :: len(plan.stages)]
        assert {row.stage for row in of_stage} == {stage.stage}
        assert sum(row.kept_bytes for row in of_stage) == stage.kept_bytes
        assert sum(row.slot_bytes for row in of_stage) == stage.slot_bytes


def test_only_a_streamed_placement_has_slots():
    rows = placement_rows(examples.flux_plan())
    assert {row.role for row in rows} == {"resident", "offloaded", "streamed", "idle"}
    assert all((row.slot_bytes > 0) == (row.role == "streamed") for row in rows)


def parts_bytes(row):
    return row.kept_bytes + row.slot_bytes + row.activation_bytes + row.fixed_bytes


@pytest.mark.parametrize(("profile", "plan"), CASES)
def test_a_stage_rows_parts_make_its_peak(profile, plan):
    for row in stage_rows(profile, plan):
        assert parts_bytes(row) == row.peak_bytes


@settings(max_examples=60, deadline=None)
@given(with_or_without_exclusion(), st.floats(0, 1))
def test_so_they_do_in_every_plan_and_all_tables_say_the_same(bare, fraction):
    """Also where components are excluded from offload that own more than the call uses."""
    facts = dataclasses.replace(bare.device, context_bytes=300 * MIB, workspace_bytes=32 * MIB)
    profile = dataclasses.replace(bare, device=facts)
    plan = choose_plan(profile, budget_between(pose(profile), fraction))
    rows, estimate = stage_rows(profile, plan), plan.estimate
    held = [[] for _ in rows]
    for level in timeline(profile, plan).memory:
        held[level.stage].append(level.owners)
    for row, levels in zip(rows, held, strict=True):
        highest = max(levels, key=lambda owners: sum(owners.values()))
        weights = sum(
            highest[component.name] for component in profile.components if component.name in highest
        )
        assert parts_bytes(row) == row.peak_bytes == sum(highest.values())
        assert (row.kept_bytes, row.slot_bytes) == (weights, highest["slots"])
    assert max(row.peak_bytes for row in rows) == estimate.peak_bytes
    assert sum(row.moved_bytes for row in rows) == estimate.moved_bytes
    assert sum(row.seconds for row in rows) == pytest.approx(estimate.seconds)
    assert all(row.seconds >= row.compute_seconds * (1 - 1e-9) for row in rows)


@settings(max_examples=30, deadline=None)
@given(with_or_without_exclusion(), st.floats(0, 1))
def test_a_modes_seconds_are_compute_and_exposed_copies(profile, fraction):
    budget = budget_between(pose(profile), fraction)
    for row in mode_rows(compare_modes(profile, budget)):
        assert row.compute_seconds + row.exposed_copy_seconds == pytest.approx(row.seconds)
        assert row.fits == (row.peak_bytes <= budget)


def test_modes_stand_beside_the_plan():
    plan = examples.sdxl_plan()
    comparison = examples.comparison(plan)
    rows = {row.mode: row for row in mode_rows(comparison)}
    assert rows["vramtune"].plan_ratio == 1
    assert rows["group offload, block, stream"].plan_ratio == pytest.approx(9.5)
    without = dataclasses.replace(comparison, modes=comparison.stock)
    assert all(row.plan_ratio is None for row in mode_rows(without))


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.floats(0.1, 1e4)), max_size=8))
def test_modes_that_fit_come_first_and_the_fastest_of_them_on_top(drawn):
    modes = tuple(
        ModeEstimate(
            mode=str(i),
            fits=fits,
            peak_bytes=GIB,
            seconds=seconds,
            compute_seconds=seconds,
            copied_in_bytes=0,
            copied_out_bytes=0,
        )
        for i, (fits, seconds) in enumerate(drawn)
    )
    rows = mode_rows(Comparison(asked_bytes=GIB, budget_bytes=GIB, bound_seconds=None, modes=modes))
    assert sorted(row.mode for row in rows) == sorted(mode.mode for mode in modes)
    assert [bool(row.fits) for row in rows] == sorted((bool(row.fits) for row in rows), reverse=True)
    fitting = [row.seconds for row in rows if row.fits]
    assert fitting == sorted(fitting)


def test_components_stand_in_order_of_first_use():
    profile = examples.sdxl()
    shuffled = dataclasses.replace(profile, components=profile.components[::-1])
    assert component_rows(shuffled) == component_rows(profile)


def test_a_point_stands_beside_the_fastest_stock_mode_that_fits_it():
    modes = examples.comparison(examples.sdxl_plan()).stock
    needs = {mode.mode: mode.peak_bytes for mode in modes}
    budgets = (GIB, needs["group offload, block, stream"], needs["model offload"])
    points = tuple(
        FrontierPoint(budget_bytes=budget, peak_bytes=budget, seconds=10.0, bound_seconds=8.0)
        for budget in budgets
    )
    rows = point_rows(Frontier(points=points, modes=modes))
    assert [row.stock_mode for row in rows] == [None, "group offload, block, stream", "model offload"]
    assert rows[0].stock_seconds is None
    assert rows[0].gap_fraction == pytest.approx(0.25)


def test_before_a_call_nothing_was_measured():
    plan = examples.sdxl_plan()
    rows = beside_rows(plan, None)
    assert [row.predicted_seconds for row in rows] == [stage.seconds for stage in plan.estimate.stages]
    assert {row.measured_seconds for row in rows} == {None}
    measured = seen.measurement(plan)
    assert sum(row.measured_seconds for row in beside_rows(plan, measured)) == pytest.approx(measured.seconds)
