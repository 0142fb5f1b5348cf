import dataclasses

import pytest

from tests.reports import examples, plan_results
from tests.reports.golden import check_golden
from vramtune.errors import UsageError
from vramtune.reports.cards import (
    call,
    card,
    comparison_sentence,
    frontier_sentence,
    likely_seconds,
    plan_facts,
    tuned_card,
    verdict,
)
from vramtune.reports.terminal import card_text
from vramtune.schema import Extreme, Workload

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
MEASURED = plan_results.measurement(PLAN)
CARDS = {
    "profile": card(PROFILE),
    "plan": card(PLAN),
    "comparison": card(examples.comparison(PLAN)),
    "frontier": card(plan_results.frontier(PLAN)),
    "measurement": card(MEASURED),
    "timeline": card(plan_results.timeline(PROFILE, PLAN)),
    "tuned": tuned_card(PLAN, MEASURED),
}


@pytest.mark.parametrize("name", CARDS)
def test_card_in_text_equals_the_golden_file(name):
    check_golden(f"{name}.txt", card_text(CARDS[name]) + "\n")


@pytest.mark.parametrize("name", CARDS)
def test_card_in_text_fits_80_columns_and_breaks_no_cell(name):
    lines = card_text(CARDS[name]).splitlines()
    assert max(map(len, lines)) <= 80
    for table in CARDS[name].tables:
        for row in table.in_medium("text").rows:
            assert any(all(cell.text in line for cell in row) for line in lines)


def test_tuned_pipeline_before_its_first_call_has_the_card_of_its_plan():
    assert tuned_card(PLAN, None) == card(PLAN)


def test_every_figure_says_predicted_or_measured():
    assert {fact.source for fact in CARDS["plan"].facts} == {"predicted"}
    assert {fact.source for fact in CARDS["measurement"].facts} == {"measured"}
    facts = {fact.label: fact for fact in CARDS["tuned"].facts}
    assert facts["bound"].source == "predicted"
    assert facts["last call"].source == "measured"
    assert facts["last call"].note == "predicted 17.4 s"


@pytest.mark.parametrize("name", CARDS)
def test_every_table_or_each_of_its_headings_says_predicted_or_measured(name):
    for table in (*CARDS[name].tables, *CARDS[name].folded):
        headings = [column.heading for column in table.columns[1:]]
        assert table.source or all("predicted" in h or "measured" in h for h in headings)


def test_every_card_with_predicted_seconds_of_a_plan_names_the_bound():
    for name in ("plan", "tuned", "comparison", "frontier"):
        text = card_text(CARDS[name])
        assert "17.0 s" in text, name
        assert "bound" in text or "no plan can beat" in " ".join(text.split()), name


def test_cards_say_which_pipeline_and_which_call_they_are_of():
    for name in ("profile", "plan", "comparison", "frontier", "timeline", "tuned"):
        assert "StableDiffusionXLPipeline" in CARDS[name].title
        assert CARDS[name].call == "height=1024, width=1024"


def test_verdict_is_predicted_before_a_call_and_measured_after_it():
    assert (verdict(PLAN, None).word, verdict(PLAN, None).source) == ("Fits", "predicted")
    assert (verdict(PLAN, MEASURED).word, verdict(PLAN, MEASURED).source) == ("Fits", "measured")


def test_verdict_on_a_peak_measured_above_the_budget_is_bad():
    over = verdict(PLAN, dataclasses.replace(MEASURED, peak_bytes=PLAN.budget_bytes + 1))
    assert (over.word, over.tone) == ("Over the budget", "bad")
    assert over.sentence.startswith("Peak 6.00 GiB above 6.00 GiB.")


def test_verdict_on_a_peak_without_the_context_does_not_claim_to_fit():
    bare = plan_results.measurement(PLAN, context_bytes=None)
    assert verdict(PLAN, bare).word == "Ran"
    assert "the CUDA context" in verdict(PLAN, bare).sentence
    assert "without the CUDA context; of 6.00 GiB; predicted" in plan_facts(PLAN, bare)[0].note
    over = dataclasses.replace(bare, peak_bytes=PLAN.budget_bytes + 1)
    assert (verdict(PLAN, over).word, verdict(PLAN, over).tone) == ("Over the budget", "bad")


