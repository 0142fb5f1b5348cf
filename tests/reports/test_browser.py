"""Pages in a real browser: `pytest -m browser`, which fails where there is none."""

import json
from dataclasses import replace

import msgspec
import pytest

from tests.reports import examples, plan_results
from tests.reports.browser import browser_page
from vramtune.reports.cards import tuned_card
from vramtune.reports.explorer import write_explorer
from vramtune.reports.html import write_report
from vramtune.reports.notebook import as_html, card_html
from vramtune.schema import SweepRow, SweptStage
from vramtune.units import GIB, MIB, format_bytes, format_seconds

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


def swept(model, gpu, gpu_gib, asked_gib, *, seconds=None, **facts):
    """A row of a sweep, with two stages where there is a plan."""
    limit_gib = min(asked_gib, 0.95 * gpu_gib)
    row = SweepRow(
        model=model,
        pipeline_class="FluxPipeline",
        gpu=gpu,
        gpu_bytes=gpu_gib * GIB,
        asked_bytes=asked_gib * GIB,
        limit_bytes=round(limit_gib * GIB),
        fits=seconds is not None,
        least_bytes=5 * GIB,
        **facts,
    )
    if seconds is None:
        return row
    stages = (
        SweptStage(
            name="text_encoder", num_iterations=1, seconds=1, compute_seconds=0.5, peak_bytes=GIB, moved_bytes=GIB
        ),
        SweptStage(
            name="transformer", num_iterations=28, seconds=seconds - 1, compute_seconds=1, peak_bytes=GIB, moved_bytes=0
        ),
    )
    return replace(
        row,
        is_narrow=asked_gib == 6,
        role="streamed",
        peak_bytes=round(limit_gib * GIB) - 1,
        seconds=seconds,
        low_seconds=0.8 * seconds,
        high_seconds=1.3 * seconds,
        bound_seconds=0.95 * seconds,
        moved_bytes=GIB,
        stages=msgspec.json.encode(stages).decode(),
    )


ODD = '<b>&"odd</script>'
ROWS = (
    *(swept("sdxl", "RTX 4060", 8, gib, seconds=s) for gib, s in ((4, None), (6, 40.0), (8, 30.0), (12, 30.0))),
    *(swept("sdxl", "RTX 4090", 24, gib, seconds=s) for gib, s in ((4, None), (6, 9.0), (8, 8.0), (12, 7.0))),
    swept("flux", "RTX 4060", 8, 8, seconds=100.0),
    swept("flux", "RTX 4060", 8, 8, seconds=50.0, quantization="transformer=nf4"),
    swept("wan", "RTX 4060", 8, 8, seconds=900.0, width=832, height=480, frames=81),
    SweepRow(model=ODD, error="It does <i>not</i> exist."),
)
CHOICE = "[...document.querySelectorAll('.choice select')].map((s) => s.value)"
VERDICT = "document.getElementById('verdict').innerText"
FACT = "[...document.querySelectorAll('#facts .value')].map((fact) => fact.innerText)"
FIRST_CELLS = "[...document.querySelectorAll('#{} tbody tr')].map((row) => row.cells[0].innerText)"


def press(page, name, code):
    """A key, down and up."""
    for kind in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)


