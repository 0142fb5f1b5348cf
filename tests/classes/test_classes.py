"""The checks of `benchmarks/classes`, on one tiny pipeline of each family; they need no checkout of diffusers."""

import functools
from collections.abc import Iterable

import pytest

from benchmarks.classes import checks, offload_tests
from benchmarks.classes.outputs import says_much
from benchmarks.classes.stand_ins import with_small_images
from tests.classes.families import FAMILIES, Family
from vramtune import Plan, Profile

pytestmark = [
    pytest.mark.classes,
    pytest.mark.filterwarnings("ignore"),  # diffusers' own, of its own code
    pytest.mark.usefixtures("sim"),
]


def each_of(families: Iterable[Family]) -> pytest.MarkDecorator:
    """One process has all tests of a family, which share what the untuned pipeline gives."""
    cases = [pytest.param(f, id=f.name, marks=pytest.mark.xdist_group(f.name)) for f in families]
    return pytest.mark.parametrize("family", cases)


each_family = each_of(FAMILIES.values())
each_that_runs = each_of(family for family in FAMILIES.values() if family.runs_on_sim)
each_that_offloads = each_of(family for family in FAMILIES.values() if family.runs_on_sim and family.runs_offloaded)


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    with_small_images(monkeypatch.setattr)


@functools.cache
def untuned(family: str) -> checks.Untuned:
    return checks.untuned(FAMILIES[family])


@functools.cache
def costs(family: str) -> Profile:
    """What a call costs; all tests of a family fail where this does."""
    return checks.check_predicted(FAMILIES[family], untuned(family) if FAMILIES[family].runs_on_sim else None)


@functools.cache
def plan(family: str) -> Plan:
    """What is planned where everything fits; that test fails as well where this does."""
    return checks.check_tuned(FAMILIES[family], untuned(family), costs(family))


@each_family
def test_a_prediction_leaves_it_as_it_was(family: Family) -> None:
    costs(family.name)


@each_that_runs
def test_tuned_where_everything_fits_it_gives_the_same(family: Family) -> None:
    plan(family.name)


@each_that_offloads
def test_streamed_it_gives_the_same(family: Family) -> None:
    checks.check_streamed(family, untuned(family.name), plan(family.name))


@each_that_offloads
def test_stock_offload_works_before_and_after_a_plan(family: Family) -> None:
    offload_tests.check_beside_stock_offload(family, untuned(family.name), plan(family.name))


@each_that_runs
def test_its_output_is_neither_constant_nor_nan(family: Family) -> None:
    assert says_much(untuned(family.name).first)
