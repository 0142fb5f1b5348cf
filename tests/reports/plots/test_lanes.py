import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reports import examples
from tests.reports.plots import nouns
from vramtune.reports import plots
from vramtune.schema import Timeline


def of(profile, plan, timeline=None):
    return plots.step_lanes(timeline or nouns.timeline(profile, plan), profile=profile, plan=plan)


@pytest.mark.parametrize("case", nouns.CASES)
def test_a_step_shows_each_visit_once_and_lasts_as_long_as_its_share(case):
    profile, plan = nouns.CASES[case]
    plot = of(profile, plan)
    index = max(range(len(plan.stages)), key=lambda s: plan.estimate.stages[s].seconds)
    stage = plan.stages[index]
    assert sum(span.engine == "compute" for span in plot.spans) == len(stage.visits)
    assert plot.seconds == pytest.approx(plan.estimate.stages[index].seconds / stage.num_iterations)
    assert f"in step {stage.num_iterations // 2 + 1} of {stage.num_iterations} of {stage.name}," in plot.title


@pytest.mark.parametrize("case", nouns.CASES)
def test_only_groups_that_are_not_kept_are_streamed(case):
    profile, plan = nouns.CASES[case]
    plot = of(profile, plan)
    index = max(range(len(plan.stages)), key=lambda s: plan.estimate.stages[s].seconds)
    (active,) = (placement for placement in plan.placements if placement.active[index])
    computed = [span.is_kept for span in plot.spans if span.engine == "compute"]
    assert computed.count(True) == active.kept[index]
    assert not any(span.is_kept for span in plot.spans if span.engine == "copy")


@settings(max_examples=15)
@given(st.floats(0, 0.9), st.floats(0.01, 3))
def test_a_copy_that_began_earlier_or_ends_later_is_cut_at_the_edges_of_the_step(shift, stretch):
    profile, plan = examples.flux(), examples.flux_plan()
    timeline = nouns.timeline(profile, plan)
    moved = tuple(
        dataclasses.replace(
            span,
            start_seconds=span.start_seconds - shift,
            end_seconds=span.start_seconds - shift + stretch * (span.end_seconds - span.start_seconds),
        )
        if span.engine == "copy"
        else span
        for span in timeline.spans
    )
    plot = of(profile, plan, dataclasses.replace(timeline, spans=moved))
    assert all(0 <= span.start_seconds < span.end_seconds <= plot.seconds for span in plot.spans)
    assert plot.busy_fraction("compute") == pytest.approx(1)


def test_a_stage_of_one_iteration_is_shown_whole():
    vae = examples.component("vae", 160, 4)
    profile = examples.profile("P", (vae,), (examples.stage("vae.decode", examples.activity(vae, 2.0, 90)),))
    plan = examples.plan(profile, 4, {"vae": (2,)})
    plot = of(profile, plan)
    assert ":\ncompute and copies in vae.decode,\npredicted: " in plot.title
    assert plot.seconds == pytest.approx(plan.estimate.seconds)


def test_the_lanes_say_how_busy_they_are_and_the_legend_what_is_streamed():
    axes = plots.draw_lanes(of(examples.flux(), examples.flux_plan()))
    assert [text.get_text() for text in axes.texts] == [
        "compute: busy 100% of the step",
        "copy to the GPU: busy 37% of the step",
    ]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["transformer, kept", "transformer, streamed", "idle"]
    assert axes.get_xlabel() == "seconds (the step takes 2.10 s)"


def test_where_nothing_is_streamed_the_copy_lane_is_idle():
    profile, plan = examples.sdxl(), examples.sdxl_plan()
    timeline = nouns.timeline(profile, plan)
    computed = tuple(span for span in timeline.spans if span.engine == "compute")
    plot = of(profile, plan, Timeline(spans=computed, memory=timeline.memory))
    assert plot.busy_fraction("copy") == 0
    assert "copy to the GPU: busy 0% of the step" in [
        text.get_text() for text in plots.draw_lanes(plot).texts
    ]
