"""Whole calls of SDXL under budgets, without a GPU: what the process takes of the card, beside the plan's peak.

    .venv-nullcuda/bin/python -m tests.nullcuda .venv-nullcuda/bin/python -m benchmarks.budgets_on_nullcuda
    ... -m benchmarks.budgets_on_nullcuda --budgets 6.2 7

Runs on the null card (`tests/nullcuda`): PyTorch's allocator is real, kernels do nothing, cuDNN copies a convolution's
images as it does on a GPU. The masters of weights at real size lie in host memory: 7 GB. Writes
`benchmarks/results/budgets_nullcuda_<date>.md` as each row is known.
"""

import argparse
import gc
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from benchmarks.memory_on_nullcuda import COPY_LIMIT_BYTES, SMALL_ELEMENTS
from benchmarks.results_file import environment, table, write_result
from tests.nullcuda.card import card, counters, reset
from tests.nullcuda.values import ValuesOfSmall
from vramtune import Tuned, api, catalog
from vramtune.contract import modules_of
from vramtune.errors import BudgetError
from vramtune.units import GIB, MIB

MODEL = "sdxl"
BUDGETS_GIB = (5.9, 6.2, 7.0, 8.0)
KWARGS = {"prompt": "a photo of a cat", "num_inference_steps": 3, "output_type": "pt"}
HEADER = ["budget, GiB", "call", "predicted peak, MiB", "peak, MiB", "difference", "out of memory"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS_GIB, metavar="GIB")
    options = parser.parse_args()
    os.environ["NULLCUDA_WORKSPACE"] = "images"
    card().copy_limit_bytes = COPY_LIMIT_BYTES
    card().total_bytes = int(max(options.budgets) * GIB) + GIB
    pipe = catalog.load(MODEL)
    for part in modules_of(pipe).values():
        untouched(part)
    pipe.set_progress_bar_config(disable=True)
    rows: list[list[str]] = []
    for budget in tqdm(options.budgets, unit="budget"):
        rows += under(pipe, budget)
        path = write_result("budgets_nullcuda", report(rows))
    print(*report(rows), path, sep="\n")


def report(rows: list[list[str]]) -> list[str]:
    """The file's lines."""
    return [
        f"# {MODEL} under budgets: predicted, and taken of the card by PyTorch's allocator, no GPU",
        "",
        *environment("python -m benchmarks.budgets_on_nullcuda", gpu="the null card (tests/nullcuda), no GPU"),
        "- Peak: the process by the card's count (NVML's), context included. Kernels do nothing; cuDNN copies a convolution's",
        "  images as it does on a GPU.",
        "",
        *table(HEADER, rows),
    ]


def untouched(module: nn.Module) -> None:
    """Memory of the host for a module of the catalog; positions have their values."""
    module.to_empty(device="cpu")
    if isinstance(module, PreTrainedModel):
        module.tie_weights()
    for path, buffer in module.named_buffers():
        if path.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))


def under(pipe: Any, budget_gib: float) -> list[list[str]]:
    """Two calls of the tuned pipeline: a row each."""
    budget = f"{budget_gib:g}"
    try:
        tuned = api.autotune(pipe, budget_gib, call_kwargs=KWARGS, device="cuda", progress=False)
    except BudgetError as error:
        return [[budget, "", "", "", "", str(error).splitlines()[0][:120]]]
    rows = calls_of(tuned, pipe, KWARGS, [budget])
    tuned.remove()
    del tuned
    gc.collect()
    torch.cuda.empty_cache()
    return rows


def calls_of(tuned: Tuned, pipe: Any, kwargs: Mapping[str, Any], cells: list[str]) -> list[list[str]]:
    """Two calls of a tuned pipeline: a row each, which begins with these cells."""
    predicted, rows = tuned.plan.estimate.peak_bytes, list[list[str]]()
    with ValuesOfSmall(SMALL_ELEMENTS):
        for number in (1, 2):
            reset()
            try:
                pipe(**kwargs, generator=torch.Generator("cpu").manual_seed(0))
            except RuntimeError as error:
                rows.append([*cells, str(number), f"{predicted / MIB:.0f}", "", "", str(error).splitlines()[0][:120]])
                break
            peak, measured = counters().used_peak_bytes, tuned.measured
            times = str(measured.num_out_of_memory) if measured is not None else ""
            difference = f"{(predicted - peak) / peak:+.2%}"
            rows.append([*cells, str(number), f"{predicted / MIB:.0f}", f"{peak / MIB:.0f}", difference, times])
    return rows


if __name__ == "__main__":
    main()
