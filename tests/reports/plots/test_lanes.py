import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reports import examples
from tests.reports.plots import factories
from vramtune.reports import plots

TIMELINES = {name: factories.timeline(profile, plan) for name, (profile, plan) in factories.CASES.items()}


def longest_stage(plan):
    """Index of the stage that takes the most seconds."""
    return max(range(len(plan.stages)), key=lambda stage: plan.estimate.stages[stage].seconds)


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_the_step_shows_each_visit_once_and_lasts_its_share_of_the_stage(timeline):
    plot, plan = plots.step_lanes(timeline), timeline.plan
    index = longest_stage(plan)
    stage = plan.stages[index]
    assert sum(span.engine == "compute" for span in plot.spans) == len(stage.visits)
    assert plot.seconds == pytest.approx(plan.estimate.stages[index].seconds / stage.num_iterations)
    assert f"in step {stage.num_iterations // 2 + 1} of {stage.num_iterations} of {stage.name}," in plot.title


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_kept_groups_compute_and_only_the_others_are_copied(timeline):
    plot, plan = plots.step_lanes(timeline), timeline.plan
    index = longest_stage(plan)
    (active,) = (placement for placement in plan.placements if placement.active[index])
    computed = [span.is_kept for span in plot.spans if span.engine == "compute"]
    assert computed.count(True) == active.kept[index]
    assert not any(span.is_kept for span in plot.spans if span.engine == "copy")


@settings(max_examples=15)
@given(st.floats(0, 0.9), st.floats(0.01, 3))
def test_a_copy_that_begins_before_the_step_or_ends_after_it_is_cut_off_there(shift, stretch):
    timeline = TIMELINES["flux"]
    spans = tuple(
        dataclasses.replace(
            span,
            start_seconds=span.start_seconds - shift,
            end_seconds=span.start_seconds - shift + stretch * (span.end_seconds - span.start_seconds),
        )
        if span.engine == "copy"
        else span
        for span in timeline.spans
    )
    plot = plots.step_lanes(dataclasses.replace(timeline, spans=spans))
    assert all(0 <= span.start_seconds < span.end_seconds <= plot.seconds for span in plot.spans)
    assert plot.busy_fraction("compute") == pytest.approx(1)


def test_a_stage_of_one_iteration_is_shown_whole():
    vae = examples.component("vae", 160, 4)
    profile = examples.profile("P", (vae,), (examples.stage("vae.decode", examples.activity(vae, 2.0, 90)),))
    plan = examples.plan(profile, 4, {"vae": (2,)})
    plot = plots.step_lanes(factories.timeline(profile, plan))
    assert ":\ncompute and copies in vae.decode,\npredicted: " in plot.title
    assert plot.seconds == pytest.approx(plan.estimate.seconds)


def lane_names(axes):
    return [text.get_text() for text in axes.texts]


def test_each_lane_says_how_busy_it_is_and_the_legend_what_is_streamed():
    axes = plots.draw_lanes(plots.step_lanes(TIMELINES["flux"]))
    assert lane_names(axes) == ["compute: busy 100% of the step", "copy to the GPU: busy 37% of the step"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["transformer, kept", "transformer, streamed", "idle"]
    assert axes.get_xlabel() == "seconds (the step takes 2.10 s)"


def test_without_copies_the_copy_lane_is_idle():
    timeline = TIMELINES["sdxl"]
    computed = tuple(span for span in timeline.spans if span.engine == "compute")
    plot = plots.step_lanes(dataclasses.replace(timeline, spans=computed))
    assert plot.busy_fraction("copy") == 0
    assert "copy to the GPU: busy 0% of the step" in lane_names(plots.draw_lanes(plot))
