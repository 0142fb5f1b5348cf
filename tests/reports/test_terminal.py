import dataclasses
import io

import pytest
from rich.console import Console

from tests.reports import examples, seen
from tests.reports.golden import check_golden
from vramtune.errors import BudgetError
from vramtune.reports import terminal
from vramtune.reports.rows import placement_rows
from vramtune.schema import Workload
from vramtune.units import GIB

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
COMPARISON = examples.comparison(PLAN)
MEASURED = seen.measurement(PLAN)
BUDGET_ERROR = BudgetError(
    "StableDiffusionXLPipeline does not fit 2.00 GiB. Give it at least 3.50 GiB.",
    budget_bytes=2 * GIB,
    smallest_bytes=int(3.5 * GIB),
)
WITHOUT_PLAN = dataclasses.replace(COMPARISON, modes=COMPARISON.stock, bound_seconds=None)
REPORTS = {
    "profile": terminal.profile_report(PROFILE),
    "plan": terminal.plan_report(PROFILE, PLAN, COMPARISON),
    "comparison": terminal.comparison_report(COMPARISON, PROFILE),
    "comparison_without_plan": terminal.comparison_report(WITHOUT_PLAN, PROFILE),
    "frontier": terminal.frontier_report(seen.frontier(PLAN), PROFILE),
    "error": terminal.budget_report(BUDGET_ERROR, PROFILE, WITHOUT_PLAN),
    "tuned": terminal.tuned_text(PROFILE, PLAN, MEASURED),
    "tuned_before": terminal.tuned_text(PROFILE, PLAN, None),
}
CASES = [(examples.sdxl(), examples.sdxl_plan()), (examples.flux(), examples.flux_plan())]


def shown(renderable):
    file = io.StringIO()
    Console(file=file, width=80, markup=False, highlight=False).print(renderable)
    return file.getvalue()


def report(profile, plan):
    return shown(terminal.plan_report(profile, plan, examples.comparison(plan)))


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_reads_as_it_did(name):
    out = shown(REPORTS[name])
    check_golden(f"terminal_{name}.txt", out)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(("profile", "plan"), CASES)
def test_a_report_fits_80_columns_of_plain_text(profile, plan):
    out = report(profile, plan)
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert "…" not in out, "a figure was cut"


def test_long_names_still_fit_80_columns():
    profile, plan = CASES[0]
    long = "image_encoder_of_the_second_reference_pipeline"
    components = tuple(dataclasses.replace(c, name=f"{long}_{c.name}") for c in profile.components)
    rows = terminal.component_rows(dataclasses.replace(profile, components=components, stages=()))
    out = shown(terminal.component_table(rows, placement_rows(plan)))
    assert max(map(len, out.splitlines())) <= 80


def test_a_figure_is_never_cut():
    profile, plan = CASES[1]
    stages = tuple(dataclasses.replace(s, num_iterations=90 * s.num_iterations) for s in profile.stages)
    rows = terminal.component_rows(dataclasses.replace(profile, stages=stages))
    words = shown(terminal.component_table(rows, placement_rows(plan))).split()
    assert words.count("streamed") == 2
    assert {"30/72", "50/190", "text_encoder_2"} <= set(words)
    assert "1 h 28 min" in " ".join(words)


def test_the_verdict_comes_first():
    out = report(*CASES[0])
    assert out.startswith("Fits: predicted peak 5.95 of 6.00 GiB on GeForce RTX 4060.\n")
    assert "17.4 s per call, 2.5% above the bound of 17.0 s that no plan beats" in " ".join(out.split())


def test_a_budget_that_the_card_cannot_give_is_said():
    assert "of 7.60 GiB usable (8.00 asked) on" in " ".join(report(*CASES[1]).split())


def test_every_part_with_figures_says_predicted():
    paragraphs = report(*CASES[0]).split("\n\n")
    assert len(paragraphs) == 5
    assert all("redicted" in paragraph for paragraph in paragraphs[:4])


def test_a_permission_that_is_used_is_named():
    profile, plan = CASES[0]
    plan = dataclasses.replace(plan, permissions=("vae_tiling",))
    assert "Allowed and used: vae_tiling." in " ".join(report(profile, plan).split())


