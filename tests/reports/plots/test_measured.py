import dataclasses

import pytest

from tests.reports import examples
from tests.reports.plots import nouns
from vramtune.reports import plots
from vramtune.schema import MeasuredStage
from vramtune.units import GIB, MIB

PLAN = examples.sdxl_plan()
MEASUREMENT = nouns.measurement(PLAN)


def of(**changes):
    return plots.predicted_and_measured(dataclasses.replace(MEASUREMENT, **changes), plan=PLAN)


def words(plot):
    return [text.get_text() for text in plots.draw_measured(plot).texts]


def stage(name, seconds, peak_bytes):
    return MeasuredStage(
        name=name, seconds=seconds, exposed_copy_seconds=0.0, moved_bytes=0, peak_bytes=peak_bytes
    )


def test_every_stage_and_the_whole_call_stand_beside_their_estimate():
    rows = of().rows
    assert [row.name for row in rows] == [
        "text_encoder",
        "text_encoder_2",
        "unet x50",
        "vae.decode",
        "whole call (bound 17.0 s: no plan is faster)",
    ]
    for row, estimate in zip(rows, (*PLAN.estimate.stages, PLAN.estimate), strict=True):
        assert (row.predicted.seconds, row.predicted.peak_bytes) == (estimate.seconds, estimate.peak_bytes)
        assert row.measured.seconds == pytest.approx(1.1 * estimate.seconds)
        assert row.measured.peak_bytes == estimate.peak_bytes


def test_the_measured_bar_says_how_far_off_the_prediction_was():
    found = words(of())
    assert "16.0 s" in found
    assert "17.6 s (+10%)" in found


def test_a_stage_that_did_not_run_and_one_that_the_plan_does_not_know():
    stages = (*MEASUREMENT.stages[1:], stage("image_encoder", 0.4, GIB))
    plot = of(stages=stages)
    rows = {row.name: row for row in plot.rows}
    assert rows["text_encoder"].measured is None
    assert rows["image_encoder"].predicted is None
    assert rows["image_encoder"].measured.peak_bytes == GIB + 300 * MIB
    assert words(plot).count("did not run") == words(plot).count("not in the plan") == 2


def test_what_ran_twice_under_one_name_counts_together():
    plot = of(stages=(stage("unet", 1.0, GIB), stage("unet", 2.0, 2 * GIB)))
    measured = {row.name: row.measured for row in plot.rows}["unet x50"]
    assert measured.seconds == 3.0
    assert measured.peak_bytes == 2 * GIB + 300 * MIB


def test_an_unknown_context_is_said_and_not_added():
    measurement = nouns.measurement(PLAN, context_bytes=None)
    plot = plots.predicted_and_measured(measurement, plan=PLAN)
    assert plot.rows[2].measured.peak_bytes == measurement.stages[2].peak_bytes
    legend = [text.get_text() for text in plots.draw_measured(plot).get_legend().get_texts()]
    assert legend == ["predicted", "measured (peaks without the CUDA context)"]
    known = [text.get_text() for text in plots.draw_measured(of()).get_legend().get_texts()]
    assert known == ["predicted", "measured"]


def test_the_title_says_where_and_what_went_wrong():
    assert of().title.endswith(":\npredicted and measured on GeForce RTX 4060")
    assert of(device_name="H100").title.endswith("predicted for GeForce RTX 4060, measured on H100")
    assert of(num_out_of_memory=1).title.endswith("; out of memory 1 time")
    assert of(num_out_of_memory=2).title.endswith("; out of memory 2 times")


def test_predicted_and_measured_do_not_look_alike():
    handles = plots.draw_measured(of()).get_legend().get_patches()
    predicted, measured = handles
    assert predicted.get_hatch() != measured.get_hatch()
    assert predicted.get_facecolor() != measured.get_facecolor()
