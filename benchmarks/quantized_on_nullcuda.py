"""Whole calls of quantized FLUX.1 at real size under budgets, without a GPU: predicted before a download, and taken of the card.

    PYTHONPATH=.venv-quantized .venv-nullcuda/bin/python -m tests.nullcuda .venv-nullcuda/bin/python \\
        -m benchmarks.quantized_on_nullcuda                                   # after `make quantized nullcuda`
    ... -m benchmarks.quantized_on_nullcuda --only nf4

The plan is made for our description of a quantization (`catalog.load(..., quantize=...)`), and installed on the libraries' own
layers: bitsandbytes' with its own CUDA library, diffusers' GGUF layers. Runs on the null card (`tests/nullcuda`): allocator and
choice of kernels are real, kernels do nothing, weights are host memory that nobody wrote: 16 GB with the plan's masters. Each
row has a process of its own. Writes `benchmarks/results/quantized_nullcuda_<date>.md`.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.functional import QuantState
from diffusers.quantizers.gguf.utils import GGUFParameter
from torch import nn
from tqdm import tqdm

from benchmarks.budgets_on_nullcuda import KWARGS, calls_of, untouched
from benchmarks.memory_on_nullcuda import COPY_LIMIT_BYTES
from benchmarks.results_file import environment, table, write_result
from tests.nullcuda.card import card
from vramtune import api, catalog
from vramtune.catalog.described_layers import FourBitLinear
from vramtune.contract import modules_of
from vramtune.errors import BudgetError
from vramtune.units import GIB

MODEL = "flux.1-dev"
ROWS: dict[str, tuple[dict[str, str], float]] = {
    "nf4, 8 GiB": ({"transformer": "nf4", "text_encoder_2": "nf4"}, 8.0),
    "nf4, 6 GiB": ({"transformer": "nf4", "text_encoder_2": "nf4"}, 6.0),
    "GGUF Q4_K_S, 8 GiB": ({"transformer": "gguf-q4_k_s"}, 8.0),
    "GGUF Q4_K_S, 6 GiB": ({"transformer": "gguf-q4_k_s"}, 6.0),
}
"""What is quantized, and the budget in GiB."""
HEADER = ["weights, budget", "call", "predicted peak, MiB", "peak, MiB", "difference", "out of memory"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="rows whose name has it")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(calls(options.one)))
        return
    rows: list[list[str]] = []
    for name in tqdm([name for name in ROWS if options.only in name], unit="row"):
        command = [sys.executable, "-m", "benchmarks.quantized_on_nullcuda", "--one", name]
        # before bitsandbytes asks PyTorch for the card's properties, which it keeps
        total_bytes = int(ROWS[name][1] * GIB) + GIB
        environ = os.environ | {"NULLCUDA_TOTAL_BYTES": str(total_bytes), "NULLCUDA_WORKSPACE": "images"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
        rows += json.loads(done.stdout.splitlines()[-1])
        path = write_result("quantized_nullcuda", report(rows))
    print(*report(rows), path, sep="\n")


def report(rows: list[list[str]]) -> list[str]:
    """The file's lines."""
    return [
        f"# Quantized {MODEL} under budgets: predicted before a download, and taken of the card by PyTorch's allocator, no GPU",
        "",
        *environment("python -m benchmarks.quantized_on_nullcuda", gpu="the null card (tests/nullcuda), no GPU"),
        f"- Libraries: bitsandbytes {bitsandbytes.__version__}; GGUF layers are diffusers'",
        "- The plan was made for our description of the layers, and installed on the libraries' own. Peak: the process by the",
        "  card's count (NVML's), context included. Kernels do nothing; cuDNN copies a convolution's images as it does on a GPU.",
        "",
        *table(HEADER, rows),
    ]


def calls(name: str) -> list[list[str]]:
    """Two calls: a row each."""
    ways, budget_gib = ROWS[name]
    card().copy_limit_bytes = COPY_LIMIT_BYTES
    costs = api.profile(catalog.load(MODEL, quantize=ways), call_kwargs=KWARGS, progress=False)
    try:
        plan = api.plan(costs, budget_gib)
    except BudgetError as error:
        return [[name, "", "", "", "", str(error).splitlines()[0][:120]]]
    pipe = catalog.load(MODEL, quantize=ways)
    for part in modules_of(pipe).values():
        as_loaded(part)
    pipe.set_progress_bar_config(disable=True)
    with api.install(pipe, plan, profile=costs, device="cuda") as tuned:
        return calls_of(tuned, pipe, KWARGS, [name])


def as_loaded(component: nn.Module) -> None:
    """The component with its library's own layers, in memory of the host that nobody wrote."""
    types = {path: w.quant_type for path, w in component.named_parameters() if hasattr(w, "quant_type")}
    untouched(component)
    for path, module in list(component.named_modules()):
        if isinstance(module, FourBitLinear):
            component.set_submodule(path, four_bit(module))
        elif f"{path}.weight" in types:
            module.weight = GGUFParameter(module.weight.data, quant_type=types[f"{path}.weight"])


def four_bit(layer: Any) -> nn.Module:
    """bitsandbytes' layer over what ours holds."""
    made = bitsandbytes.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=False,
        compute_dtype=layer.compute_dtype,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    state = QuantState(
        absmax=layer.absmax.data,
        shape=torch.Size((layer.out_features, layer.in_features)),
        code=layer.code.data,
        blocksize=layer.BLOCK_SIZE,
        quant_type="nf4",
        dtype=layer.compute_dtype,
    )
    made.weight = bitsandbytes.nn.Params4bit(
        layer.weight.data,
        requires_grad=False,
        quant_state=state,
        compress_statistics=False,
        quant_type="nf4",
        bnb_quantized=True,
        module=made,
    )
    made.bias = layer.bias
    return made.eval()


if __name__ == "__main__":
    main()
