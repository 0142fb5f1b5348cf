"""One run: a contestant on a pipeline under a cap, in a process that has no card yet."""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NoReturn

import torch

from benchmarks.memory_on_nullcuda import ValuesOfSmall
from benchmarks.race.contestants import INSTALLS, Start
from benchmarks.race.names import CONTESTANTS, OURS
from benchmarks.race.pipelines import build, denoiser, models, weight_bytes
from tests.nullcuda.card import card, counters, host_seconds, reset
from tests.nullcuda.clock import Cost, replace_time

LONGEST_REASON = 200
MOST_ELEMENTS = 4096
"""Functions on no larger tensors have values: masks, positions, lengths."""

Task = dict[str, Any]
"""`pipeline`, `contestant`, `knob`, `activation_bytes`, and the fork's environment: `settings`."""


def run(task: Task, writing: int) -> NoReturn:
    """Race, write what was found to a pipe, and end the process."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # rivals print
    os.environ.update(task["settings"])
    assert card().total_bytes == int(task["settings"]["NULLCUDA_TOTAL_BYTES"])
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VRAMTUNE_CACHE"] = cache  # another card's rates are not this one's
        replace_time()
        try:
            with ValuesOfSmall(MOST_ELEMENTS), Cost():
                race(task, row)
        except BaseException as error:  # whatever it is that rivals raise, it is the row's outcome
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            row["failed"] = f"{type(error).__name__}: {lines[0]}"[:LONGEST_REASON]
            row["counters"] = counters().as_dict()
    os.write(writing, json.dumps(row).encode())
    os._exit(0)  # rivals' threads and exit handlers may wait for ever


def race(task: Task, row: dict[str, Any]) -> None:
    """Install and call, and write into the row what is known by then."""
    contestant = CONTESTANTS[task["contestant"]]
    row["step"] = "build"
    pipe, call_kwargs = build(task["pipeline"])
    row["weights"] = {name: weight_bytes(module) for name, module in models(pipe).items()}
    start = Start(
        pipe=pipe,
        call_kwargs=call_kwargs,
        cap_bytes=card().total_bytes,
        context_bytes=card().context_bytes,
        activation_bytes=task["activation_bytes"],
        knob=task["knob"],
    )
    row["step"] = "set-up"
    installed, row["setup_seconds"] = timed(lambda: INSTALLS[task["contestant"]](start))
    row["setup_counters"] = counters().as_dict()

    def call() -> None:
        pipe(**call_kwargs, generator=torch.Generator("cpu").manual_seed(0))

    row["step"] = "first call"
    _, row["first_seconds"] = timed(call)
    row["first_counters"] = counters().as_dict()
    row["step"] = "later call"
    for _ in range(contestant.num_warm_calls - 1):
        call()
    if task["contestant"] == "resident":
        row["denoiser_activation_bytes"] = activation_bytes(getattr(pipe, denoiser(pipe)), call, row["weights"])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    _, row["seconds"] = timed(call)
    row["counters"] = counters().as_dict()
    after = torch.cuda.memory_stats()
    row["allocated_peak_bytes"] = torch.cuda.max_memory_allocated()
    row["num_alloc_retries"] = after["num_alloc_retries"] - before["num_alloc_retries"]
    row["num_out_of_memory"] = after["num_ooms"] - before["num_ooms"]
    if task["contestant"] in OURS:
        row["predicted"] = predicted(installed)
    row["step"] = "done"


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and how long it takes until the card is done; counts from zero."""
    torch.cuda.synchronize()
    reset()
    began = host_seconds()
    result = work()
    torch.cuda.synchronize()
    return result, host_seconds() - began


def activation_bytes(module: torch.nn.Module, call: Callable[[], None], weights: dict[str, int]) -> int:
    """Allocated at most while a model runs, beyond all weights."""
    peaks = []
    before = module.register_forward_pre_hook(lambda *_: torch.cuda.reset_peak_memory_stats())
    after = module.register_forward_hook(lambda *_: peaks.append(torch.cuda.max_memory_allocated()))
    call()
    before.remove()
    after.remove()
    return max(peaks) - sum(weights.values())


def predicted(tuned: Any) -> dict[str, Any]:
    """What vramtune said before: of its plan, and of diffusers' modes under the same budget."""
    estimate, measured = tuned.plan.estimate, tuned.measured
    return {
        "budget_bytes": tuned.plan.budget_bytes,
        "seconds": estimate.seconds,
        "first_call_seconds": estimate.first_call_seconds,
        "bound_seconds": estimate.bound_seconds,
        "peak_bytes": estimate.peak_bytes,
        "moved_bytes": estimate.moved_bytes,
        "stages": [asdict(stage) for stage in estimate.stages],
        "measured": asdict(measured),
        "overrun_bytes": tuned.overrun_bytes,
        "stock": [asdict(mode) for mode in tuned.compare().stock],
    }
