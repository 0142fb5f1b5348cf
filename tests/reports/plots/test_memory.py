import dataclasses
import itertools

import pytest
from hypothesis import given, settings

from tests.reports import examples
from tests.reports.plots import factories
from vramtune.reports import plots
from vramtune.reports.plots.memory import LEVELS_PER_STAGE, NARROWEST_STAGE
from vramtune.units import GIB

SDXL = examples.timeline(examples.sdxl(), examples.sdxl_plan())


@settings(max_examples=30)
@given(factories.timelines())
def test_the_layers_reach_the_peak_and_never_exceed_it(timeline):
    plot = plots.memory_over_call(timeline)
    totals = [sum(held) for held in zip(*(layer.gib for layer in plot.layers), strict=True)]
    peak = max(level.held_bytes for level in timeline.memory) / GIB
    assert max(totals) == pytest.approx(peak)
    assert plot.peak_gib == pytest.approx(peak)
    assert sum(gib for _, gib in plot.peak_owners) == pytest.approx(peak)


@settings(max_examples=30)
@given(factories.timelines())
def test_the_axis_runs_from_0_to_1_without_going_back(timeline):
    plot = plots.memory_over_call(timeline)
    assert plot.edges[0] == 0
    assert plot.edges[-1] == 1
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(plot.edges))
    assert all(len(layer.gib) == len(plot.edges) - 1 for layer in plot.layers)
    assert len(plot.edges) - 1 <= LEVELS_PER_STAGE * len(plot.bands)
    assert 0 <= plot.peak_position <= 1


@settings(max_examples=30)
@given(factories.timelines())
def test_the_stages_fill_the_axis_and_none_is_too_narrow_to_see(timeline):
    bands = plots.memory_over_call(timeline).bands
    narrowest = NARROWEST_STAGE / (1 + len(bands) * NARROWEST_STAGE)
    assert all(band.right - band.left >= narrowest - 1e-9 for band in bands)
    assert all(a.right == b.left for a, b in itertools.pairwise(bands))
    assert bands[-1].right == pytest.approx(1)


def test_stages_are_labelled_with_their_names_and_iterations():
    labels = [band.label for band in plots.memory_over_call(SDXL).bands]
    assert labels == ["text_encoder", "text_encoder_2", "unet x50", "vae.decode"]


def test_the_peak_has_its_stage_and_its_owners_largest_first():
    plot = plots.memory_over_call(SDXL)
    assert plot.peak_stage == "unet"
    owner, gib = plot.peak_owners[0]
    assert (owner.name, gib) == ("unet", pytest.approx(SDXL.plan.placements[2].kept_bytes(2) / GIB))
    assert [gib for _, gib in plot.peak_owners] == sorted((gib for _, gib in plot.peak_owners), reverse=True)
    assert "predicted" in plot.title


def test_layers_run_from_what_never_changes_to_what_comes_and_goes():
    assert [layer.owner.name for layer in plots.memory_over_call(SDXL).layers] == [
        "other",
        "CUDA context",
        "text_encoder",
        "text_encoder_2",
        "unet",
        "vae",
        "streaming slots",
        "activations",
    ]


def tick_labels(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def test_each_stage_has_its_duration_under_the_axis():
    axes = plots.draw_memory(plots.memory_over_call(SDXL))
    assert tick_labels(axes) == ["5 ms", "20 ms", "16.0 s", "1.40 s"]


def test_where_stages_are_crowded_only_the_longest_have_their_duration_under_the_axis():
    crowded = examples.timeline(*factories.CASES["crowded"])
    labels = tick_labels(plots.draw_memory(plots.memory_over_call(crowded)))
    assert labels == ["20 ms", "", "20 ms", "", "20 ms", "", "11.2 s", "1.40 s"]


def test_the_drawing_names_the_axis_the_budget_the_owners_and_the_peak():
    flux = examples.timeline(examples.flux(), examples.flux_plan())
    axes = plots.draw_memory(plots.memory_over_call(flux))
    assert axes.get_ylabel() == "GPU memory (GiB)"
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend[0] == "budget 7.60 GiB"
    assert {"transformer", "activations", "streaming slots", "CUDA context"} <= set(legend)
    (peak,) = (" ".join(text.get_text().split()) for text in axes.texts)
    assert peak == (
        "peak 7.29 GiB in transformer: transformer 5.83, activations 0.68, streaming slots 0.35, other 0.42"
    )


def test_a_budget_far_above_the_peak_is_named_but_does_not_flatten_the_plot():
    roomy = dataclasses.replace(SDXL, plan=dataclasses.replace(SDXL.plan, budget_bytes=80 * GIB))
    axes = plots.draw_memory(plots.memory_over_call(roomy))
    assert axes.get_ylim()[1] < 12
    assert axes.get_legend().get_texts()[0].get_text() == "budget 80.00 GiB (off scale)"


@pytest.mark.parametrize("suffix", plots.FORMATS)
def test_a_figure_can_be_saved_in_every_format(tmp_path, suffix):
    path = tmp_path / f"plot.{suffix}"
    plots.save(SDXL.plot_memory(), path)
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(magic)
