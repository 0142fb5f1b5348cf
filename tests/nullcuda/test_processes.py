"""What needs a process of its own: PyTorch's other allocator, and streams and threads, whose workspaces stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import gc, os, threading
import torch
from tests.nullcuda.card import counters, reset
from tests.nullcuda.tuned_pipelines import build, context_bytes, planned, run, whole
from tests.nullcuda.values import Values
from vramtune.offload.install import install

NAME = "larger flux"
plan = planned(NAME, float(os.environ["FRACTION"]))
with Values():
    expected, pipe = whole(NAME).output, build(NAME)
gc.collect()  # the untuned one's weights
torch.cuda.empty_cache()
reset()

def check():
    with Values():  # a mode holds for its thread alone
        assert torch.equal(run(pipe, NAME), expected)
    assert counters().used_peak_bytes <= plan.budget_bytes
    print("equal")
"""
CUDA_MALLOC_ASYNC = """
print(torch.cuda.get_allocator_backend())
with install(pipe, plan, device="cuda", context_bytes=context_bytes()):
    for _ in range(2):
        check()
        torch.empty(plan.budget_bytes, dtype=torch.uint8, device="cuda")  # the limit is gone after the call
"""
SIDE_STREAM = """
with install(pipe, plan, device="cuda", context_bytes=context_bytes()):
    check()
    with torch.cuda.stream(torch.cuda.Stream()):  # it needs a workspace of its own, which no plan counts
        for _ in range(2):
            check()
    check()
"""
TWO_THREADS = """
with install(pipe, plan, device="cuda", context_bytes=context_bytes()):
    threads = [threading.Thread(target=check) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def printed(program: str, **environment: str) -> list[str]:
    """The words that a program prints in a process of its own, on the null card too."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.split()


def test_cuda_malloc_async_gives_the_same_bits_and_its_limit_is_put_back() -> None:
    words = printed(CUDA_MALLOC_ASYNC, FRACTION="0.5", PYTORCH_ALLOC_CONF="backend:cudaMallocAsync")
    assert words == ["cudaMallocAsync", "equal", "equal"]


@pytest.mark.parametrize("fraction", ["0", "0.5"])
def test_a_call_on_a_side_stream_gives_the_same_bits_within_the_budget(fraction: str) -> None:
    assert printed(SIDE_STREAM, FRACTION=fraction) == ["equal"] * 4


@pytest.mark.parametrize("fraction", ["0", "0.5"])
def test_two_threads_call_one_after_the_other_and_get_the_same_bits_within_the_budget(fraction: str) -> None:
    assert printed(TWO_THREADS, FRACTION=fraction) == ["equal"] * 2
