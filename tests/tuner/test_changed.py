import pytest

from tests.profiles import MIB, activity, component, device, profile, stage
from vramtune.errors import BudgetError
from vramtune.schema import GroupChange, Profile
from vramtune.tuner.changed import changed_profile
from vramtune.tuner.search import choose_plan, plan_again


def streamed() -> Profile:
    unet = component("unet", [10 * MIB] * 6, root_bytes=MIB)
    return profile(device(), [unet], [stage("unet", 4, activity(unet, [0.001] * 6))])


def change(group: str, more_bytes: int, *modules: str) -> GroupChange:
    return GroupChange(component="unet", group=group, more_bytes=more_bytes, modules=modules)


LORA = (change("blocks.1", MIB, "blocks.1"), change("root", 2 * MIB, "embed.lora_A"))


def test_groups_have_the_bytes_and_modules_of_now_and_the_component_owns_them():
    before = streamed()
    unet = changed_profile(before, LORA).component("unet")
    assert [group.weight_bytes // MIB for group in unet.groups] == [3, 10, 11, 10, 10, 10, 10]
    assert unet.groups[0].modules == ("embed.lora_A",)
    assert unet.weights.num_bytes == before.component("unet").weights.num_bytes + 3 * MIB
    assert changed_profile(before, ()) is before


def test_a_component_that_the_profile_does_not_know_changes_nothing():
    incoming = GroupChange(component="image_encoder", group="unplanned", more_bytes=MIB, modules=())
    assert changed_profile(streamed(), [incoming]) == streamed()


def test_a_group_whose_modules_went_has_no_bytes_and_can_be_planned():
    gone = changed_profile(streamed(), [change("blocks.2", -10 * MIB, "blocks.2")])
    plan = plan_again(gone, choose_plan(streamed(), 40 * MIB))
    (placement,) = plan.placements
    assert sum(group.weight_bytes for group in placement.groups) == 51 * MIB


def test_the_next_plan_keeps_to_the_budget_of_the_first_less_a_margin():
    first = choose_plan(streamed(), 40 * MIB)
    plan = plan_again(changed_profile(streamed(), LORA), first)
    assert (plan.asked_bytes, plan.budget_bytes) == (40 * MIB, 40 * MIB)
    assert 30 * MIB < plan.estimate.peak_bytes <= 0.995 * 40 * MIB


def test_where_what_came_in_leaves_no_room_the_error_says_what_would_do():
    with pytest.raises(BudgetError, match="at least"):
        plan_again(changed_profile(streamed(), [change("root", 60 * MIB)]), choose_plan(streamed(), 40 * MIB))
