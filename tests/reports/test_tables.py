import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reports import examples
from vramtune.reports.tables import component_rows, mode_rows, placement_rows, stage_rows
from vramtune.schema import Comparison, ModeEstimate, Stage, Variant
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


@pytest.mark.parametrize(("profile", "plan"), CASES)
def test_a_stage_rows_parts_make_its_peak(profile, plan):
    fixed = profile.device.context_bytes + profile.device.workspace_bytes
    for row in stage_rows(profile, plan):
        assert row.kept_bytes + row.slot_bytes + row.activation_bytes + fixed == row.peak_bytes


def test_modes_stand_beside_the_plan():
    plan = examples.sdxl_plan()
    rows = {row.mode: row for row in mode_rows(examples.comparison(plan), plan=plan)}
    assert rows["vramtune"].plan_ratio == 1
    assert rows["group offload, block, stream"].plan_ratio == pytest.approx(9.5)
    assert all(row.plan_ratio is None for row in mode_rows(examples.comparison(plan)))


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
    rows = mode_rows(Comparison(budget_bytes=GIB, bound_seconds=None, modes=modes))
    assert sorted(row.mode for row in rows) == sorted(mode.mode for mode in modes)
    assert [bool(row.fits) for row in rows] == sorted((bool(row.fits) for row in rows), reverse=True)
    fitting = [row.seconds for row in rows if row.fits]
    assert fitting == sorted(fitting)


def test_components_stand_in_order_of_first_use():
    profile = examples.sdxl()
    shuffled = dataclasses.replace(profile, components=profile.components[::-1])
    assert component_rows(shuffled) == component_rows(profile)
