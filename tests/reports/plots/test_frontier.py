import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reports import examples
from tests.reports.plots import factories
from vramtune.reports import plots
from vramtune.reports.plots.frontier import FEWEST_TICKS, gib_ticks, round_ticks, spread
from vramtune.units import GIB

FRONTIER = factories.frontier(examples.sdxl_plan())


@pytest.fixture(scope="module")
def plot():
    return plots.latency_frontier(FRONTIER)


def test_the_curves_begin_at_the_smallest_budget_and_end_where_the_card_does(plot):
    budgets = (point.budget_bytes / GIB for point in FRONTIER.points)
    assert plot.budgets_gib == (*budgets, plot.usable_gib)
    assert plot.usable_gib == FRONTIER.device.usable_bytes / GIB
    assert plot.plan_seconds[-1] == plot.plan_seconds[-2]


def test_past_the_last_budget_the_bound_is_the_least_compute_of_all_points():
    *others, last = FRONTIER.points
    stages = tuple(
        dataclasses.replace(stage, compute_seconds=0.9 * stage.compute_seconds) for stage in last.estimate.stages
    )
    faster = dataclasses.replace(last, estimate=dataclasses.replace(last.estimate, stages=stages))
    for points in ((*others, faster), (faster, *others)):
        plot = plots.latency_frontier(dataclasses.replace(FRONTIER, points=points))
        assert plot.bound_seconds[:-1] == tuple(point.estimate.bound_seconds for point in points)
        assert plot.bound_seconds[-1] == faster.estimate.compute_seconds < last.estimate.compute_seconds


def test_the_title_names_the_pipeline_and_the_card(plot):
    assert plot.title == (
        "StableDiffusionXLPipeline on GeForce RTX 4060:\nseconds per call against GPU memory, predicted"
    )


def test_a_mode_fits_unless_it_needs_more_than_the_card_has(plot):
    assert [mode.mode for mode in plot.modes if not mode.fits] == ["all resident"]


def test_every_mode_is_named_and_only_modes_that_do_not_fit_are_hollow(plot):
    axes = plots.draw_frontier(plot)
    names = [text.get_text() for text in axes.texts if text.get_text()]
    assert names == [mode.mode for mode in plot.modes]
    fills = {line.get_xdata()[0]: line.get_markerfacecolor() for line in axes.lines if len(line.get_xdata()) == 1}
    assert all(fills[mode.peak_bytes / GIB] == ("black" if mode.fits else "white") for mode in plot.modes)


def test_the_legend_names_everything_that_is_drawn_and_nothing_else(plot):
    def legend(drawn):
        return [text.get_text() for text in plots.draw_frontier(drawn).get_legend().get_texts()]

    lines = ["vramtune's plan", "bound: no plan is faster", "7.60 GiB usable on the card", "stock mode"]
    assert legend(plot) == [*lines, "stock mode that does not fit the card"]
    fitting = dataclasses.replace(plot, modes=tuple(mode for mode in plot.modes if mode.fits))
    assert legend(fitting) == lines


def test_everything_drawn_is_inside_the_axes(plot):
    axes = plots.draw_frontier(plot)
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    assert all(left < gib < right for gib in (*plot.budgets_gib, *(mode.peak_bytes / GIB for mode in plot.modes)))
    drawn = (*plot.plan_seconds, *plot.bound_seconds, *(mode.seconds for mode in plot.modes))
    assert all(low < seconds < high for seconds in drawn)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_spread_labels_keep_their_order_and_their_distance(heights):
    gap = 0.05
    placed = spread(heights, gap=gap)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    assert all(placed[b] - placed[a] >= gap - 1e-9 for a, b in itertools.pairwise(order))
    assert all(0 <= height <= 1 - gap / 2 for height in placed)


@given(st.lists(st.integers(0, 9), max_size=8, unique=True))
def test_labels_with_room_around_them_are_not_moved(tenths):
    heights = [tenth / 10 for tenth in tenths]
    assert spread(heights, gap=0.05) == heights


@given(st.floats(1e-3, 1e5), st.floats(1.02, 1e4))
def test_any_range_gets_enough_ticks_in_order_and_all_inside_it(low, ratio):
    for ticks in (round_ticks(low, low * ratio), gib_ticks(low, low * ratio)):
        assert len(ticks) >= FEWEST_TICKS
        assert all(low <= tick <= low * ratio for tick in ticks)
        assert ticks == sorted(set(ticks))


def test_ticks_are_card_sizes_or_round_numbers():
    assert gib_ticks(5.2, 40) == [6, 8, 12, 16, 24, 32]
    assert round_ticks(7.5, 190) == [10, 20, 50, 100]
    assert round_ticks(1763, 3700) == [2000, 2400, 2800, 3200, 3600]
