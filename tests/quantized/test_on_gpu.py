"""Each library's and kind's weights on a CUDA GPU: run by `make gpu`; fails without one."""

import os

import pytest
import torch
from diffusers import FluxPipeline

from tests.offload.state import output
from tests.quantized.pipelines import CALL, KINDS, on_device, plain
from vramtune.errors import BudgetError
from vramtune.machine.live import live_device
from vramtune.offload.install import install
from vramtune.predict import predict_profile
from vramtune.schema import Plan
from vramtune.tuner.search import choose_plan

pytestmark = [pytest.mark.gpu, pytest.mark.quantized]

# PyTorch looks at it once, at the process's first matrix product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def made(kind: str) -> FluxPipeline:
    """Quantized on the CPU."""
    pipe = plain()
    KINDS[kind](pipe)
    return pipe


def tight_plan(kind: str) -> Plan:
    """For the smallest budget that works: as much is streamed as can be."""
    profile = predict_profile(made(kind), call_kwargs=CALL, device=live_device(torch.device("cuda")))
    with pytest.raises(BudgetError) as raised:
        choose_plan(profile, 1)
    return choose_plan(profile, raised.value.smallest_bytes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_pipeline_gives_the_resident_ones_bits(kind: str) -> None:
    resident = on_device(made(kind), "cuda")
    expected = output(resident, "flux")
    assert torch.equal(output(resident, "flux"), expected), "the resident one differs from call to call"
    plan, pipe = tight_plan(kind), made(kind)
    with install(pipe, plan, device="cuda") as runtime:
        for _ in range(2):
            assert torch.equal(output(pipe, "flux"), expected)
        measured = runtime.measured
    assert measured is not None
    assert measured.moved_bytes > 0
    assert measured.num_out_of_memory == 0
    assert measured.peak_bytes <= plan.budget_bytes
