"""Every renderer shows the same figures of the same call: those that the noun carries."""

import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from tests.profiles import activity, component, device, profile, stage, weights
from tests.reports import plan_results
from tests.reports.html_page import tables
from vramtune.reports.cards import tuned_card
from vramtune.reports.frames import to_frame, tuned_frame
from vramtune.reports.html import write_report
from vramtune.reports.json_output import plan_json
from vramtune.reports.notebook import card_html
from vramtune.reports.rows import component_rows, stage_label
from vramtune.reports.terminal import card_text, plan_report
from vramtune.tuner.comparison import compare_plan
from vramtune.tuner.search import choose_plan
from vramtune.tuner.simulate import timeline
from vramtune.units import GIB, MIB, format_seconds

STAGES, COMPONENTS = "Stages of the call", "Components, over one call"
BESIDE = "Stages of the call, predicted beside measured"


def call():
    """A call whose encoder is excluded from offload and owns 200 MiB that it never uses; the others are streamed."""
    encoder = component("encoder", [300 * MIB, 200 * MIB], root_bytes=40 * MIB)
    encoder = dataclasses.replace(encoder, parameters=weights(encoder.used_bytes + 200 * MIB, 9))
    unet = component("unet", [150 * MIB, 250 * MIB, 100 * MIB] * 4, root_bytes=30 * MIB)
    vae = component("vae", [90 * MIB, 60 * MIB])
    checker = component("never_run", [70 * MIB])
    stages = (
        stage("encoder", 1, activity(encoder, [0.01, 0.02], activation_bytes=30 * MIB)),
        stage("unet", 5, activity(unet, [0.02] * 12, activation_bytes=150 * MIB), pipeline_seconds=0.01),
        stage("vae.decode", 1, activity(vae, [0.1, 0.2], method="decode", activation_bytes=700 * MIB)),
    )
    on = device(context_bytes=300 * MIB, workspace_bytes=32 * MIB)
    return profile(on, (encoder, unet, vae, checker), stages, excluded=("encoder", "never_run"))


PROFILE = call()
PLAN = choose_plan(PROFILE, int(2.6 * GIB))
COMPARISON = compare_plan(PROFILE, PLAN)
MEASURED = plan_results.measurement(PLAN)


def gib(num_bytes):
    return f"{num_bytes / GIB:.2f}"


def expected_stages():
    """What every table of stages must say, from the noun."""
    return {
        stage_label(stage.name, stage.num_iterations): {
            "kept": gib(stage.kept_bytes),
            "slots": gib(stage.slot_bytes),
            "activations": gib(stage.activation_bytes),
            "fixed": gib(stage.fixed_bytes),
            "peak": gib(stage.peak_bytes),
            "time": format_seconds(stage.seconds),
            "compute": format_seconds(stage.compute_seconds),
            "moved": gib(stage.moved_bytes),
        }
        for stage in PLAN.estimate.stages
    }


def expected_components():
    return {
        row.component: {
            "weights": gib(row.weight_bytes),
            "used": gib(row.used_bytes),
            "activations": "-" if row.activation_bytes is None else gib(row.activation_bytes),
            "calls": str(row.num_calls),
            "compute": format_seconds(row.compute_seconds) if row.num_calls else "-",
        }
        for row in component_rows(PROFILE)
    }


def expected_beside():
    context_bytes = MEASURED.context_bytes
    return {
        stage_label(guess.name, guess.num_iterations): {
            "peak, predicted": gib(guess.peak_bytes),
            "peak, measured": gib(stage.peak_bytes + context_bytes),
            "time, predicted": format_seconds(guess.seconds),
            "time, measured": format_seconds(stage.seconds),
            "exposed copy, measured": format_seconds(stage.exposed_copy_seconds),
            "moved, predicted": gib(guess.moved_bytes),
            "moved, measured": gib(stage.moved_bytes),
        }
        for guess, stage in zip(PLAN.estimate.stages, MEASURED.stages, strict=True)
    }


def text_rows(text, title):
    """The rows of a table in text by name: their figures in order, quantities with their units."""
    lines = text[text.index(f"\n{title} (") :].split("\n\n")[0].splitlines()
    rule = next(index for index, line in enumerate(lines) if line.startswith("───"))
    split = [re.match(r"(\S+(?: x\d+)?) +(.*)", line.rstrip()).groups() for line in lines[rule + 1 :]]
    quantity = r"\d+ h \d+ min|\d+ min \d+ s|[\d.]+ (?:s|ms|µs)|[\d.]+|-"
    return {name: re.findall(quantity, figures) for name, figures in split}


def plan_text():
    file = io.StringIO()
    Console(file=file, width=80, markup=False, highlight=False).print(plan_report(PROFILE, PLAN, COMPARISON))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        path, profile=PROFILE, plan=PLAN, comparison=COMPARISON, timeline=timeline(PROFILE, PLAN), measurement=MEASURED
    )
    return tables(path.read_text(encoding="utf-8"))


