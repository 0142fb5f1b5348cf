"""Page-locking refused, as under WSL 2 and in containers: everything is slower, and nothing else changes."""

import dataclasses
import warnings
from collections.abc import Iterator

import pytest
import torch

from tests.nullcuda.card import card, counters
from tests.nullcuda.tuned_pipelines import build, planned, run, whole
from vramtune.machine.rates import Rates, measure_rates
from vramtune.offload.install import install
from vramtune.units import MIB

NAME = "larger flux"


@pytest.fixture
def refused() -> None:
    """No more memory may be locked than is; what PyTorch has cached of it is gone."""
    torch._C._host_emptyCache()
    card().pinned_limit_bytes = counters().pinned_bytes


@pytest.fixture
def in_seconds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rates are measured on small sizes: values are computed by the CPU."""
    for name in ("MOST_BYTES", "LEAST_COPIED_BYTES", "MOST_COPIED_BYTES"):
        monkeypatch.setattr(f"vramtune.machine.rates.{name}", MIB)
    with torch._C.DisableTorchFunction():
        yield


@pytest.mark.usefixtures("in_seconds")
def test_rates_are_measured_and_those_of_pinned_copies_are_the_slower_ones(request: pytest.FixtureRequest) -> None:
    locked = measure_rates(torch.device("cuda", 0))
    request.getfixturevalue("refused")
    ordinary = measure_rates(torch.device("cuda", 0))
    # the host's calls are in both, not the same ones
    assert ordinary.pinned_copy_bytes_per_second == pytest.approx(ordinary.pageable_copy_bytes_per_second, rel=0.01)
    assert ordinary.pinned_copy_bytes_per_second < locked.pinned_copy_bytes_per_second / 2
    others = {"pinned_copy_bytes_per_second", "overlap_fraction"}
    others |= {
        field.name for field in dataclasses.fields(Rates) if field.name.startswith("staging")
    }  # the host's own time
    for field in dataclasses.fields(Rates):
        if field.name not in others:
            assert getattr(ordinary, field.name) == pytest.approx(getattr(locked, field.name), rel=0.01), field.name


@pytest.mark.usefixtures("refused")
def test_a_tuned_pipeline_warns_once_and_gives_the_same_bits() -> None:
    expected, plan, pipe = whole(NAME).output, planned(NAME, 0), build(NAME)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        with install(pipe, plan, device="cuda"):
            for _ in range(2):
                assert torch.equal(run(pipe, NAME), expected)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 1
    assert "refused to page-lock host memory" in texts[0]
    assert "copy more slowly" in texts[0]


def test_where_some_memory_may_be_locked_the_rest_is_ordinary_and_the_bits_are_the_same() -> None:
    expected, plan = whole(NAME).output, planned(NAME, 0)
    torch._C._host_emptyCache()
    card().pinned_limit_bytes = counters().pinned_bytes + 20 * MIB
    pipe = build(NAME)
    with pytest.warns(UserWarning, match="refused to page-lock"):
        runtime = install(pipe, plan, device="cuda")
    with runtime:
        assert counters().pinned_bytes > 0
        assert torch.equal(run(pipe, NAME), expected)


@pytest.mark.usefixtures("refused")
def test_no_kernel_after_a_refusal_is_blamed_for_it() -> None:
    with pytest.warns(UserWarning, match="refused to page-lock"):
        runtime = install(build(NAME), planned(NAME, 0), device="cuda")
    assert (torch.ones(1, device="cuda") + 1).cpu() == 2  # to ask for `.item()` PyTorch itself locks memory
    runtime.remove()