def test_verdict_says_how_often_memory_ran_out():
    once, twice = (plan_results.measurement(PLAN, num_out_of_memory=times) for times in (1, 2))
    assert "ran out of memory once;" in verdict(PLAN, once).sentence
    assert "ran out of memory 2 times;" in verdict(PLAN, twice).sentence
    assert "ran out" not in verdict(PLAN, MEASURED).sentence


def test_verdict_names_a_budget_that_the_card_cannot_give_and_the_permission_used():
    flux = dataclasses.replace(examples.flux_plan(), permissions=("vae_tiling",))
    assert verdict(flux, None).sentence.endswith(
        "within 7.60 GiB usable of 8.00 GiB asked. Allowed and used: vae_tiling."
    )


def test_seconds_a_rounding_below_the_bound_are_not_negative():
    estimate = dataclasses.replace(PLAN.estimate, seconds=1 - 1e-9, bound_seconds=1)
    facts = plan_facts(dataclasses.replace(PLAN, estimate=estimate), None)
    assert facts[1].note.endswith("s, 0.0% above the bound")


def test_comparison_sentence_without_a_plan_says_that_none_fits():
    stock = dataclasses.replace(examples.comparison(PLAN), plan=None)
    assert comparison_sentence(stock) == (
        "2 of 3 stock diffusers modes fit; the fastest, “model offload”, takes 29.6 s per call. "
        "No plan of vramtune's fits."
    )


def test_comparison_sentence_without_a_fitting_stock_mode_is_about_the_plan():
    comparison = examples.comparison(PLAN)
    unfit = dataclasses.replace(comparison, stock=comparison.stock[:1])
    assert comparison_sentence(unfit) == (
        "No stock diffusers mode fits. vramtune takes 17.4 s per call; no plan can beat 17.0 s."
    )


def test_frontier_sentence_names_both_ends_with_their_bounds():
    assert frontier_sentence(plan_results.frontier(PLAN)).startswith(
        "From 4.50 GiB (22.7 s per call, bound 17.0 s) to 6.00 GiB (17.4 s per call, bound 17.0 s);"
    )


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        (Workload(call_kwargs={"prompt": "a fox"}), "the pipeline's own settings"),
        (
            Workload(call_kwargs={"prompt": "a fox", "output_type": "latent", "image": "<PIL.Image.Image image>"}),
            "output_type=latent, image=...",
        ),
        (
            Workload(call_kwargs={}, model="sdxl", quantize={"unet": "nf4", "vae": "fp8"}),
            "sdxl (unet=nf4, vae=fp8), the pipeline's own settings",
        ),
        (Workload(call_kwargs={"num_inference_steps": 4}, model="org/name"), "org/name, num_inference_steps=4"),
    ],
)
def test_the_call_names_the_model_leaves_out_prompts_and_shortens_what_is_long(workload, words):
    assert call(workload) == words


def test_a_card_of_anything_but_a_noun_is_refused():
    with pytest.raises(UsageError, match=r"one of Profile, .*Measurement; got str"):
        card("a plan")


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [
        (13.9, 22.7, "13.9 to 22.7 s"),
        (0.9, 1.2, "900 ms to 1.20 s"),
        (90, 130, "90.0 s to 2 min 10 s"),
        (190, 250, "3 min 10 s to 4 min 10 s"),
        (5.001, 5.002, ""),
    ],
)
def test_what_seconds_are_likely_to_be_is_written_in_one_unit_where_it_can(low, high, written):
    ends = {"low": Extreme(seconds=low, peak_bytes=1), "high": Extreme(seconds=high, peak_bytes=1)}
    assert likely_seconds(dataclasses.replace(PLAN.estimate, **ends)) == written


def test_a_plan_that_may_not_fit_says_so():
    narrow = dataclasses.replace(PLAN, estimate=dataclasses.replace(PLAN.estimate, is_narrow=True))
    said = verdict(narrow, None)
    assert (said.word, said.tone) == ("Fits narrowly", "attention")
    assert "no plan fits" in said.sentence
    assert verdict(PLAN, None).word == "Fits"