def picked(table, expected):
    """Of a page's table, the columns that are expected."""
    return {name: {h: row[h] for h in expected[name]} for name, row in table.items()}


def test_the_plan_is_a_hard_one():
    """An excluded component with unused weights, a component that is never called, slots, copies that are waited for."""
    unused = sum(component.weights.allocated_bytes - component.used_bytes for component in PROFILE.components)
    placed = sum(placement.kept_bytes(0) for placement in PLAN.placements)
    assert unused >= 200 * MIB
    assert PLAN.estimate.stages[0].kept_bytes > placed
    assert any(stage.slot_bytes for stage in PLAN.estimate.stages)
    assert any(stage.exposed_copy_seconds > 0.01 for stage in PLAN.estimate.stages)


def test_parts_of_every_stage_add_up_to_its_peak():
    for row in expected_stages().values():
        parts = sum(float(row[part]) for part in ("kept", "slots", "activations", "fixed"))
        assert parts == pytest.approx(float(row["peak"]), abs=0.021)


def test_terminal_shows_the_stages_and_components_figures():
    out = plan_text()
    assert text_rows(out, STAGES) == {name: list(row.values()) for name, row in expected_stages().items()}
    components = {name: figures[:5] for name, figures in text_rows(out, COMPONENTS).items()}
    assert components == {name: list(row.values()) for name, row in expected_components().items()}


def test_notebook_shows_the_stages_figures():
    fragment = tables(card_html(tuned_card(PLAN, None)))
    assert picked(fragment[STAGES], expected_stages()) == expected_stages()


def test_page_shows_the_stages_and_components_figures(page):
    assert picked(page[STAGES], expected_stages()) == expected_stages()
    assert picked(page[COMPONENTS], expected_components()) == expected_components()


def test_json_has_the_stages_and_components_figures():
    answer = json.loads(plan_json(PROFILE, PLAN, COMPARISON))
    stages = {
        stage_label(stage["name"], stage["num_iterations"]): {
            "kept": gib(stage["kept_bytes"]),
            "slots": gib(stage["slot_bytes"]),
            "activations": gib(stage["activation_bytes"]),
            "fixed": gib(stage["fixed_bytes"]),
            "peak": gib(stage["peak_bytes"]),
            "time": format_seconds(stage["seconds"]),
            "compute": format_seconds(stage["compute_seconds"]),
            "moved": gib(stage["moved_bytes"]),
        }
        for stage in answer["plan"]["estimate"]["stages"]
    }
    assert stages == expected_stages()
    components = {
        row["component"]: {
            "weights": gib(row["weight_bytes"]),
            "used": gib(row["used_bytes"]),
            "activations": "-" if row["activation_bytes"] is None else gib(row["activation_bytes"]),
            "calls": str(row["num_calls"]),
            "compute": format_seconds(row["compute_seconds"]) if row["num_calls"] else "-",
        }
        for row in answer["profile"]["components"]
    }
    assert components == expected_components()


def test_data_frames_have_the_stages_and_components_figures():
    stages = {
        stage_label(row.stage, row.num_iterations): {
            "kept": gib(row.predicted_kept_bytes),
            "slots": gib(row.predicted_slot_bytes),
            "activations": gib(row.predicted_activation_bytes),
            "fixed": gib(row.predicted_fixed_bytes),
            "peak": gib(row.predicted_peak_bytes),
            "time": format_seconds(row.predicted_seconds),
            "compute": format_seconds(row.predicted_seconds - row.predicted_exposed_copy_seconds),
            "moved": gib(row.predicted_moved_bytes),
        }
        for row in tuned_frame(PLAN, None).itertuples()
    }
    assert stages == expected_stages()
    frame = to_frame(PROFILE).set_index("component")
    for name, row in expected_components().items():
        assert gib(frame.weight_bytes[name]) == row["weights"]
        assert gib(frame.used_bytes[name]) == row["used"]
        assert str(frame.num_calls[name]) == row["calls"]


def test_terminal_notebook_and_page_show_the_measured_call_beside_the_prediction(page):
    expected = expected_beside()
    card = tuned_card(PLAN, MEASURED)
    in_text = text_rows("\n" + card_text(card), BESIDE)
    assert in_text == {name: list(row.values()) for name, row in expected.items()}
    assert picked(tables(card_html(card))[BESIDE], expected) == expected
    assert picked(page[BESIDE], expected) == expected


def test_data_frame_has_the_measured_call_beside_the_prediction():
    beside = {
        stage_label(row.stage, row.num_iterations): {
            "peak, predicted": gib(row.predicted_peak_bytes),
            "peak, measured": gib(row.measured_peak_bytes),
            "time, predicted": format_seconds(row.predicted_seconds),
            "time, measured": format_seconds(row.measured_seconds),
            "exposed copy, measured": format_seconds(row.measured_exposed_copy_seconds),
            "moved, predicted": gib(row.predicted_moved_bytes),
            "moved, measured": gib(row.measured_moved_bytes),
        }
        for row in tuned_frame(PLAN, MEASURED).itertuples()
    }
    assert beside == expected_beside()
