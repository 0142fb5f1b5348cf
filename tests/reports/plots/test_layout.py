"""No words cut off, none on others, whatever the pipeline: each noun drawn by its own method."""

import dataclasses

import pytest
from matplotlib.figure import Figure

from tests.reports import examples
from tests.reports.plots import factories
from tests.reports.plots.layout import faults
from vramtune.reports import plots
from vramtune.schema import Variant
from vramtune.units import MIB


def memory(profile, plan, **axes):
    return factories.timeline(profile, plan).plot_memory(**axes)


def peaks(profile, plan, **axes):
    return factories.timeline(profile, plan).plot_peaks(**axes)


def lanes(profile, plan, **axes):
    return factories.timeline(profile, plan).plot_lanes(**axes)


def frontier(profile, plan, **axes):
    return factories.frontier(plan).plot(**axes)


def modes(profile, plan, **axes):
    return examples.comparison(plan).plot(**axes)


def measured(profile, plan, **axes):
    return factories.measurement(plan).plot(plan, **axes)


def components(profile, plan, **axes):
    return profile.plot(**axes)


PLOTS = (memory, peaks, lanes, frontier, modes, measured, components)


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("case", factories.CASES)
def test_no_words_are_cut_off_or_lie_on_others(plot, case):
    assert faults(plot(*factories.CASES[case])) == []


@pytest.mark.parametrize("plot", PLOTS)
def test_a_nouns_method_draws_on_the_axes_that_it_is_given(plot):
    axes = Figure().subplots()
    assert plot(*factories.CASES["flux"], ax=axes) is axes
    assert axes.get_title(loc="left").startswith("FluxPipeline ")


@pytest.mark.parametrize("plot", PLOTS)
def test_a_nouns_method_without_axes_makes_a_figure_for_each_call(plot):
    first, second = (plot(*factories.CASES["flux"]) for _ in range(2))
    assert first.figure is not second.figure
    assert first.figure.axes == [first]
    assert first.get_title(loc="left") == second.get_title(loc="left")


@pytest.mark.parametrize("permissions", [(), ("vae_tiling",)])
def test_a_profiles_method_draws_the_costs_under_the_permissions(permissions):
    profile = examples.sdxl()
    *others, decode = profile.stages
    tiled = dataclasses.replace(decode.activities[0], activation_bytes=700 * MIB)
    stages = (*others, dataclasses.replace(decode, activities=(tiled,)))
    variant = Variant(permissions=("vae_tiling",), stages=stages)
    profile = dataclasses.replace(profile, variants=(variant,))
    drawn = [text.get_text() for text in profile.plot(permissions=permissions).texts]
    costs = plots.component_costs(profile, permissions=permissions)
    assert drawn == [text.get_text() for text in plots.draw_components(costs).texts]
    assert ("0.68 GiB" in drawn, "3.22 GiB" in drawn) == (bool(permissions), not permissions)


def test_words_that_overlap_or_are_cut_off_are_found():
    axes = Figure(figsize=(4, 3)).subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, "here")
    axes.text(0.5, 0.52, "there", rotation=30, rotation_mode="anchor")
    axes.text(0.9, 0.1, "far too long for this figure")
    assert faults(axes) == ["cut off: 'far too long for this figure'", "'here' lies on 'there'"]
