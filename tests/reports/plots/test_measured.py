import dataclasses

import pytest

from tests.reports import examples
from tests.reports.plots import factories
from vramtune.reports import plots
from vramtune.schema import MeasuredStage
from vramtune.units import GIB, MIB

PLAN = examples.sdxl_plan()
MEASUREMENT = factories.measurement(PLAN)


def plot_of(**changes):
    return plots.predicted_and_measured(dataclasses.replace(MEASUREMENT, **changes), plan=PLAN)


def words(plot):
    return [text.get_text() for text in plots.draw_measured(plot).texts]


def stage(name, seconds, peak_bytes):
    return MeasuredStage(name=name, seconds=seconds, exposed_copy_seconds=0.0, moved_bytes=0, peak_bytes=peak_bytes)


def test_every_stage_and_the_whole_call_stand_beside_their_estimate():
    rows = plot_of().rows
    assert [row.name for row in rows] == [
        "text_encoder",
        "text_encoder_2",
        "unet x50",
        "vae.decode",
        "whole call (bound 17.0 s: no plan is faster)",
    ]
    for row, estimate in zip(rows, (*PLAN.estimate.stages, PLAN.estimate), strict=True):
        assert row.predicted.seconds == estimate.seconds
        assert row.predicted.peak_bytes == estimate.peak_bytes
        assert row.measured.seconds == pytest.approx(1.1 * estimate.seconds)
        assert row.measured.peak_bytes == estimate.peak_bytes


def test_the_measured_bar_says_how_far_it_is_from_the_prediction():
    written = words(plot_of())
    assert "16.0 s" in written
    assert "17.6 s (+10%)" in written


def test_a_stage_that_did_not_run_or_is_not_in_the_plan_says_so():
    stages = (*MEASUREMENT.stages[1:], stage("image_encoder", 0.4, GIB))
    plot = plot_of(stages=stages)
    rows = {row.name: row for row in plot.rows}
    assert rows["text_encoder"].measured is None
    assert rows["image_encoder"].predicted is None
    assert rows["image_encoder"].measured.peak_bytes == GIB + 300 * MIB
    assert words(plot).count("did not run") == words(plot).count("not in the plan") == 2


def test_a_stage_that_ran_twice_has_the_seconds_of_both_and_the_higher_peak():
    plot = plot_of(stages=(stage("unet", 1.0, GIB), stage("unet", 2.0, 2 * GIB)))
    unet = {row.name: row for row in plot.rows}["unet x50"]
    assert unet.measured.seconds == 3.0
    assert unet.measured.peak_bytes == 2 * GIB + 300 * MIB


def test_an_unknown_context_is_not_added_and_the_legend_says_so():
    measurement = factories.measurement(PLAN, context_bytes=None)
    plot = plots.predicted_and_measured(measurement, plan=PLAN)
    assert plot.rows[2].measured.peak_bytes == measurement.stages[2].peak_bytes
    legend = [text.get_text() for text in plots.draw_measured(plot).get_legend().get_texts()]
    assert legend == ["predicted", "measured (peaks without the CUDA context)"]
    known = [text.get_text() for text in plots.draw_measured(plot_of()).get_legend().get_texts()]
    assert known == ["predicted", "measured"]


def test_the_title_names_the_devices_and_how_often_memory_ran_out():
    assert plot_of().title.endswith(":\npredicted and measured on GeForce RTX 4060")
    assert plot_of(device_name="H100").title.endswith("predicted for GeForce RTX 4060, measured on H100")
    assert plot_of(num_out_of_memory=1).title.endswith("; ran out of memory once")
    assert plot_of(num_out_of_memory=2).title.endswith("; ran out of memory 2 times")


def test_predicted_and_measured_bars_differ_in_hatch_and_colour():
    handles = plots.draw_measured(plot_of()).get_legend().get_patches()
    predicted, measured = handles
    assert predicted.get_hatch() != measured.get_hatch()
    assert predicted.get_facecolor() != measured.get_facecolor()
