import pytest

from docs import drawings
from tests.reports.plots import nouns
from vramtune.schema import Plan, Profile


def table_of(profile: Profile, plan: Plan) -> drawings.TablePlot:
    return drawings.plan_table(nouns.timeline(profile, plan), profile=profile, plan=plan)


@pytest.mark.parametrize("case", nouns.CASES)
def test_the_table_has_the_plans_numbers(case):
    profile, plan = nouns.CASES[case]
    table = table_of(profile, plan)
    placements = {placement.component: placement for placement in plan.placements}
    for component, cells in zip(table.components, table.cells, strict=True):
        placement = placements[component]
        assert [cell.is_active for cell in cells] == list(placement.active)
        assert [int(cell.words.split()[0]) for cell in cells] == list(placement.kept)
        for stage, cell in enumerate(cells):
            assert ("streamed" in cell.words) == (placement.role(stage) == "streamed")
            assert 0 <= cell.kept_fraction <= 1
    drawings.draw_table(table)


@pytest.mark.parametrize("case", nouns.CASES)
def test_groups_come_one_after_the_other_and_only_after_their_copy(case):
    profile, plan = nouns.CASES[case]
    plot = drawings.stream_passages(
        nouns.timeline(profile, plan), profile=profile, plan=plan, first=1, num_groups=4
    )
    ends = [passage.compute_seconds[1] for passage in plot.passages]
    assert len(ends) == 4
    assert ends == sorted(ends)
    for passage in plot.passages:
        assert ("kept" in passage.name) == (passage.copy_seconds is None)
        if passage.copy_seconds is not None:
            start, end = passage.copy_seconds
            assert 0 <= start < end <= passage.compute_seconds[0]
    drawings.draw_stream(plot)
