import dataclasses
import io

import pytest
from rich.console import Console

from tests.reports import examples, plan_results
from tests.reports.golden import check_golden
from vramtune.errors import BudgetError
from vramtune.reports import terminal
from vramtune.reports.cards import Card, tuned_card
from vramtune.reports.columns import Cell, Column, Table
from vramtune.reports.tables import beside_table, component_table
from vramtune.units import GIB

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
COMPARISON = examples.comparison(PLAN)
BUDGET_ERROR = BudgetError(
    "StableDiffusionXLPipeline does not fit 2.00 GiB. Give it at least 3.50 GiB.",
    budget_bytes=2 * GIB,
    smallest_bytes=int(3.5 * GIB),
)
WITHOUT_PLAN = dataclasses.replace(COMPARISON, plan=None)
REPORTS = {
    "plan": terminal.plan_report(PROFILE, PLAN, COMPARISON),
    "plan_flux": terminal.plan_report(examples.flux(), examples.flux_plan(), examples.comparison(examples.flux_plan())),
    "comparison_without_plan": terminal.comparison_report(WITHOUT_PLAN),
    "error": terminal.budget_report(BUDGET_ERROR, PROFILE, WITHOUT_PLAN),
    "gpus": terminal.gpu_list([examples.DEVICE]),
}


def shown(renderable):
    file = io.StringIO()
    Console(file=file, width=80, markup=False, highlight=False).print(renderable)
    return file.getvalue()


def plan_text(plan):
    return shown(terminal.plan_report(PROFILE, plan, COMPARISON))


@pytest.mark.parametrize("name", REPORTS)
def test_report_equals_the_golden_file_and_fits_80_columns_of_plain_text(name):
    out = shown(REPORTS[name])
    check_golden(f"terminal_{name}.txt", out)
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert "…" not in out, "a figure was cut"


@pytest.mark.parametrize(
    ("report", "noun"),
    [
        (terminal.profile_report, PROFILE),
        (terminal.comparison_report, COMPARISON),
        (terminal.frontier_report, plan_results.frontier(PLAN)),
    ],
)
def test_report_of_one_noun_is_its_card(report, noun):
    lines = [line.rstrip() for line in shown(report(noun)).splitlines()]
    assert lines == terminal.card_text(terminal.card(noun)).splitlines()


def test_a_table_with_long_names_is_wider_and_cuts_none():
    long = "image_encoder_of_the_second_reference_pipeline"
    components = tuple(dataclasses.replace(c, name=f"{long}_{c.name}") for c in PROFILE.components)
    profile = dataclasses.replace(PROFILE, components=components, stages=())
    lines = terminal.card_text(Card(title="Long", tables=(component_table(profile, PLAN),))).splitlines()
    for component in components:
        assert sum(line.startswith(f"{component.name} ") for line in lines) == 1


def test_words_are_wrapped_between_words_only():
    table = Table(
        title="Rows",
        source=None,
        columns=tuple(Column(heading=heading, alignment="left") for heading in ("name", "words", "too few")),
        rows=(
            (Cell(text="a name of several words"), Cell(text="unconditional_transformer " * 3), Cell(text="too slow")),
        ),
    )
    lines = terminal.card_text(Card(title="Wide", tables=(table,))).splitlines()
    assert sum("a name of several words" in line and "too slow" in line for line in lines) == 1
    assert sum(line.split().count("unconditional_transformer") for line in lines) == 3
    assert max(map(len, lines)) <= 80


def test_long_figures_are_never_cut():
    flux = examples.flux()
    stages = tuple(dataclasses.replace(s, num_iterations=90 * s.num_iterations) for s in flux.stages)
    table = component_table(dataclasses.replace(flux, stages=stages), examples.flux_plan())
    words = shown(terminal.table_text(table)).split()
    assert words.count("streamed") == 2
    assert {"30/72", "50/190", "text_encoder_2"} <= set(words)
    assert "1 h 28 min" in " ".join(words)


def test_headings_are_wrapped_only_where_one_line_is_too_long():
    table = component_table(PROFILE)
    one_line = shown(terminal.table_text(table))
    assert "compute copy once" in one_line
    wide = beside_table(PLAN, plan_results.measurement(PLAN))
    assert "pred. meas." in shown(terminal.table_text(wide))


def test_plan_report_begins_with_the_verdict():
    out = plan_text(PLAN)
    assert out.startswith("Fits (predicted). Peak 5.95 GiB within 6.00 GiB.\n")


def test_plan_report_says_predicted_in_every_part():
    first, *parts = plan_text(PLAN).split("\n\n")
    assert len(parts) == 5
    assert all("predicted" in part for part in (first, *parts))


def test_plan_report_names_the_permission_used():
    plan = dataclasses.replace(PLAN, permissions=("vae_tiling",))
    assert "Allowed and used: vae_tiling." in " ".join(plan_text(plan).split())


def test_plan_report_marks_the_plan_among_the_modes():
    file = io.StringIO()
    Console(file=file, width=80, force_terminal=True, color_system="standard").print(REPORTS["plan"])
    assert any("\x1b[1mvramtune" in line for line in file.getvalue().splitlines())


def test_plan_report_lists_the_reasons():
    assert "\n- Compute sets the pace:" in plan_text(PLAN)
    assert "\n- One GiB more could save at most 106 ms; unlimited memory 340 ms." in plan_text(PLAN)


def test_square_brackets_in_names_are_printed_as_they_are():
    reason = dataclasses.replace(PLAN.reasons[1], stage="[bold]unet[/bold]")
    assert "[bold]unet[/bold]" in plan_text(dataclasses.replace(PLAN, reasons=(reason,)))


def test_budget_report_begins_with_what_would_fit():
    out = shown(REPORTS["error"])
    assert out.startswith("StableDiffusionXLPipeline does not fit 2.00 GiB. Give it at least 3.50 GiB.")
    assert "group offload, block, stream" in out


def test_one_line_names_budget_prediction_bound_and_placements():
    assert terminal.one_line(examples.flux_plan()) == (
        "7.60 GiB usable of 8.00 GiB asked on GeForce RTX 4060: predicted peak 7.29 GiB, 59.9 s per call "
        "(48.0 to 77.9 s, bound 58.5 s), first call 61.4 s, 28.93 GiB of host memory (28.93 GiB page-locked); text_encoder offloaded, text_encoder_2 streamed, "
        "transformer streamed, vae resident."
    )


def test_card_text_of_a_tuned_pipeline_tells_where_the_weights_are_before_and_after_a_call():
    for measurement in (None, plan_results.measurement(PLAN)):
        text = terminal.card_text(tuned_card(PLAN, measurement))
        assert "streamed 40/44" in text
        assert not any(line.endswith(" ") for line in text.splitlines())
