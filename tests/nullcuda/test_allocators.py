"""PyTorch's other allocator, which a process chooses at its start: CUDA's own pools."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gc
from tests.nullcuda.tuned_pipelines import build, context_bytes, planned, run, whole
from tests.nullcuda.values import Values
from vramtune.offload.install import install
import torch
print("backend", torch.cuda.get_allocator_backend())
plan = planned("larger flux", 0.5)
with Values():
    expected, pipe = whole("larger flux").output, build("larger flux")
    gc.collect()  # the untuned one's weights
    with install(pipe, plan, device="cuda", context_bytes=context_bytes()) as runtime:
        for _ in range(2):
            assert torch.equal(run(pipe, "larger flux"), expected)
            assert runtime.measured.moved_bytes > 0
            try:  # the limit is gone after the call
                torch.empty(plan.budget_bytes, dtype=torch.uint8, device="cuda")
            except torch.OutOfMemoryError:
                raise SystemExit("the limit of the call is still there")
print("equal")
"""


def test_cuda_malloc_async_gives_the_same_bits_and_its_limit_is_put_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["backend", "cudaMallocAsync", "equal"]
