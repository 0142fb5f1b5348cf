import dataclasses

import pytest

from tests.reports import examples, plan_results
from vramtune.reports.rows import placement_rows
from vramtune.reports.tables import (
    beside_table,
    component_table,
    gpu_table,
    mode_table,
    owner_table,
    placement_label,
    placement_table,
    point_table,
    stage_table,
    stock_table,
)
from vramtune.units import GIB, format_seconds

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
MEASURED = plan_results.measurement(PLAN)


def texts(table):
    """Rows by name, each a dict from heading to text."""
    headings = [column.heading for column in table.columns]
    return {row[0].text: dict(zip(headings, (cell.text for cell in row), strict=True)) for row in table.rows}


@pytest.mark.parametrize("plan", [examples.sdxl_plan(), examples.flux_plan()])
def test_placement_table_on_a_page_has_a_column_per_stage(plan):
    table = placement_table(plan).in_medium("page")
    for row, placement in zip(table.rows, plan.placements, strict=True):
        assert row[0].text == placement.name
        for stage, cell in enumerate(row[4:]):
            assert cell.text.startswith(placement.role(stage))
            assert cell.share == pytest.approx(placement.kept[stage] / len(placement.groups)), "equal groups"
            assert (cell.tone == "faint") == (not placement.active[stage])


def test_placement_table_in_text_has_one_column_for_the_stages_where_it_runs():
    table = placement_table(PLAN).in_medium("text")
    assert [row[-1].text for row in table.rows] == ["offloaded", "offloaded", "streamed 40/44", "resident"]


def test_placement_label_names_roles_that_differ_between_stages_once_each():
    rows = placement_rows(examples.flux_plan())
    t5 = next(row for row in rows if row.component == "text_encoder_2" and row.active)
    other = dataclasses.replace(t5, num_kept=12)
    assert placement_label([t5, other, t5]) == "streamed 30/72, streamed 12/72"


def test_component_table_places_unused_and_excluded_weights():
    assert texts(component_table(PROFILE, PLAN))["safety_checker"]["placement"] == "unused"
    profile = dataclasses.replace(PROFILE, excluded=("safety_checker", "unet"))
    placed = texts(component_table(profile, PLAN))
    assert (placed["safety_checker"]["placement"], placed["unet"]["placement"]) == ("resident", "resident")


def test_component_table_has_no_figures_for_what_is_never_called():
    row = texts(component_table(PROFILE).in_medium("text"))["safety_checker"]
    assert list(row.values()) == ["safety_checker", "0.57", "0.00", "-", "0", "-", "-"]


def test_stage_tables_parts_add_up_to_the_peak():
    for row in texts(stage_table(PLAN)).values():
        parts = sum(float(row[part]) for part in ("kept", "slots", "activations", "fixed"))
        assert parts == pytest.approx(float(row["peak"]), abs=0.02)


def test_beside_table_keeps_stages_that_only_one_side_knows():
    first, *others = MEASURED.stages
    preview = dataclasses.replace(first, name="vae.encode")
    rows = texts(beside_table(PLAN, dataclasses.replace(MEASURED, stages=(preview, *others))))
    assert list(rows) == ["text_encoder", "text_encoder_2", "unet x50", "vae.decode", "vae.encode"]
    for stage, unknown in (("vae.encode", "predicted"), ("text_encoder", "measured")):
        assert {text for heading, text in rows[stage].items() if unknown in heading} == {"-"}
        assert all(text != "-" for heading, text in rows[stage].items() if unknown not in heading)
    assert "-" not in rows["unet x50"].values()


def test_beside_table_counts_a_stage_that_a_call_comes_back_to_together():
    unet = next(stage for stage in MEASURED.stages if stage.name == "unet")
    again = dataclasses.replace(unet, peak_bytes=2 * unet.peak_bytes)
    twice = dataclasses.replace(MEASURED, stages=(*MEASURED.stages, again))
    row = texts(beside_table(PLAN, twice))["unet x50"]
    assert row["peak, measured"] == f"{(again.peak_bytes + MEASURED.context_bytes) / GIB:.2f}"
    assert row["time, measured"] == format_seconds(2 * unet.seconds)
    assert row["moved, measured"] == f"{2 * unet.moved_bytes / GIB:.2f}"


def test_beside_table_notes_measured_peaks_without_the_context():
    bare = plan_results.measurement(PLAN, context_bytes=None)
    assert beside_table(PLAN, bare).note == "measured peaks lack the CUDA context"
    assert beside_table(PLAN, MEASURED).note == ""


def test_mode_table_marks_the_plan_and_compares_the_others_with_it():
    table = mode_table(examples.comparison(PLAN))
    assert table.rows[table.marked][0].text == "vramtune"
    assert texts(table)["vramtune"]["/ plan"] == "1.00x"
    assert texts(table)["model offload"]["/ plan"] == "1.70x"


def test_mode_table_without_a_plan_marks_and_compares_nothing():
    table = mode_table(dataclasses.replace(examples.comparison(PLAN), plan=None))
    assert table.marked is None
    assert {row["/ plan"] for row in texts(table).values()} == {"-"}


def test_point_table_has_the_bound_or_the_distance_from_it_in_every_medium():
    table = point_table(plan_results.frontier(PLAN))
    assert "above bound" in [column.heading for column in table.in_medium("text").columns]
    assert {"bound", "above bound"} <= {column.heading for column in table.in_medium("page").columns}


def test_stock_table_puts_modes_beside_the_plan_in_the_same_memory():
    rows = texts(stock_table(plan_results.frontier(PLAN)))
    assert rows["group offload, block, stream"]["the plan's"] == "-"
    assert (rows["model offload"]["the plan's"], rows["model offload"]["/ plan"]) == ("19.2 s", "1.55x")
    assert (rows["all resident"]["fits"], rows["all resident"]["the plan's"]) == ("no", "17.4 s")


def test_owner_table_adds_up_to_the_peak_and_leaves_out_who_holds_nothing():
    table = owner_table(plan_results.timeline(PROFILE, PLAN))
    held = sum(float(row["held"]) for row in texts(table).values())
    assert held == pytest.approx(PLAN.estimate.peak_bytes / GIB, abs=0.02)
    assert "text_encoder" not in texts(table)


def test_gpu_table_has_a_dash_for_an_unknown_rate():
    device = dataclasses.replace(examples.DEVICE, flops_per_second={"float32": 1e13})
    assert texts(gpu_table([device]))[device.name]["float16"] == "-"
