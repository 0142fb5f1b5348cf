import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reports import examples
from vramtune.reports import plots
from vramtune.reports.plots.modes import LONGEST_BAR
from vramtune.schema import Comparison, ModeEstimate
from vramtune.units import GIB

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
COMPARISON = examples.comparison(PLAN)


def of(comparison=COMPARISON):
    return plots.mode_seconds(comparison, profile=PROFILE)


@st.composite
def comparisons(draw):
    """A plan and modes of any speed, with compute of at most all their seconds."""
    seconds = draw(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=8))
    modes = tuple(
        ModeEstimate(
            mode=f"mode {index}" if index else "vramtune",
            fits=draw(st.booleans()),
            peak_bytes=GIB,
            seconds=of_mode,
            compute_seconds=draw(st.floats(0.05, 1)) * of_mode,
            copied_in_bytes=0,
            copied_out_bytes=0,
        )
        for index, of_mode in enumerate(seconds)
    )
    return Comparison(asked_bytes=GIB, budget_bytes=GIB, bound_seconds=min(seconds), modes=modes)


@given(comparisons())
def test_compute_and_exposed_copies_make_up_each_mode(comparison):
    plot = of(comparison)
    seconds = {mode.mode: mode.seconds for mode in comparison.modes}
    assert {bar.mode: pytest.approx(bar.seconds) for bar in plot.bars} == seconds
    assert all(bar.exposed_copy_seconds >= 0 for bar in plot.bars)
    assert {bar.mode: bar.plan_ratio for bar in plot.bars}["vramtune"] == 1


@given(comparisons())
def test_the_axis_holds_every_bar_or_six_times_the_fastest(comparison):
    seconds = [mode.seconds for mode in comparison.modes]
    longest = of(comparison).longest_seconds
    assert longest == max(seconds) or longest == LONGEST_BAR * min(seconds) < max(seconds)


def test_the_title_names_what_the_modes_are_held_to():
    comparison = dataclasses.replace(COMPARISON, asked_bytes=8 * GIB, budget_bytes=7 * GIB)
    assert of(comparison).title.startswith("StableDiffusionXLPipeline in 7.00 GiB of GeForce RTX 4060:\n")
    assert of().title.endswith("predicted")


def names(axes):
    return [text.get_text() for text in axes.texts if ":" in text.get_text()]


def test_every_mode_says_how_long_it_takes_and_whether_it_fits():
    found = names(plots.draw_modes(of()))
    assert found[0] == "vramtune: 17.4 s"
    assert found[1] == "model offload: 29.6 s, 1.70x as long"
    assert found[3] == "all resident: 16.6 s, 0.95x as long; does not fit, needs 8.40 GiB"


def bars(axes):
    return {
        container.get_label(): [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in container]
        for container in axes.containers
    }


def test_bars_of_modes_that_do_not_fit_look_different():
    drawn = bars(plots.draw_modes(of()))
    assert {label: len(parts) for label, parts in drawn.items()} == {
        "compute": 3,
        "exposed copy": 3,
        "compute (does not fit)": 1,
        "exposed copy (does not fit)": 1,
    }


def test_a_bar_that_is_cut_off_ends_with_the_axis_and_says_so():
    plot = of()
    axes = plots.draw_modes(plot)
    assert max(end for _, end in bars(axes)["exposed copy"]) == pytest.approx(plot.longest_seconds)
    assert [text.get_text() for text in axes.texts].count("»") == 1
    assert axes.get_xlabel() == "seconds of one call (»: the bar goes on)"


def test_without_a_plan_there_is_neither_bound_nor_ratio():
    modes = tuple(mode for mode in COMPARISON.modes if mode.mode != "vramtune")
    axes = plots.draw_modes(of(dataclasses.replace(COMPARISON, bound_seconds=None, modes=modes)))
    assert not any("bound" in text.get_text() for text in axes.get_legend().get_texts())
    assert "model offload: 29.6 s" in names(axes)


def test_the_bound_is_named_with_its_seconds():
    texts = [text.get_text() for text in plots.draw_modes(of()).get_legend().get_texts()]
    assert "bound 17.0 s: no plan is faster" in texts
