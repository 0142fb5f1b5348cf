"""Where a pipeline goes for a component's call, what is kept there, and in which order groups are visited."""

from types import ModuleType

import pytest

from tests import tiny_pipelines
from tests.offload.tuned_pipelines import planned
from vramtune.offload.binding import Binding, BoundComponent
from vramtune.offload.position import Position, active_placements, counts, itinerary, kept_groups, next_position

NAME = "flux"


@pytest.fixture
def binding(sim: ModuleType) -> Binding:
    plan = planned(NAME, 0.4)
    assert [stage.name for stage in plan.stages] == ["text_encoder", "text_encoder_2", "transformer", "vae.decode"]
    return Binding(tiny_pipelines.build(NAME), plan)


def component(binding: Binding, name: str) -> BoundComponent:
    return next(each for each in binding.components if each.name == name)


@pytest.mark.parametrize(
    ("here", "name", "method", "stage"),
    [
        (None, "text_encoder", "forward", 0),
        (None, "transformer", "forward", 2),
        (2, "transformer", "forward", 2),
        (2, "transformer", None, 2),
        (2, "vae", "decode", 3),
        (3, "text_encoder_2", "forward", 1),
        (1, "text_encoder", "forward", 0),
        (2, "vae", "encode", None),
        (2, "text_encoder", "generate", None),
    ],
)
def test_a_call_goes_to_the_next_stage_that_knows_it_or_off_the_plan(
    binding: Binding, here: int | None, name: str, method: str | None, stage: int | None
) -> None:
    called = component(binding, name)
    position = next_position(binding.plan, None if here is None else Position(here), called, method)
    assert position == (Position(None, called) if stage is None else Position(stage))


def test_off_the_plan_a_component_stays_there_until_it_calls_what_a_stage_knows(binding: Binding) -> None:
    vae, there = component(binding, "vae"), Position(None, component(binding, "vae"))
    assert next_position(binding.plan, there, vae, None) is there
    assert next_position(binding.plan, there, vae, "decode") == Position(3)
    assert there.name(binding.plan) == "vae (unplanned)"
    assert Position(3).name(binding.plan) == "vae.decode"


def test_in_a_stage_what_runs_keeps_what_is_planned_and_others_what_is_there(binding: Binding) -> None:
    (active,) = active_placements(binding, Position(2))
    assert active.component.name == "transformer"
    kept = kept_groups(binding, Position(2), there=set())
    assert kept[active] == [group for group in active.groups[: active.kept[2]] if group.moves]
    assert all(groups == [] for keeper, groups in kept.items() if keeper is not active)
    every = {group for each in binding.components for group in each.groups}
    for placement, groups in kept_groups(binding, Position(2), there=every).items():
        assert groups == [group for group in placement.groups[: placement.kept[2]] if group.moves]


def test_off_the_plan_the_component_keeps_its_root_and_what_no_plan_knows(binding: Binding) -> None:
    vae = component(binding, "vae")
    position = Position(None, vae)
    kept = kept_groups(binding, position, there=set())
    assert kept[vae] == [group for group in (vae.root, vae.unplanned) if group.moves]
    for placement in binding.placements:
        num_kept, _ = counts(placement, position)
        assert num_kept == (placement.kept[3] if placement.component is vae else placement.num_resident)


def test_a_stages_itinerary_is_the_plans_and_off_the_plan_one_iteration_of_a_stage_that_is_like_it(
    binding: Binding,
) -> None:
    visits, num_iterations = itinerary(binding, Position(2))
    stage = binding.plan.stages[2]
    assert num_iterations == stage.num_iterations > 1
    assert [
        (binding.placements.index(placement), placement.groups.index(group)) for placement, group in visits
    ] == list(stage.visits)
    transformer = component(binding, "transformer")
    assert itinerary(binding, Position(None, transformer)) == (visits, 1)
