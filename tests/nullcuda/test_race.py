"""The race's results of ours do not get worse: a few cases of `benchmarks/race/ours.json` again, in processes of their own."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks.race.regression import Ours, kept
from benchmarks.race.start import Stable

CASES = [case for case in kept() if case.name in ("flux-awkward, 60%, pcie4x8", "flux-awkward, 25%, pcie4x8")]


@pytest.fixture(scope="module")
def stable() -> Iterator[Stable]:
    with Stable() as stable:
        yield stable


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_slower_or_larger_than_it_was_or_than_was_predicted(case: Ours, stable: Stable) -> None:
    now, off = case.again(stable)
    assert (case.worse(now), off) == ([], [])


def test_what_is_worse_is_named_with_its_figures() -> None:
    case = CASES[0]
    assert case.worse(replace(case, seconds=case.seconds * 1.009, moved_bytes=case.moved_bytes - 1)) == []
    slower = replace(case, seconds=case.seconds * 1.02, peak_bytes=case.peak_bytes + 2**21)
    time, memory = case.worse(slower)
    assert time.startswith(f"{case.name}: seconds +")
    assert time.endswith("(+2.00%)")
    assert memory.startswith(f"{case.name}: peak_bytes +2.09715e+06, from ")