@pytest.fixture
def explorer(page, tmp_path):
    """The page of a sweep, opened by a name of its own: what is chosen on it is kept in its address."""
    return write_explorer(tmp_path, ROWS, data="sweep.csv")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_sweep_is_explored(page, explorer, width, scheme):
    page.open(explorer, width=width, scheme=scheme)
    assert page.evaluate("document.title") == "sdxl on RTX 4060 - vramtune"
    assert page.evaluate(VERDICT).startswith("Fits predicted sdxl on RTX 4060 in 7.60 GiB. Weights are streamed")
    assert page.evaluate(FACT) == ["7.60 GiB", "30.0 s", "28.5 s", "1.00 GiB", "5.00 GiB"]
    assert page.evaluate(FIRST_CELLS.format("stage-table")) == ["text_encoder", "transformer x28"]
    assert page.evaluate(FIRST_CELLS.format("budget-table")) == ["4.00 GiB", "6.00 GiB", "all that it gives (7.60 GiB)"]
    assert page.evaluate(FIRST_CELLS.format("gpu-table")) == ["RTX 4090", "RTX 4060"]
    assert page.evaluate("document.querySelectorAll('#frontier-figure circle').length") == 2
    assert page.evaluate(CONTRAST) >= LEGIBLE
    assert complaints(page) == []
    assert page.requests() == [explorer.as_uri()]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_what_is_chosen_is_shown_and_stays_in_the_address(page, explorer):
    page.open(explorer, width=1200)
    page.evaluate("document.querySelectorAll('#budget-table button')[1].click()")
    assert page.evaluate(VERDICT).startswith("Fits narrowly")
    assert page.evaluate("document.activeElement.innerText") == "6.00 GiB"
    page.evaluate("document.querySelector('#gpu-table button').click()")
    assert page.evaluate(CHOICE) == ["sdxl", "", "", "RTX 4090", str(6 * GIB)]
    address = page.evaluate("location.hash")
    page.evaluate("choose({model: 'flux'})")
    page.evaluate(f"history.replaceState(null, '', {address!r}); dispatchEvent(new HashChangeEvent('hashchange'))")
    assert page.evaluate(CHOICE) == ["sdxl", "", "", "RTX 4090", str(6 * GIB)]
    page.evaluate("document.querySelector('#budget-table button').click()")
    assert page.evaluate(VERDICT).endswith("sdxl needs 5.00 GiB on RTX 4090; the budget is 4.00 GiB.")
    assert page.evaluate(FACT) == []


def test_models_have_their_own_choices(page, explorer):
    page.open(explorer, width=1200)
    shown = (
        "[...document.querySelectorAll('.choice label')].filter((l) => !l.hidden).map((l) => l.firstChild.data.trim())"
    )
    assert page.evaluate(shown) == ["Model", "GPU", "Budget"]
    page.evaluate("choose({model: 'flux', quantization: 'transformer=nf4'})")
    assert page.evaluate(shown) == ["Model", "Quantization"]
    assert page.evaluate(FACT)[1] == "50.0 s"
    page.evaluate("choose({model: 'wan'})")
    assert page.evaluate("document.getElementById('settings').selectedOptions[0].label") == "832x480, 81 frames"


def test_a_name_is_a_name_whatever_is_in_it(page, explorer):
    page.open(explorer, width=360)
    page.evaluate(f"choose({{model: {json.dumps(ODD)}}})")
    assert page.evaluate(VERDICT) == "Not predicted predicted It does <i>not</i> exist."
    assert page.evaluate("document.getElementById('planned').hidden")
    assert complaints(page) == []


def test_it_is_used_by_keyboard(page, explorer):
    page.open(explorer, width=1200)
    press(page, "Tab", 9)
    assert page.evaluate("document.activeElement.id") == "model"
    press(page, "ArrowDown", 40)
    assert page.evaluate(CHOICE)[0] == "flux"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


SECONDS = (
    0,
    4e-7,
    8e-5,
    0.0009995,
    0.0125,
    0.0215,
    0.99949,
    0.9995,
    1.005,
    9.995,
    12.25,
    99.94,
    99.95,
    125.5,
    3599.5,
    5340,
    86399,
)
SIZES = (
    0,
    512,
    1023,
    1024,
    2560,
    MIB,
    5 * MIB // 2,
    GIB // 10,
    GIB // 10 + 1,
    GIB // 8,
    9 * GIB // 8,
    81 * GIB // 8,
    47 * GIB,
)


def test_figures_are_written_as_everywhere(page, explorer):
    page.open(explorer, width=1200)
    assert page.evaluate(f"{list(SECONDS)}.map(formatSeconds)") == list(map(format_seconds, SECONDS))
    assert page.evaluate(f"{list(SIZES)}.map(formatBytes)") == list(map(format_bytes, SIZES))


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
