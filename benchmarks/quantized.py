"""What works of each quantization library, kind by kind?

    PYTHONPATH=.venv-quantized python -m benchmarks.quantized    # after `make quantized`, which unpacks the libraries

Quantizes the transformer of the tests' small FLUX.1 by hand in every way that they know, predicts a call, runs it under
plans that keep everything, that bring components for their stages and that stream them, on the simulated accelerator, and holds
each against the same pipeline resident there. Writes `benchmarks/results/quantized_<date>.md`; needs a C++ compiler and
no GPU.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torchao.quantization import Int4WeightOnlyConfig

from benchmarks.results_file import environment, table, write_result
from tests import tiny_pipelines
from tests.offload.state import output
from tests.offload.tuned_pipelines import held_bytes, roles, smallest_gib
from tests.quantized import pipelines as quantized_pipelines
from tests.quantized.pipelines import CALL, KINDS, bring_timesteps_back, build, on_sim, packed_by_quanto, torchao_config
from tests.simgpu import load
from tests.simgpu.prediction import RATES, predicted_call
from vramtune.offload.install import install
from vramtune.schema import Plan, Profile
from vramtune.tuner.search import choose_plan
from vramtune.units import GIB

COMMAND = "PYTHONPATH=.venv-quantized python -m benchmarks.quantized"
LIBRARIES = ("bitsandbytes", "gguf", "torchao", "optimum-quanto")
PACKED: dict[str, Callable[[Any], object]] = {
    "torchao int4, packed": quantized_pipelines.of_transformer(torchao_config(Int4WeightOnlyConfig())),
    "quanto int4, packed": quantized_pipelines.of_transformer(packed_by_quanto),
}
"""Kinds whose bytes are in the order of one device's kernels: torchao makes them on a GPU, quanto for the CPU."""
LEGEND = """
*Predicted*: a call is followed without weights' values and without a GPU, and the bytes of its weights and activations
are those that the simulated accelerator counts, within 1%. *Resident*, *offloaded*, *streamed*: under a plan that keeps
all weights between calls, that brings each component for its stages only, that copies most groups at every visit,
the output has the bits of the same pipeline resident there, the peak is within the budget, and nothing is copied back.
*LoRA on top*: the last of these with an adapter loaded on top of the quantized transformer, and *compiled*: after its
`compile_repeated_blocks` with the `eager` backend, which runs a block's code as one and keeps some values to its end: for two
kinds that is more than the 5% that this plan has to spare. On a card PyTorch's allocator is held to the budget, and fewer weights
are kept (or there is too little for any). "Without a plan neither": the resident pipeline
cannot do it. Every kind's kernels there are the CPU's.
"""


def main() -> None:
    """Try all of it, print and write the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    load().set_rates(**RATES)
    rows = [[kind, *row(kind, quantize)] for kind, quantize in (KINDS | PACKED).items()]
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [
        "# Quantized and cast weights, kind by kind",
        "",
        *environment(COMMAND),
        f"- Libraries: {versions}",
        LEGEND,
        *table(["library and kind", "predicted", "resident", "offloaded", "streamed", *CHANGES], rows),
    ]
    print("\n".join(lines), f"Written to {write_result('quantized', lines)}.", sep="\n")


def row(kind: str, quantize: Callable[[Any], object]) -> Iterator[str]:
    """Yes, or the reason why not, for each column."""

    def made() -> Any:
        if kind in KINDS:
            return build(kind)
        pipe = quantized_pipelines.plain()
        quantize(pipe)
        return pipe

    try:
        profile = predicted_call(made(), CALL)
    except Exception as error:  # whatever it is goes into the table
        yield from [reason(error)] * (4 + len(CHANGES))
        return
    expected = output(on_sim(made()), "flux")
    plans = {"resident": whole(profile), "offloaded": offloaded(profile), "streamed": streamed(profile)}
    assert all(role in roles(plan) for role, plan in plans.items())
    answers = [answer(made, plan, expected) for plan in plans.values()]
    yield "yes" if answers[0][1] else "bytes differ by more than 1%"
    yield from (said for said, _ in answers)
    for change in CHANGES.values():
        yield answer_with(made, change)


def whole(profile: Profile) -> Plan:
    """Keeps everything."""
    return choose_plan(profile, profile.device.usable_bytes)


def offloaded(profile: Profile) -> Plan:
    """Brings each component for its stages only."""
    plan = whole(profile)
    placements = (replace(p, kept=tuple(len(p.groups) * active for active in p.active)) for p in plan.placements)
    return replace(plan, placements=tuple(placements))


def streamed(profile: Profile) -> Plan:
    """Has hardly more than the least."""
    return choose_plan(profile, int(1.05 * smallest_gib(profile) * GIB))


def answer(made: Callable[[], Any], plan: Plan, expected: torch.Tensor) -> tuple[str, bool]:
    """What a plan did, and whether its peak was as predicted."""
    sim, pipe = load(), made()
    base = held_bytes()
    try:
        with install(pipe, plan, device="sim") as runtime:
            sim.reset()
            got = tiny_pipelines.run(pipe, "flux")
            sim.synchronize()
            moved_back_bytes = sim.counters().moved_back_bytes
            measured = runtime.measured
        bring_timesteps_back(pipe)
    except Exception as error:  # whatever it is goes into the table
        return reason(error), False
    assert measured is not None
    if not torch.equal(got.cpu(), expected):
        return "other bits", False
    del got
    if measured.peak_bytes > plan.budget_bytes:
        return "over budget", False
    if moved_back_bytes:
        return f"{moved_back_bytes} bytes copied back", False
    if held_bytes() != base:
        return "leaves memory behind", False
    return "yes", abs(measured.peak_bytes / plan.estimate.peak_bytes - 1) <= 0.01


# ---------------------------------------------------------------------------------------------------
# What is done to a quantized pipeline


@cache
def lora() -> dict[str, torch.Tensor]:
    """An adapter of the transformer, as a file has it."""
    torch.manual_seed(3)
    transformer = quantized_pipelines.plain().transformer
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k"], init_lora_weights=False))
    return {f"transformer.{path}": tensor for path, tensor in get_peft_model_state_dict(transformer).items()}


def load_lora(pipe: Any) -> None:
    pipe.load_lora_weights(dict(lora()), adapter_name="one")


def compile_blocks(pipe: Any) -> None:
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(backend="eager")


CHANGES: dict[str, Callable[[Any], None]] = {"LoRA on top": load_lora, "compiled": compile_blocks}


def answer_with(made: Callable[[], Any], change: Callable[[Any], None]) -> str:
    """What a plan did that streams a pipeline after something was done to it."""

    def changed() -> Any:
        pipe = made()
        change(pipe)
        return pipe

    try:
        expected = output(on_sim(changed()), "flux")
    except Exception as error:  # of the libraries, whatever it is
        return reason(error).replace("no:", "without a plan neither:", 1)
    try:
        return answer(changed, streamed(predicted_call(changed(), CALL)), expected)[0]
    except Exception as error:  # whatever it is goes into the table
        return reason(error)


def reason(error: Exception) -> str:
    """An error in one line of a table."""
    return f"no: {type(error).__name__}: {error}".replace("\n", " ").replace("|", "/")


if __name__ == "__main__":
    main()
