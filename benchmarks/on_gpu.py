"""Real models with random weights on this machine's GPU under a memory cap: stock offload modes and tuned.

    python -m benchmarks.on_gpu
    python -m benchmarks.on_gpu --models sdxl --caps 6 8 --modes model leaf sequential tuned

Nothing is downloaded. Writes `benchmarks/results/on_gpu_<gpu>_<date>.md` and the same as `.json`, anew after each row:
a run that was cut goes on where it stopped, unless `--again`. Out of memory, and a mode that fails, are results.
`--device sim --models tiny-flux --caps 0.004` runs it on the tests' simulated GPU.
"""

import argparse
import gc
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from transformers import PreTrainedModel

import vramtune
from benchmarks.results_file import environment, result_path, table, write_result
from tests import simgpu, tiny_pipelines
from vramtune import catalog
from vramtune.errors import BudgetError
from vramtune.machine.live import live_device
from vramtune.offload.device import resolve_device
from vramtune.offload.retry import is_out_of_memory
from vramtune.predict import predict_profile
from vramtune.schema import PLAN_MODE, Device, Profile
from vramtune.tuner.comparison import compare_modes
from vramtune.units import GIB, budget_bytes

MODES = {
    "resident": "all resident",
    "model": "model offload",
    "leaf": "group offload, leaf, stream",
    "sequential": "sequential offload",
    "tuned": PLAN_MODE,
}
"""What `--modes` takes, and what the predictions call it."""
TINY = "tiny-"
MODELS = (*catalog.names(), *(TINY + name for name in tiny_pipelines.CALL))
NOISE_NUMBERS = 1 << 24
CPU = torch.device("cpu")
LEGEND = """
Weights are random, so outputs mean nothing; shapes, dtypes and kernels are those of the real model. *Peak*: highest
reserved bytes of PyTorch's allocator from switching the mode on to the end of the second call, and the CUDA context.
The allocator is refused what exceeds the cap less the context. *Seconds*: the second call, wall clock, from an idle
GPU until it is idle again; *waiting*: those of them in which the GPU waits for copies. *Predicted* is an estimate, from this GPU's measured rates; the others are measured.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage of a tuned call: its device's events and counters, and what the plan said."""

    name: str
    seconds: float
    exposed_copy_seconds: float
    peak_bytes: int
    predicted_seconds: float
    predicted_exposed_copy_seconds: float
    predicted_peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model in one mode under one cap."""

    model: str
    cap_gib: float
    mode: str
    outcome: str
    """`ran`, or why it did not."""
    peak_bytes: int | None
    seconds: float | None
    predicted_peak_bytes: int | None
    predicted_seconds: float | None
    stages: tuple[StageRow, ...] = ()
    """Of the last call, in their order; only tuned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the file holds."""

    device: Device
    """The card with the rates that the probe measured, in the last run."""
    rows: list[Row]
    commands: list[str] = field(default_factory=list)
    """What made it, in order: runs may have had different machines with such a card."""


def main() -> None:
    """Run every mode of every model under every cap; write the tables."""
    options = parsed()
    facts = live_device(options.device)
    name = "on_gpu_" + re.sub(r"\W+", "_", facts.name).strip("_").lower()
    result = Result(device=facts, rows=[]) if options.again else earlier(name, facts)
    result.commands.append(f"python -m benchmarks.on_gpu {' '.join(sys.argv[1:])}".strip())
    rows = result.rows
    for model in options.models:
        for row in measured(model, options, done={(row.model, row.cap_gib, row.mode) for row in rows}):
            rows.append(row)
            write(name, result, options)
    path = write(name, result, options)
    print(path.read_text(), path, sep="\n")


def earlier(name: str, facts: Device) -> Result:
    """What a run before this one measured today."""
    path = result_path(name).with_suffix(".json")
    before = msgspec.json.decode(path.read_bytes(), type=Result) if path.exists() else Result(device=facts, rows=[])
    return replace(before, device=facts)


def write(name: str, result: Result, options: argparse.Namespace) -> Path:
    """The table of all rows so far, and the same as JSON."""
    rows, facts = result.rows, result.device
    lines = [
        f"# Offload modes under a memory cap on {facts.name}, measured",
        "",
        *environment("`, then `".join(result.commands), gpu=facts.name),
        f"- {options.steps} steps, the pipelines' default sizes; context {facts.context_bytes / GIB:.2f} GiB.",
        LEGEND,
        *(line for model in dict.fromkeys(row.model for row in rows) for line in section(model, rows)),
    ]
    path = write_result(name, lines)
    path.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    return path


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["sdxl", "flux.1-dev"])
    parser.add_argument("--caps", nargs="+", type=float, default=[8.0, 16.0], help="GiB, the context included")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["model", "leaf", "tuned"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or sim")
    parser.add_argument("--again", action="store_true", help="measure also what was measured today")
    options = parser.parse_args()
    if options.device == "sim":
        simgpu.load()  # before PyTorch is asked what `sim` is
    options.device = resolve_device(options.device)
    return options


# ---------------------------------------------------------------------------------------------------
# Pipelines


def build(model: str) -> Any:
    """A pipeline of that name on the CPU, its weights random."""
    if model.startswith(TINY):
        return tiny_pipelines.build(model.removeprefix(TINY))
    pipe = catalog.load(model)
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            materialise(component)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def materialise(module: nn.Module, device: torch.device = CPU) -> None:
    """Give a module of the catalog, which is on the meta device, memory and values."""
    module.to_empty(device=device)
    if isinstance(module, PreTrainedModel):
        module.tie_weights()  # `to_empty` unties T5's embeddings
    noise: dict[torch.dtype, torch.Tensor] = {}
    for parameter in module.parameters():
        dtype = parameter.dtype
        if dtype not in noise:
            noise[dtype] = torch.empty(NOISE_NUMBERS, device=device).normal_(0, 0.02).to(dtype)
        for piece in torch.split(parameter.data.view(-1), NOISE_NUMBERS):  # drawing 17 billion numbers takes minutes
            piece.copy_(noise[dtype][: piece.numel()])
    for path, buffer in module.named_buffers():
        if path.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))  # CLIP's
        elif buffer.is_floating_point():
            buffer.fill_(0.5)  # frequencies, means and variances: any number that none of them makes infinite
        else:
            buffer.zero_()


def call_kwargs(model: str, steps: int) -> dict[str, Any]:
    own = tiny_pipelines.CALL[model.removeprefix(TINY)] if model.startswith(TINY) else {}
    return {"prompt": "a photo of a cat", "num_inference_steps": steps, "output_type": "pt", **own}


# ---------------------------------------------------------------------------------------------------
# Measuring


def measured(model: str, options: argparse.Namespace, *, done: set[tuple[str, float, str]]) -> Iterator[Row]:
    """One model under every cap in every mode, but what is done; a new pipeline each: group offload has no off switch."""
    todo = [(cap, mode) for cap in options.caps for mode in options.modes if (model, cap, MODES[mode]) not in done]
    if not todo:
        return
    kwargs = call_kwargs(model, options.steps)
    pipe = tiny_pipelines.build(model.removeprefix(TINY)) if model.startswith(TINY) else catalog.load(model)
    profile = predict_profile(pipe, call_kwargs=kwargs, device=live_device(options.device))
    for cap, mode in todo:
        print(f"{model}, {cap:g} GiB, {MODES[mode]}", file=sys.stderr)
        yield Row(
            model=model,
            cap_gib=cap,
            mode=MODES[mode],
            **attempt(model, mode, options.device, budget_bytes(cap), profile.device.context_bytes, kwargs),
            **predicted(profile, MODES[mode], budget_bytes(cap)),
        )


def predicted(profile: Profile, mode: str, cap_bytes: int) -> dict[str, Any]:
    """The estimate of a mode under a cap; None where the plan does not exist."""
    modes = compare_modes(profile, cap_bytes).modes
    found = next((estimate for estimate in modes if estimate.mode == mode), None)
    return {"predicted_peak_bytes": found and found.peak_bytes, "predicted_seconds": found and found.seconds}


def attempt(
    model: str, mode: str, device: torch.device, cap_bytes: int, context_bytes: int, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Outcome, peak bytes and seconds of the second call, and a tuned one's stages."""
    release(device)
    pipe = build(model)
    outcome = "ran"
    try:
        with capped(device, cap_bytes - context_bytes):
            torch.accelerator.reset_peak_memory_stats(device)
            tuned = switch_on(pipe, mode, device, cap_bytes, kwargs)
            peaks = [torch.accelerator.max_memory_reserved(device)]
            for _ in range(2):
                seconds = timed(pipe, device, kwargs)
                peaks.append(torch.accelerator.max_memory_reserved(device))
                if tuned is not None:
                    # to measure stages apart it sets the allocator's mark back at each
                    peaks += [stage.peak_bytes for stage in tuned.measured.stages]
            stages = () if tuned is None else stage_rows(tuned)
            return {"outcome": outcome, "peak_bytes": max(peaks) + context_bytes, "seconds": seconds, "stages": stages}
    except BudgetError:
        outcome = "no plan fits"
    except Exception as error:  # a mode of diffusers' that fails must not cost the rows after it
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            outcome = "out of memory"
        else:
            traceback.print_exc()
            outcome = f"failed: {type(error).__name__}: {error}".splitlines()[0][:120].replace("|", "/")
    return {"outcome": outcome, "peak_bytes": None, "seconds": None}