def test_placements_read_as_roles():
    rows = placement_rows(examples.flux_plan())
    labels = {
        name: terminal.placement_label([row for row in rows if row.component == name])
        for name in ("text_encoder", "transformer", "vae")
    }
    assert labels == {"text_encoder": "offloaded", "transformer": "streamed 50/190", "vae": "resident"}


def test_roles_that_differ_between_stages_are_all_named_once():
    rows = placement_rows(examples.flux_plan())
    t5 = next(row for row in rows if row.component == "text_encoder_2" and row.active)
    twice = [t5, dataclasses.replace(t5, num_kept=12), t5]
    assert terminal.placement_label(twice) == "streamed 30/72, streamed 12/72"


def test_weights_that_the_call_does_not_use_are_called_unused():
    line = next(line for line in report(*CASES[0]).splitlines() if line.startswith("safety_checker"))
    assert line.split() == ["safety_checker", "0.57", "0.00", "-", "0", "-", "-", "unused"]


def test_what_is_excluded_from_offload_is_resident_used_or_not():
    profile = dataclasses.replace(PROFILE, excluded=("safety_checker", "unet"))
    out = shown(terminal.plan_report(profile, PLAN, COMPARISON))
    components = out.split("Components, predicted")[1].split("\n\n")[0]
    placed = {line.split()[0]: line.split()[-1] for line in components.splitlines()}
    assert (placed["safety_checker"], placed["unet"]) == ("resident", "resident")


def test_every_time_of_a_call_stands_beside_the_bound():
    for name in ("plan", "comparison", "frontier", "tuned", "tuned_before"):
        out = " ".join(shown(REPORTS[name]).split())
        assert "17.0 s" in out, name
        assert "bound" in out or "no plan beats" in out, name


def test_what_was_measured_above_the_budget_or_without_the_context_is_said():
    over = seen.measurement(PLAN, peak_bytes=PLAN.budget_bytes + 1)
    assert "OVER THE BUDGET" in terminal.tuned_text(PROFILE, PLAN, over)
    assert "OVER" not in terminal.tuned_text(PROFILE, PLAN, MEASURED)
    bare = seen.measurement(PLAN, context_bytes=None)
    assert "without the CUDA context" in terminal.tuned_text(PROFILE, PLAN, bare)


def test_reasons_are_a_list():
    out = report(*CASES[0])
    assert "\n- The copy engine" in out
    assert "\n- One more GiB would save 2.1 s per call." in out


def test_square_brackets_are_printed_as_they_are():
    profile, plan = CASES[0]
    plan = dataclasses.replace(plan, reasons=("Stage [bold]unet[/bold] sets the pace.",))
    assert "[bold]unet[/bold]" in report(profile, plan)


def test_a_plan_that_does_not_exist_says_what_would_do():
    out = shown(REPORTS["error"])
    assert out.startswith("StableDiffusionXLPipeline does not fit 2.00 GiB. Give it at least 3.50 GiB.")
    assert "group offload, block, stream" in out


def test_an_unknown_rate_is_a_dash():
    device = dataclasses.replace(examples.DEVICE, flops_per_second={"float32": 1e13})
    assert shown(terminal.device_table([device])).splitlines()[-1].split()[-3] == "-"


def test_a_call_without_settings_is_the_default_one():
    profile, plan = CASES[0]
    profile = dataclasses.replace(profile, workload=Workload(call_kwargs={"prompt": "a fox"}))
    assert "StableDiffusionXLPipeline, default settings.\n" in report(profile, plan)


def test_settings_that_are_words_are_settings_too():
    profile, plan = CASES[0]
    kwargs = {"prompt": "a fox", "output_type": "latent", "image": "<PIL.Image.Image image>"}
    profile = dataclasses.replace(profile, workload=Workload(call_kwargs=kwargs))
    assert ", output_type=latent, image=....\n" in report(profile, plan)


def test_a_hair_below_the_bound_is_no_minus():
    profile, plan = CASES[0]
    estimate = dataclasses.replace(plan.estimate, seconds=1 - 1e-9, bound_seconds=1)
    assert " 0.0% above the bound" in report(profile, dataclasses.replace(plan, estimate=estimate))
