import pytest

from docs import drawings
from tests.reports.plots import factories
from vramtune.units import format_bytes

TIMELINES = {name: factories.timeline(profile, plan) for name, (profile, plan) in factories.CASES.items()}


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_the_cells_of_the_table_have_the_plans_numbers(timeline):
    table = drawings.plan_table(timeline)
    placements = {placement.component: placement for placement in timeline.plan.placements}
    for component, cells in zip(table.components, table.cells, strict=True):
        placement = placements[component]
        assert [cell.is_active for cell in cells] == list(placement.active)
        assert [int(cell.words.split()[0]) for cell in cells] == list(placement.kept)
        for stage, cell in enumerate(cells):
            assert ("streamed" in cell.words) == (placement.role(stage) == "streamed")
            assert 0 <= cell.kept_fraction <= 1
    drawings.draw_table(table)


@pytest.mark.parametrize("case", factories.CASES)
def test_the_headings_of_the_table_have_the_weights_that_the_call_uses(case):
    profile, _ = factories.CASES[case]
    table = drawings.plan_table(TIMELINES[case])
    for name, heading in zip(table.components, table.headings, strict=True):
        component = profile.component(name)
        used, num_groups = format_bytes(component.used_bytes), len(component.groups)
        assert heading == f"{name}: {used} of weights in {num_groups} groups"


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_streamed_groups_compute_one_after_the_other_each_after_its_copy(timeline):
    plot = drawings.stream_passages(timeline, first=1, num_groups=4)
    ends = [passage.compute_seconds[1] for passage in plot.passages]
    assert len(ends) == 4
    assert ends == sorted(ends)
    for passage in plot.passages:
        assert ("kept" in passage.name) == (passage.copy_seconds is None)
        if passage.copy_seconds is not None:
            start, end = passage.copy_seconds
            assert 0 <= start < end <= passage.compute_seconds[0]
    drawings.draw_stream(plot)