def stage_rows(tuned: Any) -> tuple[StageRow, ...]:
    """The last call's stages beside the plan's of the same name."""
    planned = {stage.name: stage for stage in tuned.plan.estimate.stages}
    return tuple(
        StageRow(
            name=stage.name,
            seconds=stage.seconds,
            exposed_copy_seconds=stage.exposed_copy_seconds,
            peak_bytes=stage.peak_bytes + (tuned.measured.context_bytes or 0),
            predicted_seconds=planned[stage.name].seconds,
            predicted_exposed_copy_seconds=planned[stage.name].exposed_copy_seconds,
            predicted_peak_bytes=planned[stage.name].peak_bytes,
        )
        for stage in tuned.measured.stages
        if stage.name in planned
    )


def switch_on(pipe: Any, mode: str, device: torch.device, cap_bytes: int, kwargs: dict[str, Any]) -> Any:
    """What tuning gives; None in a stock mode."""
    turn_on: dict[str, Callable[[], Any]] = {
        "resident": partial(pipe.to, device),
        "model": partial(pipe.enable_model_cpu_offload, device=device),
        "leaf": partial(pipe.enable_group_offload, onload_device=device, offload_type="leaf_level", use_stream=True),
        "sequential": partial(pipe.enable_sequential_cpu_offload, device=device),
        "tuned": partial(vramtune.autotune, pipe, cap_bytes / GIB, call_kwargs=kwargs, device=device, progress=False),
    }
    switched = turn_on[mode]()
    return switched if mode == "tuned" else None


