"""No words cut off, none on others, whatever the pipeline."""

import pytest
from matplotlib.figure import Figure

from tests.reports import examples
from tests.reports.plots import nouns
from tests.reports.plots.layout import faults
from vramtune.reports import plots


def memory(profile, plan, **on):
    timeline = nouns.timeline(profile, plan)
    return plots.draw_memory(plots.memory_over_call(timeline, profile=profile, plan=plan), **on)


def peaks(profile, plan, **on):
    timeline = nouns.timeline(profile, plan)
    return plots.draw_peaks(plots.stage_peaks(timeline, profile=profile, plan=plan), **on)


def lanes(profile, plan, **on):
    timeline = nouns.timeline(profile, plan)
    return plots.draw_lanes(plots.step_lanes(timeline, profile=profile, plan=plan), **on)


def frontier(profile, plan, **on):
    return plots.draw_frontier(plots.latency_frontier(nouns.frontier(plan), profile=profile), **on)


def modes(profile, plan, **on):
    return plots.draw_modes(plots.mode_seconds(examples.comparison(plan), profile=profile), **on)


def measured(profile, plan, **on):
    return plots.draw_measured(plots.predicted_and_measured(nouns.measurement(plan), plan=plan), **on)


def components(profile, plan, **on):
    return plots.draw_components(plots.component_costs(profile), **on)


PLOTS = (memory, peaks, lanes, frontier, modes, measured, components)


@pytest.mark.parametrize("draw", PLOTS)
@pytest.mark.parametrize("case", nouns.CASES)
def test_no_words_are_cut_off_or_lie_on_others(draw, case):
    assert faults(draw(*nouns.CASES[case])) == []


@pytest.mark.parametrize("draw", PLOTS)
def test_drawing_uses_the_axes_it_is_given(draw):
    axes = Figure().subplots()
    assert draw(*nouns.CASES["flux"], ax=axes) is axes
    assert axes.get_title(loc="left").startswith("FluxPipeline ")


def test_words_that_overlap_or_are_cut_off_are_found():
    axes = Figure(figsize=(4, 3)).subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, "here")
    axes.text(0.5, 0.52, "there", rotation=30, rotation_mode="anchor")
    axes.text(0.9, 0.1, "far too long for this figure")
    assert faults(axes) == ["cut off: 'far too long for this figure'", "'here' lies on 'there'"]
