import dataclasses

import pytest

from tests.reports import examples, seen
from tests.reports.golden import check_golden
from vramtune.errors import UsageError
from vramtune.reports.cards import card, comparison_sentence, frontier_sentence, verdict
from vramtune.reports.plain import card_text
from vramtune.reports.tables import beside_grid, mode_grid, placement_grid, stage_grid
from vramtune.units import GIB, format_seconds

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
MEASURED = seen.measurement(PLAN)
NOUNS = {
    "profile": PROFILE,
    "plan": PLAN,
    "comparison": examples.comparison(PLAN),
    "frontier": seen.frontier(PLAN),
    "measurement": MEASURED,
    "timeline": seen.timeline(PROFILE, PLAN),
    "tuned": seen.Tuned(PROFILE, PLAN, MEASURED),
    "tuned_before": seen.Tuned(PROFILE, PLAN, None),
}


@pytest.mark.parametrize("name", NOUNS)
def test_a_card_reads_as_it_did(name):
    check_golden(f"{name}.txt", card_text(card(NOUNS[name])) + "\n")


def test_a_card_in_text_fits_100_columns_and_breaks_no_cell():
    for noun in NOUNS.values():
        lines = card_text(card(noun)).splitlines()
        assert max(map(len, lines)) <= 100
        for grid in card(noun).grids:
            for row in grid.rows:
                assert any(all(cell.text in line for cell in row) for line in lines)


def test_before_the_first_call_a_tuned_pipeline_is_its_plan():
    assert card(NOUNS["tuned_before"]) == card(PLAN)


def test_figures_say_which_of_the_two_they_are():
    assert {fact.source for fact in card(PLAN).facts} == {"predicted"}
    assert {fact.source for fact in card(MEASURED).facts} == {"measured"}
    facts = {fact.label: fact for fact in card(NOUNS["tuned"]).facts}
    assert facts["bound"].source == "predicted"
    assert facts["last call"].source == "measured"
    assert facts["last call"].note == "predicted 17.4 s"


def test_every_table_says_it_too():
    for noun in NOUNS.values():
        shown = card(noun)
        for grid in (*shown.grids, *shown.folded):
            headings = [column.heading for column in grid.columns[1:]]
            assert grid.source or all("predicted" in h or "measured" in h for h in headings)


def test_a_plan_fits_by_prediction_until_it_is_measured():
    assert verdict(PLAN).source == "predicted"
    assert (verdict(PLAN, measured=MEASURED).word, verdict(PLAN, measured=MEASURED).source) == (
        "Fits",
        "measured",
    )


def test_what_was_measured_above_the_budget_is_said():
    found = verdict(PLAN, measured=dataclasses.replace(MEASURED, peak_bytes=PLAN.budget_bytes + 1))
    assert (found.word, found.tone) == ("Over the budget", "bad")


def test_without_the_context_nobody_knows_that_it_fits():
    found = verdict(PLAN, measured=seen.measurement(PLAN, context_bytes=None))
    assert found.word == "Ran"
    assert "the CUDA context" in found.sentence


def test_running_out_of_memory_on_the_way_is_said():
    assert "Memory ran out 2x" in verdict(PLAN, measured=seen.measurement(PLAN, num_out_of_memory=2)).sentence
    assert "ran out" not in verdict(PLAN, measured=MEASURED).sentence


def test_a_budget_that_the_card_cannot_give_and_a_permission_are_said():
    flux = dataclasses.replace(examples.flux_plan(), permissions=("vae_tiling",))
    assert verdict(flux).sentence.endswith("7.60 GiB usable (8.00 GiB asked). Allowed and used: vae_tiling.")


@pytest.mark.parametrize("plan", [examples.sdxl_plan(), examples.flux_plan()])
def test_the_placement_table_is_the_plan(plan):
    grid = placement_grid(plan)
    for row, placement in zip(grid.rows, plan.placements, strict=True):
        assert row[0].text == placement.name
        for stage, cell in enumerate(row[2:]):
            assert cell.text.startswith(placement.role(stage))
            assert cell.share == placement.kept[stage] / len(placement.groups), (
                "groups are alike in the examples"
            )
            assert (cell.tone == "faint") == (not placement.active[stage])


def test_a_stages_parts_add_up_to_its_peak():
    for row in stage_grid(PLAN).rows:
        kept, slots, rest, peak = (float(cell.text) for cell in row[1:5])
        assert kept + slots + rest == pytest.approx(peak, abs=0.02)


def test_stages_are_paired_by_name_and_the_lonely_ones_kept():
    first, *others = MEASURED.stages
    preview = dataclasses.replace(first, name="vae.encode")
    measured = dataclasses.replace(MEASURED, stages=(preview, *others))
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in beside_grid(measured, plan=PLAN).rows}
    assert list(rows) == ["text_encoder", "text_encoder_2", "unet x50", "vae.decode", "vae.encode"]
    assert rows["vae.encode"][::2] == ["-", "-", "0 s", "0.00"]
    assert rows["text_encoder"][1:5:2] == ["-", "-"]
    assert "-" not in rows["unet x50"]


def test_a_stage_that_a_call_comes_back_to_counts_together():
    unet = next(stage for stage in MEASURED.stages if stage.name == "unet")
    again = dataclasses.replace(unet, peak_bytes=2 * unet.peak_bytes)
    grid = beside_grid(dataclasses.replace(MEASURED, stages=(*MEASURED.stages, again)), plan=PLAN)
    row = next(row for row in grid.rows if row[0].text == "unet x50")
    assert row[2].text == f"{(again.peak_bytes + MEASURED.context_bytes) / GIB:.2f}"
    assert row[4].text == format_seconds(2 * unet.seconds)
    assert row[7].text == f"{2 * unet.moved_bytes / GIB:.2f}"


def test_measured_peaks_without_the_context_are_called_so():
    assert (
        "without the CUDA context" in beside_grid(seen.measurement(PLAN, context_bytes=None), plan=PLAN).title
    )
    assert "context" not in beside_grid(MEASURED, plan=PLAN).title


def test_the_plan_is_marked_among_the_modes():
    grid = mode_grid(examples.comparison(PLAN))
    assert grid.rows[grid.marked][0].text == "vramtune"
    times = {row[0].text: row[4].text for row in grid.rows}
    assert times["vramtune"] == "1.00x"
    assert times["model offload"] == "1.70x"


def test_modes_without_a_plan_are_compared_with_none():
    comparison = examples.comparison(PLAN)
    stock = dataclasses.replace(comparison, modes=comparison.stock, bound_seconds=None)
    assert mode_grid(stock).marked is None
    assert {row[4].text for row in mode_grid(stock).rows} == {"-"}
    assert comparison_sentence(stock).endswith("takes 29.6 s per call; no plan of vramtune's fits.")


def test_where_no_stock_mode_fits_the_plan_stands_alone():
    comparison = examples.comparison(PLAN)
    unfit = dataclasses.replace(comparison, modes=(comparison.stock[0], comparison.plan))
    assert comparison_sentence(unfit) == (
        "No stock diffusers mode fits; vramtune takes 17.4 s per call, where no plan beats 17.0 s."
    )


def test_a_frontier_in_a_sentence():
    assert frontier_sentence(seen.frontier(PLAN)).startswith(
        "From 4.50 GiB (22.7 s per call, bound 17.0 s) to 6.00 GiB (17.4 s per call, bound 17.0 s);"
    )


def test_anything_else_is_refused_with_what_would_do():
    with pytest.raises(UsageError, match=r"Measurement or a tuned pipeline; got str"):
        card("a plan")
