import dataclasses

import pytest
from IPython.core.formatters import DisplayFormatter

from tests.reports import examples, plan_results
from tests.reports.golden import check_golden
from tests.reports.html_page import Page
from vramtune.reports.cards import card, tuned_card
from vramtune.reports.notebook import as_html, as_text, card_html

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
MEASURED = plan_results.measurement(PLAN)
NOUNS = {
    "profile": PROFILE,
    "plan": PLAN,
    "comparison": examples.comparison(PLAN),
    "frontier": plan_results.frontier(PLAN),
    "timeline": plan_results.timeline(PROFILE, PLAN),
    "measurement": MEASURED,
}
CARDS = {**{name: card(noun) for name, noun in NOUNS.items()}, "tuned": tuned_card(PLAN, MEASURED)}


@pytest.mark.parametrize("name", NOUNS)
def test_noun_in_the_last_line_of_a_cell_shows_itself(name):
    shown, _ = DisplayFormatter().format(NOUNS[name])
    assert shown == {"text/html": as_html(NOUNS[name]), "text/plain": as_text(NOUNS[name])}


@pytest.mark.parametrize("name", ["plan", "comparison"])
def test_fragment_equals_the_golden_file(name):
    check_golden(f"{name}.html", card_html(CARDS[name]))


@pytest.mark.parametrize("name", CARDS)
def test_fragment_is_small_and_needs_nothing_from_outside(name):
    fragment = card_html(CARDS[name])
    page = Page(fragment)
    assert len(fragment) < 15_000
    assert not {"script", "img", "link", "html", "body"} & set(page.tags)
    assert not page.values("src") + page.values("href") + page.values("id")
    assert "url(" not in fragment
    assert "@import" not in fragment


def test_styles_of_a_fragment_touch_nothing_else_in_the_notebook():
    style = as_html(PLAN).split("<style>")[1].split("</style>")[0]
    selectors = [part for rule in style.split("}")[:-1] for part in rule.split("*/")[-1].split("{")[0].split(",")]
    assert len(selectors) > 20
    assert all(selector.strip().startswith(".vramtune") for selector in selectors)


def test_names_in_a_fragment_are_escaped():
    reason = dataclasses.replace(PLAN.reasons[1], stage="<b>bold</b>")
    plan = dataclasses.replace(PLAN, reasons=(reason,), device_name="<i>GPU</i>")
    assert not {"b", "i"} & set(Page(as_html(plan)).tags)
