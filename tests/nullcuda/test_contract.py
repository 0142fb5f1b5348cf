"""Every tiny pipeline under its plan on PyTorch's own CUDA code: the same bits, within the budget, nothing left behind."""

import gc
from collections.abc import Iterator

import pytest
import torch

from tests import tiny_pipelines
from tests.nullcuda.card import counters, reset
from tests.nullcuda.tuned_pipelines import NAMES, build, context_bytes, counted, planned, run, whole, with_more
from vramtune.contract import modules_of
from vramtune.offload.install import install
from vramtune.units import MIB

EXPANDABLE_PAGE_BYTES = 20 * MIB
"""An expandable segment grows by so much, which no plan counts: plans are for the default."""
SMALL_ARGUMENTS_BYTES = 512
"""Highest bytes of arguments that a pipeline leaves on the host (LTX a mask), which hooks bring to the device."""


@pytest.fixture
def expandable_segments() -> Iterator[None]:
    """PyTorch's other way to take memory of the driver; the setting may change while it runs."""
    torch.cuda.empty_cache()
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    yield
    gc.collect()
    torch.cuda.empty_cache()
    torch._C._accelerator_setAllocatorSettings("expandable_segments:False")


@pytest.mark.parametrize("name", NAMES)
def test_an_untuned_pipeline_gives_the_cpus_bits(name: str) -> None:
    assert torch.equal(whole(name).output, run(build(name), name))


@pytest.mark.parametrize("fraction", [0, 0.5, 1])
@pytest.mark.parametrize("name", NAMES)
def test_a_tuned_pipeline_gives_the_same_bits_within_its_budget_and_leaves_nothing(name: str, fraction: float) -> None:
    prove(name, fraction)


@pytest.mark.usefixtures("expandable_segments")
@pytest.mark.parametrize("fraction", [0, 0.5, 1])
@pytest.mark.parametrize("name", ["sdxl", "wan", "larger flux"])
def test_with_expandable_segments_too(name: str, fraction: float) -> None:
    prove(name, fraction, more_bytes=EXPANDABLE_PAGE_BYTES)


def prove(name: str, fraction: float, *, more_bytes: int = 0) -> None:
    """Two calls under a plan, compared with the untuned pipeline, and what is left of them."""
    expected, plan, pipe = whole(name), with_more(planned(name, fraction), more_bytes), build(name)
    gc.collect()  # the untuned one's weights
    torch.cuda.empty_cache()
    used_bytes, pinned_bytes = counters().used_bytes, counters().pinned_bytes
    reset()
    runtime = install(pipe, plan, device="cuda", context_bytes=context_bytes())
    assert torch.equal(run(pipe, name), expected.output)
    assert counters().used_peak_bytes <= plan.budget_bytes
    call = counted(pipe, name)
    measured = runtime.measured
    assert measured is not None
    assert torch.equal(call.output, expected.output)
    assert call.peak_bytes <= plan.budget_bytes
    assert measured.num_out_of_memory == 0
    assert measured.moved_bytes == plan.estimate.moved_bytes  # nothing that is kept comes twice
    assert call.from_card_bytes == expected.from_card_bytes
    assert call.pageable_bytes <= expected.pageable_bytes + SMALL_ARGUMENTS_BYTES
    assert 0 <= call.to_card_bytes - expected.to_card_bytes - measured.moved_bytes <= SMALL_ARGUMENTS_BYTES
    runtime.remove()
    assert {t.device.type for module in modules_of(pipe).values() for t in module.state_dict().values()} == {"cpu"}
    del runtime
    gc.collect()
    assert counters().pinned_bytes == pinned_bytes
    del pipe  # the scheduler has a tensor of its own on the card
    gc.collect()
    torch.cuda.empty_cache()
    assert counters().used_bytes == used_bytes
    assert torch.cuda.get_per_process_memory_fraction() == 1


def test_the_contract_suites_pipelines_are_all_here() -> None:
    assert set(tiny_pipelines.CALL) < set(NAMES)
