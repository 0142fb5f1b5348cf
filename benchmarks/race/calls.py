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
        row.update(of_the_denoiser(getattr(pipe, denoiser(pipe)), call, row["weights"], card))
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


def of_the_denoiser(
    module: torch.nn.Module, call: Callable[[], None], weights: dict[str, int], card: Card
) -> dict[str, Any]:
    """Of a call with all weights on the card: what kernels take before the denoiser's first call and after its last, and of
    that, its layers in their order, as `bound.Denoiser` has it."""
    moments: list[float] = [kernel_seconds(card)]
    begun: list[int] = []
    layers: dict[torch.nn.Module, list[float]] = {}

    def live_bytes() -> int:
        return torch.cuda.memory_allocated() - sum(weights.values())

    def begin(*_: Any) -> None:
        layers.clear()
        moments.append(kernel_seconds(card))
        begun.append(live_bytes())
        torch.cuda.reset_peak_memory_stats()

    def end(*_: Any) -> None:
        moments.append(kernel_seconds(card))

    def layer_begin(layer: torch.nn.Module, *_: Any) -> None:
        layers[layer] = [weight_bytes(layer), kernel_seconds(card) - moments[-1]]

    def layer_end(layer: torch.nn.Module, *_: Any) -> None:
        most_live_bytes = torch.cuda.max_memory_allocated() - sum(weights.values())
        layers[layer] += [kernel_seconds(card) - moments[-1], live_bytes(), most_live_bytes]
        torch.cuda.reset_peak_memory_stats()

    hooks = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    for layer in (each for each in module.modules() if weight_bytes(each) and not [*each.children()]):
        hooks += [layer.register_forward_pre_hook(layer_begin), layer.register_forward_hook(layer_end)]
    call()
    for hook in hooks:
        hook.remove()
    return {
        "kernel_seconds_around_denoiser": moments[1] - moments[0] + kernel_seconds(card) - moments[-1],
        "denoiser": {
            "num_calls": len(begun),
            "kernel_seconds": moments[-1] - moments[-2],
            "begin_bytes": begun[-1],
            "layers": [*layers.values()],
        },
    }


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
