"""Pages in a real browser: `pytest -m browser`, which fails where there is none."""

import pytest

from tests.reports import examples, plan_results
from tests.reports.browser import browser_page
from vramtune.reports.cards import tuned_card
from vramtune.reports.html import write_report
from vramtune.reports.notebook import as_html, card_html

pytestmark = pytest.mark.browser

PROFILE, PLAN = examples.flux(), examples.flux_plan()
WIDTHS = {"phone": 360, "desk": 1200}
A4_PIXELS = 688
"""Of CSS, 182 mm: the paper less its margins."""
LEGIBLE = 4.5
"""Contrast that WCAG 2 asks of text (AA)."""

CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const paper = getComputedStyle(document.documentElement).backgroundColor;
  const texts = [...document.querySelectorAll("h1, h2, p, li, dt, dd, th, td, figcaption, strong, .tag, svg text")];
  const contrast = (element) => {
    const style = getComputedStyle(element);
    const lights = [light([paper]), light([paper, element.closest("svg") ? style.fill : style.color])];
    return Math.max(...lights) / Math.min(...lights);
  };
  return Math.min(...texts.map(contrast));
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser_page(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, **plan_results.report_nouns(PROFILE, PLAN))
    return path


def complaints(page):
    return page.said("Log.entryAdded") + page.said("Runtime.consoleAPICalled") + page.said("Runtime.exceptionThrown")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_is_shown(page, report, width, scheme):
    page.open(report, width=width, scheme=scheme)
    assert page.evaluate("document.title") == "FluxPipeline in 8.00 GiB of GeForce RTX 4060 - vramtune"
    assert complaints(page) == []
    assert page.requests() == [report.as_uri()]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    sizes = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map((svg) => svg.getBoundingClientRect().height)"
    )
    assert len(sizes) == 7
    assert min(sizes) > 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_written_stands_out(page, report, scheme):
    page.open(report, width=1200, scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.evaluate(CONTRAST) >= LEGIBLE


def test_on_a_phone_wide_tables_scroll_inside_their_own_box(page, report):
    page.open(report, width=360)
    boxes = page.evaluate(
        "[...document.querySelectorAll('.scroll')].map((box) => [box.clientWidth, box.scrollWidth, "
        "getComputedStyle(box).overflowX])"
    )
    assert all(shown <= 360 and overflow == "auto" for shown, _, overflow in boxes)
    assert any(whole > shown for shown, whole, _ in boxes)


def test_a_report_is_printed_on_white_whole(page, report):
    page.open(report, width=1200, scheme="dark")
    assert page.pdf().startswith(b"%PDF-")
    page.send("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    page.send("Emulation.setDeviceMetricsOverride", width=A4_PIXELS, height=1000, deviceScaleFactor=1, mobile=False)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= A4_PIXELS


NOTEBOOK = """<!DOCTYPE html><title>notebook</title><meta name="viewport" content="width=device-width">
<style>html {{ background: {paper}; color: {ink}; font: 14px sans-serif; }} dl dt {{ float: left; width: 20%; }}
tr:nth-child(odd) {{ background: #f5f5f5; }} td {{ text-align: center; }}</style>{cards}"""


@pytest.mark.parametrize(("paper", "ink"), [("#ffffff", "#212121"), ("#111111", "#e0e0e0")], ids=["light", "dark"])
def test_a_notebook_shows_nouns_on_whatever_it_has(page, tmp_path, paper, ink):
    measured = plan_results.measurement(PLAN)
    nouns = (PROFILE, PLAN, examples.comparison(PLAN), plan_results.frontier(PLAN), measured)
    cards = "".join((*map(as_html, nouns), card_html(tuned_card(PLAN, measured))))
    path = tmp_path / "notebook.html"
    path.write_text(NOTEBOOK.format(paper=paper, ink=ink, cards=cards), encoding="utf-8")
    page.open(path, width=360)
    assert complaints(page) == []
    assert page.requests() == [path.as_uri()]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    assert page.evaluate(CONTRAST) >= LEGIBLE
    assert page.evaluate("getComputedStyle(document.querySelector('tbody tr')).backgroundColor") == "rgba(0, 0, 0, 0)"
    assert page.evaluate("getComputedStyle(document.querySelector('.fact dt')).float") == "none"
