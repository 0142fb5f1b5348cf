import dataclasses

from hypothesis import given, settings

from tests.reports import examples
from tests.reports.plots import factories
from vramtune.reports import plots
from vramtune.reports.plots.owners import CONTEXT, OTHER, SLOTS, Owner, held_by_owner
from vramtune.reports.plots.style import OWNER_LOOKS, owner_looks
from vramtune.units import MIB

UNLUCKY = ("context", "slots", *(owner.name for owner in OWNER_LOOKS))
"""Names that a component shares with what is not a component, or nearly so."""


@settings(max_examples=30)
@given(factories.timelines())
def test_the_owners_of_a_level_hold_all_of_it(timeline):
    for level in timeline.memory[:5]:
        assert sum(held_by_owner(level, timeline).values()) == level.held_bytes


def test_the_weights_of_components_stand_between_fixed_and_working_memory():
    flux = examples.timeline(examples.flux(), examples.flux_plan())
    owners = list(held_by_owner(flux.memory[0], flux))
    assert owners[2:6] == [Owner(name=name, is_component=True) for name in flux.components]
    assert not any(owner.is_component for owner in (*owners[:2], *owners[6:]))


def unlucky_timeline():
    """One stage in which every component holds ten MiB more than the one before, beside 100 MiB of context."""
    flux = examples.timeline(examples.flux(), examples.flux_plan())
    level = dataclasses.replace(
        flux.memory[0],
        component_bytes={name: 10 * number * MIB for number, name in enumerate(UNLUCKY, 1)},
        slot_bytes=0,
        activation_bytes=0,
        pipeline_bytes=0,
        workspace_bytes=0,
        context_bytes=100 * MIB,
    )
    estimate = dataclasses.replace(flux.plan.estimate, stages=flux.plan.estimate.stages[:1])
    plan = dataclasses.replace(flux.plan, stages=flux.plan.stages[:1], estimate=estimate)
    return dataclasses.replace(flux, plan=plan, components=UNLUCKY, memory=(level,))


def test_a_component_called_like_another_owner_keeps_its_own_bytes():
    timeline = unlucky_timeline()
    held = held_by_owner(timeline.memory[0], timeline)
    assert held[CONTEXT] == 100 * MIB
    assert held[SLOTS] == 0
    for number, name in enumerate(UNLUCKY, 1):
        assert held[Owner(name=name, is_component=True)] == 10 * number * MIB


def test_a_component_called_like_another_owner_has_a_look_of_its_own():
    looks = owner_looks(UNLUCKY)
    assert len(looks) == len(UNLUCKY) + len(OWNER_LOOKS)
    assert {owner: looks[owner] for owner in OWNER_LOOKS} == OWNER_LOOKS
    assert looks[Owner(name=OTHER.name, is_component=True)] != looks[OTHER]


def test_plots_draw_a_component_called_like_another_owner_beside_it():
    timeline = unlucky_timeline()
    layers = {layer.owner: layer.gib for layer in plots.memory_over_call(timeline).layers}
    bars = {bars.owner: bars.gib for bars in plots.stage_peaks(timeline).owners}
    for drawn in (layers, bars):
        assert drawn[CONTEXT] == (100 / 1024,)
        assert drawn[Owner(name=CONTEXT.name, is_component=True)] == (30 / 1024,)
        assert drawn[Owner(name="context", is_component=True)] == (10 / 1024,)
    timeline.plot_memory()
    timeline.plot_peaks()
