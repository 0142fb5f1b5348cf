import dataclasses

import pytest
from hypothesis import given, settings

from tests.reports import examples
from tests.reports.plots import nouns
from tests.reports.plots.test_memory import timelines
from vramtune.reports import plots
from vramtune.units import GIB


def of(profile, plan, timeline=None):
    timeline = timeline or examples.timeline(profile, plan)
    return plots.stage_peaks(timeline, profile=profile, plan=plan)


@settings(max_examples=30)
@given(timelines())
def test_each_bar_is_as_long_as_its_stage_is_high(timeline):
    plot = of(examples.sdxl(), examples.sdxl_plan(), timeline)
    for stage, total in enumerate(plot.totals_gib or (0.0,) * 4):
        levels = [level for level in timeline.memory if level.stage == stage]
        assert total == pytest.approx(max(sum(level.owners.values()) for level in levels) / GIB)


def test_owners_stand_in_the_order_of_the_legend_and_none_holds_nothing():
    plot = of(examples.flux(), examples.flux_plan())
    assert [bars.owner for bars in plot.owners] == [
        "context",
        "workspaces",
        "text_encoder",
        "text_encoder_2",
        "transformer",
        "vae",
        "slots",
        "pipeline",
        "activations",
    ]
    assert plot.stages == ("text_encoder", "text_encoder_2", "transformer x28", "vae.decode")


def test_what_is_held_is_what_the_plan_keeps():
    profile, plan = examples.flux(), examples.flux_plan()
    held = {bars.owner: bars.gib for bars in of(profile, plan).owners}
    assert held["transformer"] == tuple(plan.placements[2].kept_bytes(stage) / GIB for stage in range(4))
    assert held["slots"][0] == 0 < held["slots"][2]


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_every_stage_says_its_total_and_wide_parts_their_own():
    profile, plan = examples.sdxl(), examples.sdxl_plan()
    plot = of(profile, plan)
    axes = plots.draw_peaks(plot)
    assert f"unet x50: {plot.totals_gib[2]:.2f} GiB" in words(axes)
    assert f"{plan.placements[2].kept_bytes(2) / GIB:.2f}" in words(axes)
    assert axes.get_xlabel() == "GPU memory (GiB)"


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_budget_is_a_line_where_it_is_near_and_a_word_where_it_is_far():
    near = plots.draw_peaks(of(examples.sdxl(), examples.sdxl_plan()))
    assert "budget 6.00 GiB" in legend(near)
    assert near.get_xlim()[1] > 6
    far = plots.draw_peaks(of(*nouns.CASES["crowded"]))
    assert "budget 40.00 GiB (beyond)" in legend(far)
    assert far.get_xlim()[1] < 20


def test_permissions_that_change_the_output_stand_in_the_title():
    plan = dataclasses.replace(examples.sdxl_plan(), permissions=("vae_tiling",))
    title = of(examples.sdxl(), plan).title
    assert title.startswith("StableDiffusionXLPipeline in 6.00 GiB of GeForce RTX 4060 with vae_tiling:\n")
    assert title.endswith(" per call (bound 17.0 s)")
    assert "\npredicted: " in title
