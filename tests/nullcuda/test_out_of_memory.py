"""PyTorch's allocator runs out of memory for real: the guard gives the weights less, or says that it can give nothing."""

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.nullcuda.card import card
from tests.nullcuda.tuned_pipelines import build, context_bytes, planned, run
from tests.offload.state import same, values
from vramtune.offload.install import install
from vramtune.offload.retry import NO_MORE_ROOM
from vramtune.offload.runtime import Runtime
from vramtune.units import MIB

NAME = "larger flux"
STAGES = ["text_encoder", "text_encoder_2", "transformer", "vae.decoder"]
"""The module that starts first in each stage."""
Tuned = tuple[Any, Runtime]


@pytest.fixture
def tuned() -> Iterator[Tuned]:
    """A pipeline with everything on the card, and room for it; the process's limit is as before at the end."""
    pipe = build(NAME)
    with install(pipe, planned(NAME, 1), device="cuda", context_bytes=context_bytes()) as runtime:
        yield pipe, runtime
    assert torch.cuda.get_per_process_memory_fraction() == 1


def draw(pipe: Any, **call_kwargs: Any) -> torch.Tensor:
    """A call whose noise is the card's generator's, and goes on from call to call."""
    return run(pipe, NAME, generator=torch.Generator("cuda").manual_seed(7), **call_kwargs)


def expected(**call_kwargs: Any) -> torch.Tensor:
    """What the untuned pipeline makes; its weights are gone then, or they would count as another model's."""
    output = draw(build(NAME).to("cuda"), **call_kwargs)
    gc.collect()
    return output


def once(pipe: Any, path: str, do: Callable[[], None]) -> None:
    """Do something the next time that a module of the pipeline starts."""
    component, _, rest = path.partition(".")
    module = pipe.components[component].get_submodule(rest)

    def act(*_: object) -> None:
        handle.remove()
        do()

    handle = module.register_forward_pre_hook(act)


def allocate(num_bytes: int) -> None:
    """Ask the card for so much, once, as an operation inside of the stage would."""
    torch.empty(num_bytes, dtype=torch.uint8, device="cuda")


def leave(num_bytes: int) -> None:
    """Let another process hold all of the card's memory but so much and what this process has."""
    torch.cuda.empty_cache()
    card().others_bytes = 0
    card().others_bytes = torch.cuda.mem_get_info()[0] - num_bytes


@pytest.mark.parametrize("module", STAGES)
def test_an_operation_that_finds_no_memory_gets_that_of_weights(tuned: Tuned, module: str) -> None:
    pipe, runtime = tuned
    wanted = expected()
    leave(30 * MIB)  # the budget would allow more
    once(pipe, module, lambda: allocate(40 * MIB))
    assert torch.equal(draw(pipe), wanted)
    assert runtime.measured is not None
    assert runtime.measured.num_out_of_memory > 0
    assert runtime.overrun_bytes or module != "transformer"
    assert torch.equal(draw(pipe), wanted)


def test_a_call_that_is_larger_than_planned_gets_the_memory_of_weights(tuned: Tuned) -> None:
    pipe, runtime = tuned
    wanted = expected(height=160, width=160)
    assert torch.equal(draw(pipe, height=160, width=160), wanted)
    assert runtime.measured is not None
    assert runtime.measured.num_out_of_memory > 0


def test_a_convolution_that_finds_no_workspace_gets_the_memory_of_weights(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, runtime = tuned
    draw(pipe)
    assert runtime.measured is not None
    assert runtime.measured.num_out_of_memory == 0
    monkeypatch.setitem(os.environ, "NULLCUDA_WORKSPACE", str(40 * MIB))
    # smaller than planned, and of a size that no other call had: PyTorch remembers what it chose
    wanted = expected(height=24, width=24)
    assert torch.equal(draw(pipe, height=24, width=24), wanted)
    assert runtime.measured.num_out_of_memory > 0


def test_a_plan_for_a_larger_card_runs_on_this_one() -> None:
    wanted, pipe = expected(), build(NAME)
    leave(60 * MIB)  # less than the weights are
    with install(pipe, planned(NAME, 1), device="cuda", context_bytes=context_bytes()) as runtime:
        assert torch.equal(draw(pipe), wanted)
        assert runtime.measured is not None


def test_where_nothing_is_left_to_give_pytorchs_error_says_so_and_the_pipeline_is_intact(tuned: Tuned) -> None:
    pipe, runtime = tuned
    wanted, before = expected(), values(build(NAME))
    leave(0)
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: allocate(500 * MIB))
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate 500") as raised:
        draw(pipe)
    assert NO_MORE_ROOM in raised.value.__notes__
    hook.remove()
    card().others_bytes = 0
    assert torch.equal(draw(pipe), wanted)
    runtime.remove()
    assert same(values(pipe), before)
