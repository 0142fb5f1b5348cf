"""Finer groups: taken where slots of the usual ones cost a call too much, and nowhere else."""

from dataclasses import replace

import pytest

from tests.profiles import MIB, activity, component, device, profile, stage
from vramtune.errors import BudgetError
from vramtune.schema import Component, GroupChange, Profile, WeightGroup
from vramtune.tuner.bound import bound_seconds
from vramtune.tuner.changed import changed_profile
from vramtune.tuner.problem import pose
from vramtune.tuner.search import LEAST_FINER_GAIN, choose_plan, plan_again
from vramtune.tuner.simulate import estimate, recall, timeline

NUM_LAYERS, LAYER_BYTES, LAYERS_OF_A_GROUP = 48, 8 * MIB, 4
COPY_SECONDS = LAYER_BYTES / 1e9
"""Of a layer."""
TIGHT, ROOMY = 200 * MIB, 600 * MIB


def unet() -> Component:
    """Layers in groups of four; its finer groups are the layers."""
    layers = component("unet", [LAYER_BYTES] * NUM_LAYERS)
    starts = range(0, NUM_LAYERS, LAYERS_OF_A_GROUP)
    groups = (
        WeightGroup(
            name=f"blocks.{start} …",
            weight_bytes=LAYERS_OF_A_GROUP * LAYER_BYTES,
            modules=tuple(f"blocks.{start + i}" for i in range(LAYERS_OF_A_GROUP)),
        )
        for start in starts
    )
    in_groups = (replace(layer, group=i // LAYERS_OF_A_GROUP + 1) for i, layer in enumerate(layers.layers))
    return replace(layers, groups=(layers.groups[0], *groups), layers=tuple(in_groups), finer_groups=layers.groups)


def denoising(layer_seconds: float) -> Profile:
    model = unet()
    return profile(device(), [model], [stage("unet", 8, activity(model, [layer_seconds] * NUM_LAYERS))])


COPY_BOUND, COMPUTE_BOUND = denoising(COPY_SECONDS / 4), denoising(3 * COPY_SECONDS)


def num_groups(plan):
    return len(plan.placements[0].groups)


def test_where_copies_set_the_pace_finer_groups_keep_more():
    plan = choose_plan(COPY_BOUND, TIGHT)
    usual = choose_plan(COPY_BOUND.in_groups(is_finer=False), TIGHT)
    assert (plan.is_finer, num_groups(plan)) == (True, 1 + NUM_LAYERS)
    assert (usual.is_finer, num_groups(usual)) == (False, 1 + NUM_LAYERS // LAYERS_OF_A_GROUP)
    assert plan.estimate.seconds < (1 - LEAST_FINER_GAIN) * usual.estimate.seconds
    assert plan.estimate.moved_bytes < usual.estimate.moved_bytes
    assert plan.estimate.peak_bytes <= TIGHT


@pytest.mark.parametrize(("of", "budget_bytes"), [(COPY_BOUND, ROOMY), (COMPUTE_BOUND, TIGHT)])
def test_where_nothing_waits_for_copies_groups_are_the_usual_ones(of, budget_bytes):
    plan = choose_plan(of, budget_bytes)
    assert (plan.is_finer, num_groups(plan)) == (False, 1 + NUM_LAYERS // LAYERS_OF_A_GROUP)


def test_a_budget_for_which_the_usual_ones_are_too_large_has_a_plan():
    with pytest.raises(BudgetError) as refused:
        choose_plan(COPY_BOUND.in_groups(is_finer=False), 24 * MIB)
    assert refused.value.smallest_bytes == LAYERS_OF_A_GROUP * LAYER_BYTES
    assert choose_plan(COPY_BOUND, 24 * MIB).is_finer
    with pytest.raises(BudgetError) as refused:
        choose_plan(COPY_BOUND, 4 * MIB)
    assert refused.value.smallest_bytes == LAYER_BYTES


def test_no_plan_in_either_groups_beats_the_bound():
    for budget_bytes in (24 * MIB, TIGHT, ROOMY):
        plan = choose_plan(COPY_BOUND, budget_bytes)
        assert plan.estimate.bound_seconds == bound_seconds(pose(COPY_BOUND).finer, budget_bytes)
        assert plan.estimate.bound_seconds <= plan.estimate.seconds


@pytest.mark.parametrize("budget_bytes", [TIGHT, ROOMY])
def test_a_profile_knows_its_plan_again_and_draws_it(budget_bytes, tmp_path):
    COPY_BOUND.save(tmp_path / "profile.json")
    again = Profile.load(tmp_path / "profile.json")
    plan = choose_plan(again, budget_bytes)
    assert again == COPY_BOUND
    assert estimate(recall(again, plan), plan.budget_bytes) == plan.estimate
    assert {span.group for span in timeline(again, plan).spans} <= {group.name for group in plan.placements[0].groups}


@pytest.mark.parametrize("is_finer", [True, False])
def test_once_at_work_a_plan_keeps_its_groups(is_finer):
    first = choose_plan(COPY_BOUND, TIGHT if is_finer else ROOMY)
    name = first.placements[0].groups[1].name
    change = GroupChange(component="unet", group=name, more_bytes=MIB, modules=(name,))
    now = changed_profile(COPY_BOUND.in_groups(is_finer=first.is_finer), [change])
    plan = plan_again(now, first)
    assert first.is_finer == is_finer
    assert {group.name for group in plan.placements[0].groups} == {group.name for group in first.placements[0].groups}
