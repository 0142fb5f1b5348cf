"""What every run does, on whichever card: put a contestant on a pipeline, call it until it is steady, count and time."""

import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.race.contestants import INSTALLS, Start
from benchmarks.race.names import CONTESTANTS
from benchmarks.race.pipelines import Built, denoiser, models, weight_bytes

LONGEST_REASON = 200

Task = dict[str, Any]
"""`pipeline`, `contestant`, `knob`, `activation_bytes`, the environment of the run's process (`settings`), and `folder`, which
is empty and gone after the run."""


class Card(Protocol):
    """What the run is on."""

    cap_bytes: int
    """Its memory, the context with it."""
    context_bytes: int

    def reset(self) -> None:
        """Count from zero."""

    def counters(self) -> dict[str, float]:
        """What has been counted."""

    def host_seconds(self) -> float:
        """The clock of this thread of the host."""


def outcome(task: Task, card: Card, build: Callable[[], Built]) -> dict[str, Any]:
    """The row of a run that races; what it raises is in it."""
    row: dict[str, Any] = {}
    try:
        race(task, row, card, build)
    except BaseException as error:  # whatever it is that rivals raise, it is the row's outcome
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        row["failed"] = f"{type(error).__name__}: {lines[0]}".replace(task["folder"], "...")[:LONGEST_REASON]
        row["counters"] = card.counters()
    return row


def race(task: Task, row: dict[str, Any], card: Card, build: Callable[[], Built]) -> None:
    """Install and call, and write into the row what is known by then."""
    contestant = CONTESTANTS[task["contestant"]]
    row["step"] = "build"
    pipe, call_kwargs = build()
    row["weights"] = {name: weight_bytes(module) for name, module in models(pipe).items()}
    start = Start(
        pipe=pipe,
        call_kwargs=call_kwargs,
        cap_bytes=card.cap_bytes,
        context_bytes=card.context_bytes,
        activation_bytes=task["activation_bytes"],
        knob=task["knob"],
        folder=Path(task["folder"]),
    )
    row["step"] = "set-up"
    installed, row["setup_seconds"] = timed(card, lambda: INSTALLS[task["contestant"]](start))
    row["setup_counters"] = card.counters()

    caller = installed if contestant.is_pipeline else pipe

    def call() -> None:
        caller(**call_kwargs, generator=torch.Generator("cpu").manual_seed(0))

    row["step"] = "first call"
    _, row["first_seconds"] = timed(card, call)
    row["first_counters"] = card.counters()
    row["step"] = "later call"
    for _ in range(contestant.num_warm_calls - 1):
        call()
    if task["contestant"] == "resident" and "kernel_seconds" in card.counters():
        row["call"] = of_the_call(pipe, call, card)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    _, row["seconds"] = timed(card, call)
    row["counters"] = card.counters()
    after = torch.cuda.memory_stats()
    row["allocated_peak_bytes"] = torch.cuda.max_memory_allocated()
    row["num_alloc_retries"] = after["num_alloc_retries"] - before["num_alloc_retries"]
    row["num_out_of_memory"] = after["num_ooms"] - before["num_ooms"]
    if task["contestant"] == "vramtune":
        row["predicted"] = predicted(installed)
    row["step"] = "done"


def timed(card: Card, work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and how long it takes until the card is done; counts from zero."""
    torch.cuda.synchronize()
    card.reset()
    began = card.host_seconds()
    result = work()
    torch.cuda.synchronize()
    return result, card.host_seconds() - began


def of_the_call(pipe: Any, call: Callable[[], None], card: Card) -> dict[str, Any]:
    """The layers of a call with all weights on the card, in their order, as `bound.Call` has them: what is before the
    denoiser's calls, one of these, what is after, each from its own begin."""
    components = models(pipe).values()
    layers = [
        layer for each in components for layer in each.modules() if weight_bytes(layer) and not [*layer.children()]
    ]
    number_of = {layer: number for number, layer in enumerate(dict.fromkeys(layers))}
    weights = {layer: weight_bytes(layer) for layer in number_of}
    total_bytes = sum(map(weight_bytes, components))
    parts: list[dict[str, Any]] = []
    began_seconds = 0.0

    def passed_seconds() -> float:
        return round(kernel_seconds(card) - began_seconds, 9)

    def begin_part(*_: Any) -> None:
        nonlocal began_seconds
        end_part()
        began_seconds = kernel_seconds(card)
        parts.append({"visits": []})

    def end_part() -> None:
        if parts:
            parts[-1]["kernel_seconds"] = passed_seconds()

    def begin(layer: torch.nn.Module, *_: Any) -> None:
        torch.cuda.reset_peak_memory_stats()
        parts[-1]["visits"].append([number_of[layer], weights[layer], passed_seconds()])

    def end(layer: torch.nn.Module, _: Any, output: Any) -> None:
        live_bytes = torch.cuda.memory_allocated()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Conv3d):
            live_bytes = max(live_bytes, torch.cuda.max_memory_allocated() - output.nbytes)
        parts[-1]["visits"][-1] += [passed_seconds(), live_bytes - total_bytes]

    module = getattr(pipe, denoiser(pipe))
    hooks = [module.register_forward_pre_hook(begin_part), module.register_forward_hook(begin_part)]
    for layer in number_of:
        hooks += [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]
    begin_part()
    call()
    end_part()
    for hook in hooks:
        hook.remove()
    # after each of the denoiser's calls begins a part, without layers but for the last
    before, *calls, after = parts
    return {"num_calls": len(calls[::2]), "before": before, "denoiser": calls[-1], "after": after}


def kernel_seconds(card: Card) -> float:
    """What kernels have taken by now."""
    return card.counters()["kernel_seconds"]


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
