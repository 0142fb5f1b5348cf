import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from tests.reports import examples
from tests.reports.plots import nouns
from vramtune.reports import plots
from vramtune.schema import MemoryLevel, Timeline
from vramtune.units import GIB

OWNERS = ("unet", "vae", "slots", "activations", "pipeline", "workspaces", "context")


def of(profile, plan, timeline=None):
    timeline = timeline or examples.timeline(profile, plan)
    return plots.memory_over_call(timeline, profile=profile, plan=plan)


@st.composite
def timelines(draw):
    """Stages in order, each of levels of any length, some of them longer than a plot can tell apart."""
    levels, now = [], 0.0
    for stage in range(4):
        seconds = draw(st.lists(st.sampled_from([1e-4, 0.01, 1.0]), min_size=1, max_size=3))
        for length in seconds * draw(st.sampled_from([1, 120])):
            owners = {owner: draw(st.integers(0, 4)) * GIB for owner in OWNERS} if len(levels) < 40 else {}
            owners = owners or levels[len(levels) % 40].owners
            levels.append(
                MemoryLevel(start_seconds=now, end_seconds=now + length, stage=stage, owners=owners)
            )
            now += length
    return Timeline(spans=(), memory=tuple(levels))


@settings(max_examples=30)
@given(timelines())
def test_the_layers_reach_the_peak_and_nothing_stands_above_it(timeline):
    plot = of(examples.sdxl(), examples.sdxl_plan(), timeline)
    totals = [sum(held) for held in zip(*(layer.gib for layer in plot.layers), strict=True)]
    highest = max(sum(level.owners.values()) for level in timeline.memory) / GIB
    assert max(totals, default=0) == pytest.approx(highest)
    assert plot.peak_gib == pytest.approx(highest)
    assert sum(gib for _, gib in plot.peak_owners) == pytest.approx(highest)


@settings(max_examples=30)
@given(timelines())
def test_the_axis_runs_from_0_to_1_without_going_back(timeline):
    plot = of(examples.sdxl(), examples.sdxl_plan(), timeline)
    assert plot.edges[0] == 0
    assert plot.edges[-1] == 1
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(plot.edges))
    assert all(len(layer.gib) == len(plot.edges) - 1 for layer in plot.layers)
    assert len(plot.edges) - 1 <= plots.LEVELS_PER_STAGE * len(plot.bands)
    assert 0 <= plot.peak_position <= 1


@settings(max_examples=30)
@given(timelines())
def test_no_stage_is_too_narrow_to_see(timeline):
    plot = of(examples.sdxl(), examples.sdxl_plan(), timeline)
    num = len(plot.bands)
    narrowest = plots.NARROWEST_STAGE / (1 + num * plots.NARROWEST_STAGE)
    assert all(band.right - band.left >= narrowest - 1e-9 for band in plot.bands)
    assert all(a.right == b.left for a, b in itertools.pairwise(plot.bands))
    assert plot.bands[-1].right == pytest.approx(1)


def test_bands_carry_names_and_iterations():
    plot = of(examples.sdxl(), examples.sdxl_plan())
    assert [band.label for band in plot.bands] == ["text_encoder", "text_encoder_2", "unet x50", "vae.decode"]


def test_the_peak_names_its_stage_and_owners_largest_first():
    plot = of(examples.sdxl(), examples.sdxl_plan())
    plan = examples.sdxl_plan()
    assert plot.peak_stage == "unet"
    assert plot.peak_owners[0] == ("unet", pytest.approx(plan.placements[2].kept_bytes(2) / GIB))
    assert [gib for _, gib in plot.peak_owners] == sorted((gib for _, gib in plot.peak_owners), reverse=True)
    assert "predicted" in plot.title


def test_layers_run_from_what_never_changes_to_what_comes_and_goes():
    plot = of(examples.sdxl(), examples.sdxl_plan())
    assert [layer.owner for layer in plot.layers] == [
        "other",
        "context",
        "text_encoder",
        "text_encoder_2",
        "unet",
        "vae",
        "slots",
        "activations",
    ]


def tick_labels(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def test_under_each_stage_stands_how_long_it_takes():
    axes = plots.draw_memory(of(examples.sdxl(), examples.sdxl_plan()))
    assert tick_labels(axes) == ["5 ms", "20 ms", "16.0 s", "1.40 s"]


def test_where_stages_are_crowded_the_longest_say_how_long_they_take():
    profile, plan = nouns.CASES["crowded"]
    labels = tick_labels(plots.draw_memory(of(profile, plan)))
    assert labels == ["20 ms", "", "20 ms", "", "20 ms", "", "11.2 s", "1.40 s"]


def test_drawing_uses_the_axes_it_is_given():
    axes = Figure().subplots()
    drawn = plots.draw_memory(of(examples.flux(), examples.flux_plan()), ax=axes)
    assert drawn is axes
    assert axes.get_ylabel() == "GPU memory (GiB)"
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[0] == "budget 7.60 GiB"
    assert {"transformer", "activations", "slots", "context"} <= set(texts)
    assert "in transformer" in axes.texts[0].get_text()


def test_a_budget_far_above_the_peak_is_named_but_does_not_flatten_the_plot():
    plan = dataclasses.replace(examples.sdxl_plan(), budget_bytes=80 * GIB)
    axes = plots.draw_memory(of(examples.sdxl(), plan))
    assert axes.get_ylim()[1] < 12
    assert axes.get_legend().get_texts()[0].get_text() == "budget 80.00 GiB (above)"


@pytest.mark.parametrize("suffix", plots.FORMATS)
def test_every_format_can_be_written(tmp_path, suffix):
    path = tmp_path / f"plot.{suffix}"
    plots.save_memory(of(examples.sdxl(), examples.sdxl_plan()), path)
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(magic)
