"""Host time per visited streamed weight group: vramtune beside diffusers' group offload.

    python -m benchmarks.host_overhead

Runs on the tests' simulated GPU, in real time: what is timed is Python, PyTorch's dispatcher and the simulation's
own bookkeeping in place of a driver's. Writes `benchmarks/results/host_overhead_<date>.md`.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import ModuleGroup

from benchmarks.results_file import environment, table, write_result
from tests import tiny_pipelines
from tests.simgpu import load
from tests.simgpu.prediction import sim_device
from vramtune.errors import BudgetError
from vramtune.offload.install import install
from vramtune.offload.stream import Lane
from vramtune.predict import predict_profile
from vramtune.schema import Plan
from vramtune.tuner.search import choose_plan

NUM_STEPS, NUM_ROUNDS = 50, 9
NUM_LAYERS, NUM_SINGLE_LAYERS = 8, 16
CALL = {**tiny_pipelines.CALL["flux"], "num_inference_steps": NUM_STEPS}
LEGEND = f"""
A tiny FLUX.1 transformer of {NUM_LAYERS} double and {NUM_SINGLE_LAYERS} single blocks, {NUM_STEPS} steps a call,
one CPU thread. *Group copies*: copies of a whole group (of a parameter group's tensors one by one in diffusers) in a
call, counted in a call of their own. *Host us per group*: wall clock of a call less that of the same pipeline all
resident on the device, divided by the group copies; median of {NUM_ROUNDS} calls, in turns, after two warm-up calls;
lowest and highest beside it. Entering, copying, waiting and leaving a group are in it, and so is the simulation's own
cost for copies, events and waits, and that of copying the few KiB. The plan is that of the smallest budget that works:
it streams the transformer but for its root, and little else; diffusers' modes stream the transformer alone. Groups differ in size,
so the cost per tensor copied stands beside it. A real driver's costs differ; the ratios count.
"""


@dataclass(slots=True, kw_only=True)
class Way:
    """A pipeline in one mode."""

    name: str
    pipe: Any
    seconds: list[float] = field(default_factory=list)
    num_copies: int = 0
    num_tensors: int = 0
    """Copied in with them."""


def main() -> None:
    """Set up the modes, time them in turns, write the table."""
    torch.set_num_threads(1)
    load()
    plan = tightest_plan()
    ways = [
        Way(name="all resident", pipe=build().to("sim")),
        Way(name="vramtune", pipe=build()),
        Way(name="group offload, block, stream", pipe=offloaded("block_level", num_blocks_per_group=1)),
        Way(name="group offload, leaf, stream", pipe=offloaded("leaf_level")),
    ]
    with install(ways[1].pipe, plan, device="sim"):
        for way in ways:
            run(way)
            count(way)
        gc.disable()
        for way in ways * NUM_ROUNDS:
            way.seconds.append(run(way))
        gc.enable()
    lines = [
        "# Host time per streamed group, measured on the simulated GPU's host side",
        "",
        *environment("python -m benchmarks.host_overhead"),
        LEGEND,
        *table(
            [
                "mode",
                "groups copied per call",
                "tensors per group",
                "call ms",
                "host us per group",
                "range",
                "x vramtune",
                "host us per tensor",
                "x vramtune",
            ],
            rows(ways),
        ),
    ]
    print(*lines, write_result("host_overhead", lines), sep="\n")


def build() -> Any:
    torch.manual_seed(0)
    pipe = tiny_pipelines.flux(NUM_LAYERS, NUM_SINGLE_LAYERS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def offloaded(offload_type: str, **options: Any) -> Any:
    """diffusers' group offload with a stream on the transformer, everything else resident."""
    pipe = build()
    for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.vae):
        part.to("sim")
    apply_group_offloading(
        pipe.transformer, onload_device=torch.device("sim"), offload_type=offload_type, use_stream=True, **options
    )
    return pipe


def tightest_plan() -> Plan:
    """For the smallest budget that works: as much is streamed as can be."""
    profile = predict_profile(
        build(), call_kwargs={"prompt": "a photo of a cat", "output_type": "pt", **CALL}, device=sim_device()
    )
    try:
        return choose_plan(profile, 1)
    except BudgetError as error:
        return choose_plan(profile, error.smallest_bytes)


def run(way: Way) -> float:
    """Wall-clock seconds of one call."""
    load().reset()
    begin = time.perf_counter()
    tiny_pipelines.run(way.pipe, "flux", num_inference_steps=NUM_STEPS)
    load().synchronize()
    return time.perf_counter() - begin


def count(way: Way) -> None:
    """The copies of a call, counted where each side makes them."""

    def counting(original: Callable[..., Any], num_tensors: Callable[..., int]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            way.num_copies += 1
            way.num_tensors += num_tensors(*args)
            return original(*args, **kwargs)

        return counted

    ours = counting(Lane.copy, lambda lane, group, *_: len(group.held))
    theirs = counting(ModuleGroup._onload_from_memory, group_tensors)
    with mock.patch.object(Lane, "copy", ours), mock.patch.object(ModuleGroup, "_onload_from_memory", theirs):
        run(way)


def group_tensors(group: ModuleGroup) -> int:
    modules = sum(len([*module.parameters(), *module.buffers()]) for module in group.modules)
    return modules + len(group.parameters) + len(group.buffers)


def rows(ways: list[Way]) -> list[list[str]]:
    resident = statistics.median(ways[0].seconds)
    return [
        [ways[0].name, "0", "", f"{resident * 1e3:.0f}", *[""] * 5],
        *(row(way, ways[1], resident) for way in ways[1:]),
    ]


def row(way: Way, ours: Way, resident: float) -> list[str]:
    of = partial(per_group, way, resident)
    ratio = of(statistics.median) / per_group(ours, resident, statistics.median)
    tensors, our_tensors = way.num_tensors / way.num_copies, ours.num_tensors / ours.num_copies
    return [
        way.name,
        str(way.num_copies),
        f"{tensors:.1f}",
        f"{statistics.median(way.seconds) * 1e3:.0f}",
        f"{of(statistics.median):.0f}",
        f"{of(min):.0f} to {of(max):.0f}",
        f"{ratio:.2f}",
        f"{of(statistics.median) / tensors:.1f}",
        f"{ratio * our_tensors / tensors:.2f}",
    ]


def per_group(way: Way, resident: float, pick: Callable[[list[float]], float]) -> float:
    """Microseconds beyond the resident call for each group copied."""
    return (pick(way.seconds) - resident) / way.num_copies * 1e6


if __name__ == "__main__":
    main()
