import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reports import examples
from vramtune.reports import plots
from vramtune.reports.plots.modes import LONGEST_BAR
from vramtune.schema import ModeEstimate
from vramtune.units import GIB

COMPARISON = examples.comparison(examples.sdxl_plan())


@st.composite
def comparisons(draw):
    """SDXL's plan beside modes of any speed, with compute of at most all their seconds."""
    seconds = draw(st.lists(st.floats(0.1, 1e4), max_size=7))
    stock = tuple(
        ModeEstimate(
            mode=f"mode {index}",
            fits=draw(st.booleans()),
            peak_bytes=GIB,
            seconds=mode_seconds,
            compute_seconds=draw(st.floats(0.05, 1)) * mode_seconds,
            moved_bytes=0,
            moved_back_bytes=0,
            host_bytes=0,
            **examples.likely(mode_seconds, GIB),
        )
        for index, mode_seconds in enumerate(seconds)
    )
    return dataclasses.replace(COMPARISON, stock=stock)


@given(comparisons())
def test_compute_and_waiting_for_copies_make_up_each_mode(comparison):
    plot = plots.mode_seconds(comparison)
    seconds = {mode.mode: mode.seconds for mode in comparison.modes}
    assert {row.mode: pytest.approx(row.compute_seconds + row.exposed_copy_seconds) for row in plot.rows} == seconds
    assert {row.mode: row.plan_ratio for row in plot.rows}["vramtune"] == 1


@given(comparisons())
def test_the_bars_are_as_long_as_their_modes_take_or_as_the_axis(comparison):
    plot = plots.mode_seconds(comparison)
    ends = {}
    for container in plots.draw_modes(plot).containers:
        for bar in container:
            row = int(bar.get_y())
            ends[row] = max(ends.get(row, 0.0), bar.get_x() + bar.get_width())
    assert ends == {index: pytest.approx(min(row.seconds, plot.longest_seconds)) for index, row in enumerate(plot.rows)}


@given(comparisons())
def test_the_axis_ends_at_the_longest_bar_or_at_six_times_the_fastest(comparison):
    seconds = [mode.seconds for mode in comparison.modes]
    longest = plots.mode_seconds(comparison).longest_seconds
    assert longest == max(seconds) or longest == LONGEST_BAR * min(seconds) < max(seconds)


def test_the_title_names_the_budget_that_modes_are_held_to():
    comparison = dataclasses.replace(COMPARISON, asked_bytes=8 * GIB, budget_bytes=7 * GIB)
    assert plots.mode_seconds(comparison).title == (
        "StableDiffusionXLPipeline in 7.00 GiB of GeForce RTX 4060:\nseconds per call in each mode, predicted"
    )


def names(axes):
    return [text.get_text() for text in axes.texts if ":" in text.get_text()]


def test_every_mode_has_its_seconds_its_ratio_to_the_plan_and_whether_it_fits():
    modes = names(COMPARISON.plot())
    assert modes[0] == "vramtune: 17.4 s"
    assert modes[1] == "model offload: 29.6 s, 1.70x the plan's"
    assert modes[3] == "all resident: 16.6 s, 0.95x the plan's; does not fit, needs 8.40 GiB"


def bars(axes):
    return {
        container.get_label(): [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in container]
        for container in axes.containers
    }


def test_bars_of_modes_that_do_not_fit_look_different():
    drawn = bars(COMPARISON.plot())
    assert {label: len(parts) for label, parts in drawn.items()} == {
        "compute": 3,
        "waiting for copies": 2,
        "compute (does not fit)": 1,
        "waiting for copies (does not fit)": 1,
    }


def test_a_bar_that_is_cut_off_ends_with_the_axis_and_is_marked():
    plot = plots.mode_seconds(COMPARISON)
    axes = plots.draw_modes(plot)
    assert max(end for _, end in bars(axes)["waiting for copies"]) == pytest.approx(plot.longest_seconds)
    assert [text.get_text() for text in axes.texts].count("»") == 1
    assert axes.get_xlabel() == "seconds per call (»: longer than the axis)"


def test_without_a_plan_there_is_neither_bound_nor_ratio():
    axes = dataclasses.replace(COMPARISON, plan=None).plot()
    assert not any("bound" in text.get_text() for text in axes.get_legend().get_texts())
    assert "model offload: 29.6 s" in names(axes)


def test_the_legend_names_the_bound_with_its_seconds():
    texts = [text.get_text() for text in COMPARISON.plot().get_legend().get_texts()]
    assert "bound 17.0 s: no plan is faster" in texts