def timed(pipe: Any, device: torch.device, kwargs: dict[str, Any]) -> float:
    """Seconds of one call, from an idle device until it is idle again; virtual ones on the simulated GPU."""
    clock = torch.get_device_module(device).virtual_seconds if device.type == "sim" else time.perf_counter
    torch.accelerator.synchronize(device)
    begin = clock()
    pipe(**kwargs, generator=torch.Generator("cpu").manual_seed(0))
    torch.accelerator.synchronize(device)
    seconds: float = clock() - begin
    return seconds


@contextmanager
def capped(device: torch.device, num_bytes: int) -> Iterator[None]:
    """Let PyTorch's allocator have no more than so many bytes of a device."""
    module = torch.get_device_module(device)
    limit: float
    if device.type == "sim":
        set_limit, whole, limit = module.set_capacity, module.DEFAULT_CAPACITY_BYTES, num_bytes
    else:
        set_limit, whole = module.set_per_process_memory_fraction, 1.0
        limit = min(whole, num_bytes / torch.accelerator.get_memory_info(device)[1])  # a larger card than this one
    set_limit(limit, device)
    try:
        yield
    finally:
        set_limit(whole, device)


def release(device: torch.device) -> None:
    """Give back what the pipeline before held, pinned memory included."""
    gc.collect()
    torch.accelerator.synchronize(device)
    torch.accelerator.empty_cache()
    if device.type == "cuda":
        torch._C._host_emptyCache()  # `torch.accelerator.empty_host_cache` is younger than PyTorch 2.11


# ---------------------------------------------------------------------------------------------------
# Tables


def section(model: str, rows: list[Row]) -> list[str]:
    header = ["mode", "cap GiB", "outcome", "peak GiB", "predicted", "seconds", "predicted"]
    cells = [
        [
            row.mode,
            f"{row.cap_gib:g}",
            row.outcome,
            gib(row.peak_bytes),
            gib(row.predicted_peak_bytes),
            shown(row.seconds),
            shown(row.predicted_seconds),
        ]
        for row in rows
        if row.model == model
    ]
    return [f"## {model}", "", *table(header, cells), "", *stages_section(model, rows)]


def stages_section(model: str, rows: list[Row]) -> list[str]:
    """The tuned calls, stage by stage."""
    header = ["tuned, stage", "cap GiB", "peak GiB", "predicted", "seconds", "predicted", "waiting", "predicted"]
    cells = [
        [
            stage.name,
            f"{row.cap_gib:g}",
            gib(stage.peak_bytes),
            gib(stage.predicted_peak_bytes),
            shown(stage.seconds),
            shown(stage.predicted_seconds),
            shown(stage.exposed_copy_seconds),
            shown(stage.predicted_exposed_copy_seconds),
        ]
        for row in rows
        if row.model == model
        for stage in row.stages
    ]
    return [*table(header, cells), ""] if cells else []


def gib(num_bytes: int | None) -> str:
    return shown(None if num_bytes is None else num_bytes / GIB)


def shown(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}" if number < 1 else f"{number:.2f}"


if __name__ == "__main__":
    main()
