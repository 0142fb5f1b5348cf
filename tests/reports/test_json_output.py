import json

from tests.reports import examples
from vramtune.errors import BudgetError
from vramtune.reports.json_output import budget_json, plan_json, to_text
from vramtune.units import GIB


def test_a_plan_is_one_object_with_the_whole_plan_in_it():
    plan = examples.sdxl_plan()
    found = json.loads(plan_json(examples.sdxl(), plan, examples.comparison(plan)))
    assert found["fits"] is True
    assert found["plan"]["estimate"]["peak_bytes"] == plan.estimate.peak_bytes
    assert found["plan"]["placements"][2]["kept"] == [20, 20, 40, 20]
    assert found["profile"]["source"] == "predicted"
    assert [c["component"] for c in found["profile"]["components"]][:2] == ["text_encoder", "text_encoder_2"]
    assert found["comparison"]["modes"][0]["mode"] == "all resident"


def test_no_plan_is_one_object_with_what_would_do():
    error = BudgetError(
        "does not fit",
        budget_bytes=2 * GIB,
        smallest_bytes=3 * GIB,
        permission="vae_tiling",
        permitted_bytes=GIB,
    )
    comparison = examples.comparison(examples.sdxl_plan())
    found = json.loads(budget_json(error, examples.sdxl(), comparison))
    assert found["fits"] is False
    assert (found["smallest_bytes"], found["permission"], found["permitted_bytes"]) == (
        3 * GIB,
        "vae_tiling",
        GIB,
    )
    assert "plan" not in found


def test_nouns_are_plain_json():
    assert json.loads(to_text((examples.DEVICE,)))[0]["name"] == "GeForce RTX 4060"
