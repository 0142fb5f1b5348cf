import dataclasses

import pytest
from hypothesis import given, settings

from tests.reports import examples
from tests.reports.plots import factories
from vramtune.reports import plots
from vramtune.units import GIB

SDXL = examples.timeline(examples.sdxl(), examples.sdxl_plan())
FLUX = examples.timeline(examples.flux(), examples.flux_plan())


@settings(max_examples=30)
@given(factories.timelines())
def test_each_bar_is_as_long_as_the_highest_level_of_its_stage(timeline):
    plot = plots.stage_peaks(timeline)
    for stage, total in enumerate(plot.totals_gib or (0.0,) * len(plot.stages)):
        levels = [level for level in timeline.memory if level.stage == stage]
        assert total == pytest.approx(max(level.held_bytes for level in levels) / GIB)


def test_owners_run_from_what_never_changes_to_what_comes_and_goes():
    plot = plots.stage_peaks(FLUX)
    assert [bars.owner.name for bars in plot.owners] == [
        "CUDA context",
        "library workspaces",
        "text_encoder",
        "text_encoder_2",
        "transformer",
        "vae",
        "streaming slots",
        "pipeline tensors",
        "activations",
    ]
    assert plot.stages == ("text_encoder", "text_encoder_2", "transformer x28", "vae.decode")


def test_an_owner_that_never_holds_anything_is_left_out():
    memory = tuple(dataclasses.replace(level, slot_bytes=0) for level in FLUX.memory)
    owners = [bars.owner.name for bars in plots.stage_peaks(dataclasses.replace(FLUX, memory=memory)).owners]
    assert "streaming slots" not in owners
    assert len(owners) == 8


def test_a_component_holds_what_the_plan_keeps_and_slots_hold_only_where_it_streams():
    held = {bars.owner.name: bars.gib for bars in plots.stage_peaks(FLUX).owners}
    transformer = FLUX.plan.placements[2]
    assert held["transformer"] == tuple(transformer.kept_bytes(stage) / GIB for stage in range(4))
    assert held["streaming slots"][0] == 0 < held["streaming slots"][2]


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_every_stage_says_its_total_and_wide_parts_their_own():
    plot = plots.stage_peaks(SDXL)
    axes = plots.draw_peaks(plot)
    assert f"unet x50: {plot.totals_gib[2]:.2f} GiB" in words(axes)
    assert f"{SDXL.plan.placements[2].kept_bytes(2) / GIB:.2f}" in words(axes)
    assert axes.get_xlabel() == "GPU memory (GiB)"


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_budget_near_the_peak_is_a_line_and_one_far_above_it_only_a_word():
    near = plots.draw_peaks(plots.stage_peaks(SDXL))
    assert "budget 6.00 GiB" in legend(near)
    assert near.get_xlim()[1] > 6
    far = plots.draw_peaks(plots.stage_peaks(examples.timeline(*factories.CASES["crowded"])))
    assert "budget 40.00 GiB (off scale)" in legend(far)
    assert far.get_xlim()[1] < 20


def test_the_title_names_permissions_and_the_predicted_seconds_beside_the_bound():
    plan = dataclasses.replace(SDXL.plan, permissions=("vae_tiling",))
    title = plots.stage_peaks(dataclasses.replace(SDXL, plan=plan)).title
    assert title.startswith("StableDiffusionXLPipeline in 6.00 GiB of GeForce RTX 4060 with vae_tiling:\n")
    assert title.endswith(" per call (bound 17.0 s)")
    assert "\npredicted: " in title
