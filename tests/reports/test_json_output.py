import json

from tests.reports import examples, plan_results
from vramtune.errors import BudgetError
from vramtune.reports.json_output import budget_json, comparison_json, frontier_json, object_json, plan_json
from vramtune.reports.reasons import sentence
from vramtune.schema import SCHEMA_VERSION
from vramtune.units import GIB

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
COMPARISON = examples.comparison(PLAN)


def test_plan_is_one_object_with_the_whole_plan_in_it():
    answer = json.loads(plan_json(PROFILE, PLAN, COMPARISON))
    assert (answer["fits"], answer["schema_version"]) == (True, SCHEMA_VERSION)
    assert answer["plan"]["estimate"]["peak_bytes"] == PLAN.estimate.peak_bytes
    assert answer["plan"]["placements"][2]["kept"] == [20, 20, 40, 20]
    assert answer["profile"]["source"] == "predicted"
    assert [c["component"] for c in answer["profile"]["components"]][:2] == ["text_encoder", "text_encoder_2"]
    assert answer["comparison"]["modes"][0]["mode"] == "vramtune"
    assert answer["comparison"]["bound_seconds"] == PLAN.estimate.bound_seconds


def test_plans_reasons_are_data_and_words():
    plan = json.loads(plan_json(PROFILE, PLAN, COMPARISON))["plan"]
    assert [reason["kind"] for reason in plan["reasons"]] == ["compute_bound", "peak", "more_memory"]
    assert plan["reasons"][1]["num_bytes"] == PLAN.reasons[1].num_bytes
    assert plan["why"] == [sentence(reason) for reason in PLAN.reasons]


def test_plans_stages_have_their_peak_and_exposed_copies():
    stages = json.loads(plan_json(PROFILE, PLAN, COMPARISON))["plan"]["estimate"]["stages"]
    assert [stage["peak_bytes"] for stage in stages] == [stage.peak_bytes for stage in PLAN.estimate.stages]
    assert all(stage["exposed_copy_seconds"] >= 0 for stage in stages)


def test_budget_that_nothing_fits_is_one_object_with_what_would():
    error = BudgetError(
        "does not fit", budget_bytes=2 * GIB, smallest_bytes=3 * GIB, permission="vae_tiling", permitted_bytes=GIB
    )
    answer = json.loads(budget_json(error, PROFILE, COMPARISON))
    assert answer["fits"] is False
    assert (answer["smallest_bytes"], answer["permission"], answer["permitted_bytes"]) == (3 * GIB, "vae_tiling", GIB)
    assert "plan" not in answer


def test_comparison_holds_the_plan_as_a_mode_and_no_second_time():
    comparison = json.loads(comparison_json(PROFILE, COMPARISON))["comparison"]
    assert set(comparison) == {"asked_bytes", "budget_bytes", "bound_seconds", "modes"}
    assert len(comparison["modes"]) == len(COMPARISON.modes)


def test_frontier_has_its_points_with_what_limits_them_and_the_stock_modes():
    frontier = json.loads(frontier_json(PROFILE, plan_results.frontier(PLAN)))["frontier"]
    assert [point["limit"] for point in frontier["points"]] == ["loads", "loads", "compute"]
    assert {"budget_bytes", "peak_bytes", "seconds", "bound_seconds"} <= set(frontier["points"][0])
    assert [mode["fits"] for mode in frontier["stock"]] == [True, True, False]


def test_nouns_are_plain_json():
    assert json.loads(object_json(gpus=(examples.DEVICE,)))["gpus"][0]["name"] == "GeForce RTX 4060"
